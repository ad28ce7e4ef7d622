"""Official scores that others published, shown beside ours only where the data are the same challenge set."""

from __future__ import annotations

from collections.abc import Sequence

from asdflow.report.tables import Table, number, text

SETS = (
    "2020 development", "2020 evaluation", "2021 development", "2021 evaluation", "2022 development", "2022 evaluation",
    "2023 development", "2023 evaluation", "2024 development", "2024 evaluation", "2025 evaluation",
)  # fmt: skip
# official score in percent, in the order of SETS; None where nothing was published
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    "official autoencoder": (65.3, 67.2, 56.5, 54.9, 53.8, 53.5, 54.8, 57.8, 55.0, 56.7, 56.5),
    "frozen BEATs, nearest neighbour": (70.2, 71.2, 62.9, 58.1, 61.9, 57.1, 60.1, 62.4, 56.1, 57.6, 62.4),
    "CNN on two spectra, sub-cluster AdaCos": (
        91.7,
        92.8,
        69.8,
        67.1,
        71.7,
        69.0,
        66.1,
        68.6,
        63.1,
        56.7,
        None,
    ),
    "BEATs with LoRA": (90.6, 93.5, 73.1, 67.6, 73.2, 68.9, 62.7, 71.5, 59.5, 61.7, None),
    "EAT with LoRA": (90.4, 93.5, 72.9, 67.6, 73.9, 69.9, 64.0, 72.0, 59.9, 61.5, None),
    "arXiv 2508.12230": (91.1, 93.1, None, None, 72.4, 66.6, 64.3, 68.7, 64.1, 65.5, None),
    "arXiv 2509.12845": (None, None, None, None, None, None, None, None, None, None, 62.6),
}
_TYPES_2020 = {"fan", "pump", "slider", "valve", "ToyCar", "ToyConveyor"}
_TYPES_2021 = {"fan", "gearbox", "pump", "slider", "ToyCar", "ToyTrain", "valve"}
_TYPES_2022 = {"bearing", "fan", "gearbox", "slider", "ToyCar", "ToyTrain", "valve"}
MACHINES: dict[str, set[str]] = {
    "2020 development": _TYPES_2020,
    "2020 evaluation": _TYPES_2020,
    "2021 development": _TYPES_2021,
    "2021 evaluation": _TYPES_2021,
    "2022 development": _TYPES_2022,
    "2022 evaluation": _TYPES_2022,
    "2023 development": _TYPES_2022,
    "2023 evaluation": {"bandsaw", "grinder", "shaker", "ToyDrone", "ToyNscale", "ToyTank", "Vacuum"},
    "2024 development": _TYPES_2022,
    "2024 evaluation": {
        "3DPrinter", "AirCompressor", "BrushlessMotor", "HairDryer", "HoveringDrone", "RoboticArm", "Scanner", "ToothBrush",
        "ToyCircuit",
    },
    "2025 evaluation": {
        "AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera", "Polisher", "ScrewFeeder", "ToyPet", "ToyRCCar",
    },
}  # fmt: skip


def published_table(published_set: str | None, machines: Sequence[str]) -> tuple[Table | None, str]:
    """The published official scores of a challenge set, or None, and a sentence that says why."""
    if published_set is None:
        return None, "These data are not a challenge set, so no published figures stand beside ours."
    if published_set not in MACHINES:
        return None, f"No published figures are known for {published_set}."
    missing = sorted(MACHINES[published_set] - set(machines))
    further = sorted(set(machines) - MACHINES[published_set])
    if missing or further:
        parts = ([f"missing {', '.join(missing)}"] if missing else []) + (
            [f"further {', '.join(further)}"] if further else []
        )
        return (
            None,
            f"Not all of {published_set} ({'; '.join(parts)}), so published figures would not compare.",
        )
    column = SETS.index(published_set)
    scores = [(name, values[column]) for name, values in PUBLISHED.items() if values[column] is not None]
    rows = [[text(name), number(score, 1)] for name, score in sorted(scores, key=lambda s: -float(s[1] or 0))]
    return Table(
        f"Published on {published_set}", ["System", "Official score"], rows, [1]
    ), "Published by others on the same clips."
