"""The challenge's submission files: written exactly named and complete, read from anyone and matched by file name."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from asdflow.errors import InputError
from asdflow.files import write_text
from asdflow.tables import read_parquet

LABEL_COLUMNS = ["file_name", "machine", "section", "domain", "label"]
KINDS = ("anomaly_score", "decision_result")
SHOWN = 20
"""Most clips that are named one by one in an error; the rest is counted."""


class Part(NamedTuple):
    """What one submission file covers; domain is empty but in 2021."""

    machine: str
    section: str
    domain: str


def file_name(kind: str, part: Part, year: int) -> str:
    """Name of a submission file: `kind` is anomaly_score or decision_result.

    2020 `anomaly_score_<machine>_id_<NN>.csv`, 2021 `..._section_<NN>_<domain>_test.csv`, later `..._section_<NN>_test.csv`.
    """
    if year == 2020:
        return f"{kind}_{part.machine}_{part.section}.csv"
    domain = f"_{part.domain}" if year == 2021 else ""
    return f"{kind}_{part.machine}_section_{part.section}{domain}_test.csv"


def parse_file_name(name: str, year: int) -> tuple[str, Part] | None:
    """Kind and part of a submission file's name, or None for another file."""
    if year == 2020:
        found = re.fullmatch(r"(anomaly_score|decision_result)_(.+)_(id_\d+)\.csv", name)
        return (found[1], Part(found[2], found[3], "")) if found else None
    domain = "_(source|target)" if year == 2021 else "()"
    found = re.fullmatch(rf"(anomaly_score|decision_result)_(.+)_section_(\d+){domain}_test\.csv", name)
    return (found[1], Part(found[2], found[3], found[4])) if found else None


def read_labels(path: str | Path, year: int) -> pd.DataFrame:
    """Read the truth: CSV file_name, machine, section, domain, label (0/1 or normal/anomaly), or a clips.parquet.

    Returns these columns, section as `03` (2020 `id_03`), label 0 or 1. A clips.parquet may hold test clips of unknown
    condition (label null); a CSV may not. Raises InputError naming every wrong row.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            return labels_of_clips(read_parquet(path))
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as labels", [str(error)], "give a CSV file with labels"
        ) from error
    needed = [name for name in LABEL_COLUMNS if name != "domain" or year > 2020]
    if absent := [f"column {name}: missing" for name in needed if name not in table]:
        raise InputError(f"{path} lacks columns", absent, f"give the columns {', '.join(LABEL_COLUMNS)}")
    table = table.assign(
        section=[canonical_section(value, year) for value in table["section"]],
        domain=table.get("domain", ""),
        label=table["label"].map({"0": 0, "1": 1, "normal": 0, "anomaly": 1}),
    )
    problems = [
        f"line {line}: label is neither 0, 1, normal nor anomaly"
        for line in table.index[table["label"].isna()] + 2
    ]
    if year > 2020:
        wrong = table.index[~table["domain"].isin(["source", "target"])]
        problems += [f"line {line}: domain is neither source nor target" for line in wrong + 2]
    doubled = table.duplicated(
        ["machine", "section", "domain", "file_name"] if year == 2021 else ["machine", "section", "file_name"]
    )
    problems += [
        f"line {line}: {table['file_name'][line - 2]} is there twice" for line in table.index[doubled] + 2
    ]
    if problems or table.empty:
        raise InputError(
            f"{path}: the labels are wrong", shortened(problems) or ["there is no row"], "mend these lines"
        )
    return table[LABEL_COLUMNS].astype({"label": "int64"})


def canonical_section(value: str, year: int) -> str:
    """`3`, `03`, `section_03` -> `03`; in 2020 `1`, `01`, `id_01` -> `id_01`."""
    number = value.strip().removeprefix("section_").removeprefix("id_")
    number = number.zfill(2) if number.isdigit() else number
    return f"id_{number}" if year == 2020 else number


def labels_of_clips(clips: pd.DataFrame) -> pd.DataFrame:
    """The labels of a catalogue's test clips: file names as the challenge has them (`.wav`), label null where unknown."""
    test = clips[clips["split"] == "test"]
    return pd.DataFrame(
        {
            "file_name": [challenge_name(path) for path in test["path"]],
            "machine": test["machine"].to_numpy(),
            "section": test["section"].to_numpy(),
            "domain": test["domain"].fillna("").to_numpy(),
            "label": test["condition"].map({"normal": 0, "anomaly": 1}).to_numpy(dtype=float),
        }
    )


