"""Maps of the embeddings: every system before pre-training, after it and as scored, by machine and by what colours the clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from asdflow.report import evidence, figures
from asdflow.report.book import Book, Choice, Panel
from asdflow.report.dataset import Dataset
from asdflow.report.figures import plain
from asdflow.report.inputs import DatasetFiles, SystemFiles
from asdflow.report.tables import Table, number, text

CLIPS, FULL_SYSTEMS, FEWEST = 900, 3, 240
"""Clips of a map; of so many systems; with more systems a map has fewer clips, down to so many."""
COLOURINGS = {
    "machine": "machine",
    "section": "section",
    "domain": "domain",
    "attributes": "attribute_label",
    "pseudo label": "label",
    "condition": "condition",
}
STAGES = {"unadapted": "Before pre-training", "encoder": "The encoder, pre-trained", "scored": "As scored"}


def map_panel(
    dataset: Dataset,
    labels: pd.DataFrame | None,
    book: Book,
    panel: Callable[[Sequence[Choice], Mapping[str, str]], Panel],
    seed: int,
) -> Panel | None:
    """Maps side by side, chosen by system, colouring and machine; None where no embeddings are on disk.

    Embeddings that several systems share (those of their encoder) are mapped and kept once.
    """
    assert dataset.clips is not None
    systems = {s.name: stages_of(s, dataset.files) for s in _featured_first(dataset)}
    systems = {name: stages for name, stages in systems.items() if stages}
    most = max(FEWEST, CLIPS * min(FULL_SYSTEMS, max(len(systems), 1)) // max(len(systems), 1))
    machines = ["all machines", *dataset.machines]
    choices = [
        Choice("System", list(systems)),
        Choice("Colour", list(COLOURINGS)),
        Choice("Machine", machines),
    ]
    slots = {stage: title for stage, title in STAGES.items() if any(stage in s for s in systems.values())}
    made = panel(choices, slots)
    drawn: dict[Path, dict[str, str]] = {}
    for index, (name, stages) in enumerate(systems.items()):
        for stage, path in stages.items():
            place = f"{made.id}/{stage}/{index}"
            if path in drawn:
                for rest, known in drawn[path].items():
                    book.same(f"{place}-{rest}", known)
                continue
            points = evidence.embedding_points(path, dataset.clips, labels, most, seed)
            what = f"{STAGES[stage].lower()}, {name}"
            drawn[path] = {} if points is None else _add_maps(points, what, machines, book, place)
    return made if any(drawn.values()) else None


def _featured_first(dataset: Dataset) -> list[SystemFiles]:
    """All systems, the featured one first: it is what a panel shows before anything is chosen."""
    return sorted(dataset.files.systems, key=lambda s: s is not dataset.featured)


def stages_of(system: SystemFiles, files: DatasetFiles) -> dict[str, Path]:
    """Stage -> those embeddings of a system that are on disk, in the order of their making."""
    run = evidence.first_run(system)
    found = {
        "unadapted": files.embeddings.get(system.unadapted or ""),
        "encoder": files.embeddings.get(system.encoder or ""),
        "scored": run.embeddings if run else None,
    }
    return {stage: path for stage, path in found.items() if path is not None and path.is_file()}


def _add_maps(
    points: pd.DataFrame, what: str, machines: Sequence[str], book: Book, place: str
) -> dict[str, str]:
    """Add a map for every colouring and machine; returns '<colouring>-<machine>' -> id."""
    added = {}
    points = points.assign(number=[book.name_number(plain(clip_id)) for clip_id in points["clip_id"]])
    for i, (name, column) in enumerate(COLOURINGS.items()):
        for j, machine in enumerate(machines):
            part = points if j == 0 else points[points["machine"] == machine]
            if not len(part) or not part[column].notna().any():
                continue
            if part[column].nunique() > figures.MOST_CATEGORIES:
                continue
            counts = part[column].fillna("not known").value_counts().sort_index()
            rows = [[text(k), number(v, 0)] for k, v in counts.items()]
            table = Table(f"Clips on the map by {name}", [name, "Clips"], rows, [1])
            alt = f"t-SNE map of {len(part)} embeddings ({what}), coloured by {name}, {machine}: {len(counts)} groups"
            figure = figures.embedding_map(part, column)
            added[f"{i}-{j}"] = book.add(figure, alt, table, f"{place}-{i}-{j}")
    return added
