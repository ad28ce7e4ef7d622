"""How many clips a complete official set has, and whether a catalogue has them.

The figures are those published with the challenges and their evaluation labels. Where a year publishes none, or only
"about 1000", nothing is expected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from asdflow.errors import InputError

_DEV_2022 = ("bearing", "fan", "gearbox", "slider", "ToyCar", "ToyTrain", "valve")
_MACHINES_2021 = ("fan", "gearbox", "pump", "slider", "ToyCar", "ToyTrain", "valve")
_EVAL_2023 = ("bandsaw", "grinder", "shaker", "ToyDrone", "ToyNscale", "ToyTank", "Vacuum")
_EVAL_2024 = (
    *("3DPrinter", "AirCompressor", "BrushlessMotor", "HairDryer", "HoveringDrone"),
    *("RoboticArm", "Scanner", "ToothBrush", "ToyCircuit"),
)
_EVAL_2025 = (
    *("AutoTrash", "BandSealer", "CoffeeGrinder", "HomeCamera"),
    *("Polisher", "ScrewFeeder", "ToyPet", "ToyRCCar"),
)
_SECTIONS_2020 = {
    "fan": (("id_00", "id_02", "id_04", "id_06"), ("id_01", "id_03", "id_05")),
    "pump": (("id_00", "id_02", "id_04", "id_06"), ("id_01", "id_03", "id_05")),
    "slider": (("id_00", "id_02", "id_04", "id_06"), ("id_01", "id_03", "id_05")),
    "valve": (("id_00", "id_02", "id_04", "id_06"), ("id_01", "id_03", "id_05")),
    "ToyCar": (("id_01", "id_02", "id_03", "id_04"), ("id_05", "id_06", "id_07")),
    "ToyConveyor": (("id_01", "id_02", "id_03"), ("id_04", "id_05", "id_06")),
}
_TEST_2020 = {
    "fan": (309, 1033),
    "pump": (300, 477),
    "slider": (300, 534),
    "valve": (300, 640),
    "ToyCar": (750, 795),
    "ToyConveyor": (600, 1065),
}
# Source normal, source anomaly, target normal, target anomaly; 2021 over its three evaluation sections.
_TEST_2021 = {"gearbox": (382, 314, 318, 414), "slider": (303, 301, 303, 300)}
_EVEN_2021 = (300, 300, 300, 300)
_TEST_2023 = {"bandsaw": (67, 40, 60, 33), "grinder": (107, 27, 36, 30), "shaker": (49, 53, 52, 46)}
_EVEN = (50, 50, 50, 50)

Kind = tuple[str, str | None, str | None]
"""Split, domain, condition of clips; None stands for any."""


@dataclass(frozen=True)
class Block:
    """Sections of a machine that are published together, and the clips they must have in all.

    `counts` : (split, domain, condition) -> number of clips over all these sections; None stands for any.
    """

    machine: str
    sections: tuple[str, ...]
    counts: dict[Kind, int]


def check_counts(catalogue: pd.DataFrame, year: int) -> list[str]:
    """Compare a catalogue with the published counts of its year, for the machines and sections it has clips of.

    When one section of a block (a machine's development sections, or its evaluation sections) is there, all of the
    block must be. Counts by condition or domain are compared where all clips of the split are labelled, else their sum.

    Returns notices. Raises `InputError` naming machine, split, expected and found number, for all machines at once.
    """
    blocks = list(expected_blocks(year))
    if not blocks:
        return [f"the counts of {year} are not published; the number of clips was not checked"]
    known = {block.machine for block in blocks}
    problems = [
        f"{machine} is not a machine of {year} (known: {', '.join(sorted(known))})"
        for machine in sorted(set(catalogue["machine"]) - known)
    ]
    for block in blocks:
        clips = catalogue[(catalogue["machine"] == block.machine) & catalogue["section"].isin(block.sections)]
        if len(clips):
            problems += _block_problems(block, clips)
    if problems:
        raise InputError(
            f"The data set is not the complete official set of {year}.",
            problems,
            "Complete the data set, or say partial: true when it is meant to be a part.",
        )
    return []


def _block_problems(block: Block, clips: pd.DataFrame) -> Iterator[str]:
    for section in block.sections:
        if not (clips["section"] == section).any():
            yield f"{block.machine}: section {section} has no clips"
    for (split, domain, condition), expected in _comparable(block.counts, clips).items():
        chosen = clips[clips["split"] == split]
        if domain is not None:
            chosen = chosen[chosen["domain"] == domain]
        if condition is not None:
            chosen = chosen[chosen["condition"] == condition]
        if len(chosen) != expected:
            kind = " ".join(word for word in (domain, condition, split) if word)
            sections = ", ".join(block.sections)
            yield f"{block.machine}: {len(chosen)} {kind} clips in section {sections}, {expected} are published"


def _comparable(counts: dict[Kind, int], clips: pd.DataFrame) -> dict[Kind, int]:
    """Sum the expected counts over what the clips of a split do not tell: domain or condition."""
    summed: dict[Kind, int] = {}
    for (split, domain, condition), count in counts.items():
        of_split = clips[clips["split"] == split]
        known_domain = domain if of_split["domain"].notna().all() else None
        known_condition = condition if of_split["condition"].notna().all() else None
        kind = (split, known_domain, known_condition)
        summed[kind] = summed.get(kind, 0) + count
    return summed


def expected_blocks(year: int) -> Iterator[Block]:
    """Yield what is published of a year: one block per machine and its development or evaluation sections."""
    if year == 2020:
        for machine, (development, evaluation) in _SECTIONS_2020.items():
            normal, anomaly = _TEST_2020[machine]
            yield Block(machine, development, {})
            counts: dict[Kind, int] = {("test", None, "normal"): normal, ("test", None, "anomaly"): anomaly}
            yield Block(machine, evaluation, counts)
    if year == 2021:
        for machine in _MACHINES_2021:
            target: dict[Kind, int] = {("train", "target", None): 9}
            yield Block(machine, ("00", "01", "02"), target)
            tested = _test_counts(_TEST_2021.get(machine, _EVEN_2021))
            yield Block(machine, ("03", "04", "05"), {**target, **tested})
    if year == 2022:
        for machine in _DEV_2022:
            for sections in (("00", "01", "02"), ("03", "04", "05")):
                yield Block(machine, sections, _first_shot_counts(_EVEN, n_sections=3))
    evaluation_machines = {2023: _EVAL_2023, 2024: _EVAL_2024, 2025: _EVAL_2025}.get(year, ())
    for machine in (*_DEV_2022, *evaluation_machines) if evaluation_machines else ():
        test = _TEST_2023.get(machine, _EVEN)
        yield Block(machine, ("00",), _first_shot_counts(test, supplemental=100 if year == 2025 else 0))


def _first_shot_counts(test: Sequence[int], n_sections: int = 1, supplemental: int = 0) -> dict[Kind, int]:
    return {
        ("train", "source", None): 990 * n_sections,
        ("train", "target", None): 10 * n_sections,
        **_test_counts([count * n_sections for count in test]),
        ("supplemental", None, None): supplemental,
    }


def _test_counts(test: Sequence[int]) -> dict[Kind, int]:
    """Key the four counts of test clips: source normal, source anomaly, target normal, target anomaly."""
    kinds = [(domain, condition) for domain in ("source", "target") for condition in ("normal", "anomaly")]
    return {("test", *kind): count for kind, count in zip(kinds, test, strict=True)}