def challenge_name(path: str | Path) -> str:
    """File name of a clip in submissions: its own, with the suffix `.wav` whatever it is stored as."""
    return f"{Path(path).stem}.wav"


def read_submission(directory: str | Path, labels: pd.DataFrame, year: int) -> pd.DataFrame:
    """Read a submission folder and match it with the labels **by file name**.

    Parameters
    ----------
    directory : folder with the challenge's headerless CSV files (`name.wav,value`).
    labels : as from `read_labels`.
    year : whose file names hold.

    Returns
    -------
    The labelled clips with anomaly_score and, where decision files are given, decision (0 or 1).

    Raises
    ------
    InputError : listing every missing, doubled or unknown file or clip, every line that is not `name,value`, and every value
        that is NaN, infinite or (decisions) neither 0 nor 1.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(
            f"{directory} is not a folder", remedy="give the folder that holds the submission's CSV files"
        )
    wanted = {part: rows for part, rows in _parts(labels, year)}
    files = _submission_files(directory, year)
    problems = [
        f"{name}: unknown, no such machine and section among the labels"
        for kind, part, name in files
        if part not in wanted
    ]
    tables, given = [], {(kind, part) for kind, part, _ in files}
    decided = any(kind == "decision_result" for kind, _ in given)
    for part, rows in wanted.items():
        for kind, column in zip(KINDS[: 1 + decided], ("anomaly_score", "decision"), strict=False):
            path = directory / file_name(kind, part, year)
            values, found = (
                _read_values(path, set(rows["file_name"]))
                if (kind, part) in given
                else ({}, [f"{path.name}: missing file"])
            )
            problems += found
            rows = rows.assign(**{column: rows["file_name"].map(values)})
            if kind == "decision_result":
                bad = rows.loc[rows[column].notna() & ~rows[column].isin([0, 1]), "file_name"]
                problems += shortened([f"{path.name}: {name}: decision is neither 0 nor 1" for name in bad])
        tables.append(rows)
    if problems:
        raise InputError(
            f"submission {directory} is not complete and correct", problems, "mend the files named"
        )
    table = pd.concat(tables, ignore_index=True)
    return table.astype({"decision": "int64"}) if decided else table


def _submission_files(directory: Path, year: int) -> list[tuple[str, Part, str]]:
    """(kind, part, name) of every submission file in the folder."""
    parsed = [(parse_file_name(path.name, year), path.name) for path in sorted(directory.iterdir())]
    files = [(found[0], found[1], name) for found, name in parsed if found]
    if not any(kind == "anomaly_score" for kind, _, _ in files):
        deeper = sorted({str(path.parent) for path in directory.glob("*/anomaly_score_*.csv")})
        example = file_name("anomaly_score", Part("fan", "id_00" if year == 2020 else "00", "source"), year)
        raise InputError(
            f"{directory} holds no file of anomaly scores of {year}",
            [f"{folder} does" for folder in deeper],
            f"give the folder with files such as {example}",
        )
    return files


def _parts(labels: pd.DataFrame, year: int) -> Iterator[tuple[Part, pd.DataFrame]]:
    """The rows that go into each pair of submission files."""
    keys = ["machine", "section", "domain"] if year == 2021 else ["machine", "section"]
    for key, rows in labels.groupby(keys, sort=True):
        machine, section, domain = [str(value) for value in [*key, ""]][:3]
        yield Part(machine, section, domain), rows


def _read_values(path: Path, expected: set[str]) -> tuple[dict[str, float], list[str]]:
    """Values by clip name of one submission file, and everything wrong with it."""
    values: dict[str, float] = {}
    problems, doubled, unknown, broken = [], [], [], []
    with path.open(newline="", encoding="utf-8-sig") as handle:
        for number, row in enumerate(csv.reader(handle), 1):
            if not row:
                continue
            name, value = row[0].strip(), _number(row)
            if value is None:
                problems.append(f"{path.name}: line {number} is not `name.wav,value`: {','.join(row)[:60]!r}")
            elif name not in expected:
                unknown.append(f"{path.name}: {name}: unknown clip")
            elif name in values:
                doubled.append(f"{path.name}: {name}: there twice")
            elif not np.isfinite(value):
                broken.append(f"{path.name}: {name}: value is {row[1].strip()}")
            if value is not None:
                values.setdefault(name, value)
    missing = [f"{path.name}: {name}: missing clip" for name in sorted(expected - set(values))]
    return values, [
        line for lines in (problems, unknown, doubled, broken, missing) for line in shortened(lines)
    ]


def _number(row: list[str]) -> float | None:
    try:
        return float(row[1]) if len(row) == 2 else None
    except ValueError:
        return None


def shortened(lines: list[str]) -> list[str]:
    """At most SHOWN lines, and how many more there are."""
    return (
        lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more of this kind"]
    )


def write_submission(
    clips: Path,
    scores: Path,
    year: int,
    output: Path,
    system: str,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write the challenge's files for all test clips, and `metadata.yaml` to fill in; read them back to check.

    Parameters
    ----------
    clips, scores : clips.parquet and scores.parquet of a run.
    year : whose file names hold. output : folder. system : its name, for the metadata.
    description : what the metadata says of the system (encoder, back end, ...), as plain values.

    Raises InputError for test clips without score, clips whose names the challenge cannot tell apart, or a system that
    learns from attributes the challenge hides.
    """
    if ((description or {}).get("labels") or {}).get("kind") == "hidden_attributes":
        raise InputError(
            f"{system} may not be submitted",
            [f"systems.{system}.labels.kind: hidden_attributes: it learns from what the challenge hides"],
            "it is an upper bound for comparison only; submit a system with labels of another kind",
        )
    table = read_parquet(clips)
    labels = labels_of_clips(table)
    test = table.loc[table["split"] == "test", ["clip_id"]].reset_index(drop=True)
    scored = pd.concat([labels, test], axis=1).merge(read_parquet(scores), on="clip_id", how="left")
    doubled = scored[
        scored.duplicated(["machine", "section", *(["domain"] if year == 2021 else []), "file_name"])
    ]
    lacking = scored.loc[scored["anomaly_score"].isna(), "clip_id"]
    problems = [f"{name}: no score" for name in lacking] + [
        f"{name}: name is there twice" for name in doubled["clip_id"]
    ]
    if problems:
        raise InputError(
            "the submission cannot be written",
            shortened(problems),
            "score all test clips, give each its own name",
        )
    for part, rows in _parts(scored, year):
        for kind, column in zip(
            KINDS[: 1 if year == 2020 else 2], ("anomaly_score", "decision"), strict=False
        ):
            lines = [
                f"{name},{value!r}\n"
                for name, value in zip(rows["file_name"], rows[column].tolist(), strict=True)
            ]
            write_text(Path(output) / file_name(kind, part, year), "".join(lines))
    write_text(Path(output) / "metadata.yaml", metadata(year, system, description or {}))
    _check_written(output, labels, scored, year)


