"""Evaluation labels as a table, and their total join to a catalogue; `labels` fetches them.

Apart from the fetching, so that an edit of that never makes a new catalogue, on which all training depends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from asdflow.errors import InputError

LABEL_COLUMNS = ["machine", "file_name", "section", "domain", "condition", "attributes", "attribute_label"]


def read_evaluation_labels(path: str | Path) -> pd.DataFrame:
    """Read `evaluation_labels.csv`: all columns strings, None where a list does not say (domain in 2020, attributes)."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as problem:
        raise InputError(
            f"'{path}' cannot be read", [str(problem)], "remove it and run the rule fetch_labels again"
        ) from problem
    if list(table.columns) != LABEL_COLUMNS:
        raise InputError(
            f"'{path}' is not a table of evaluation labels",
            [f"columns {', '.join(table.columns)}; expected {', '.join(LABEL_COLUMNS)}"],
            "remove it and run the rule fetch_labels again",
        )
    return table.astype(object).where(table != "", None)


def apply_labels(clips: pd.DataFrame, labels: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """Join evaluation labels to the test clips whose names do not say their condition; returns a new catalogue.

    The join is total: with a non-empty table every such clip needs a label and every label a clip, otherwise InputError lists all
    that lack the other. With `partial` labels without a clip are accepted (the data set is meant to be a part), clips without a
    label are not. With an empty table (nothing published) the clips stay unlabelled.
    """
    if labels.empty:
        return clips
    unlabelled = clips[(clips["split"] == "test") & clips["condition"].isna()]
    rows = unlabelled[["machine", "path", "section", "domain"]].to_dict("index")
    clip_of = {_clip_key(row["machine"], row["path"]): index for index, row in rows.items()}
    label_of = {_clip_key(label["machine"], label["file_name"]): label for label in labels.to_dict("records")}
    problems = [
        f"clip without label: {rows[clip_of[key]]['path']}"
        for key in sorted(clip_of.keys() - label_of.keys())
    ]
    if not partial:
        problems += [
            f"label without clip: {machine}/{stem}"
            for machine, stem in sorted(label_of.keys() - clip_of.keys())
        ]
    for key in sorted(clip_of.keys() & label_of.keys()):
        problems += _contradictions(rows[clip_of[key]], label_of[key])
    if problems:
        raise InputError(
            "The evaluation labels and the evaluation clips do not fit together",
            problems,
            "complete the data set; `partial: true` accepts labels without a clip",
        )
    return _filled(clips, {clip_of[key]: label_of[key] for key in clip_of})


def _filled(clips: pd.DataFrame, label_of: Mapping[Any, Mapping[Any, Any]]) -> pd.DataFrame:
    """The clips with what the labels say; where a label knows no attributes, those of the clip stay."""
    columns = {}
    for name in ("domain", "condition", "attributes", "attribute_label"):
        values: dict[Any, Any] = dict(zip(clips.index, clips[name], strict=True))
        deciding = "attribute_label" if name == "attributes" else name
        values |= {row: label[name] for row, label in label_of.items() if label[deciding] is not None}
        columns[name] = pd.Series(values, dtype=clips[name].dtype).reindex(clips.index)
    return clips.assign(**columns)


def _contradictions(clip: Mapping[Any, Any], label: Mapping[Any, Any]) -> Iterator[str]:
    for name in ("section", "domain"):
        said, listed = clip[name], label[name]
        if listed is not None and not pd.isna(said) and said != listed:
            yield f"{clip['path']}: the name says {name} {said}, the label says {listed}"


def _clip_key(machine: object, path: object) -> tuple[str, str]:
    return str(machine), PurePosixPath(str(path)).stem