def _check_written(output: Path, labels: pd.DataFrame, scored: pd.DataFrame, year: int) -> None:
    """Read a submission back; raises RuntimeError when a value is not the one that was written."""
    keys = ["machine", "section", "domain", "file_name"]
    columns = [*keys, "anomaly_score", *(["decision"] if year > 2020 else [])]
    read = read_submission(output, labels, year).sort_values(keys)[columns].reset_index(drop=True)
    written = scored.sort_values(keys)[columns].reset_index(drop=True)
    if not read.equals(written.astype(read.dtypes.to_dict())):
        raise RuntimeError(f"{output}: the submission read back differs from the scores")


def metadata(year: int, system: str, description: Mapping[str, Any]) -> str:
    """The metadata YAML of a submission: what is known filled in, what only its authors know left empty."""
    author = {"firstname": "", "lastname": "", "email": "", "affiliation": {"institute": "", "location": ""}}
    known = json.loads(json.dumps(dict(description)))
    content = {
        "submission": {
            "label": "Surname_INST_task2_1",
            "name": system,
            "abbreviation": system,
            "authors": [author],
        },
        "system": {
            "description": {"input_sampling_rate": "16 kHz", "machine_learning_method": known or system},
            "complexity": {"total_parameters": None, "MACS": None},
            "external_datasets": [],
            "source_code": None,
        },
        "results": {"development_dataset": None},
    }
    head = (
        f"# Metadata of a DCASE {year} Task 2 submission. Fill in every empty value before you send it in.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
