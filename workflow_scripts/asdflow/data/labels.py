"""Evaluation labels and hidden attributes from the organisers' published lists, pinned by checksum and joined totally."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import pandas as pd
import requests

from asdflow.data.archives import archive_folder, plan_archives
from asdflow.data.download import WHOLE_FETCHES
from asdflow.data.evaluation_labels import LABEL_COLUMNS
from asdflow.data.naming import ClipName, UnknownNameError, attribute_label, parse_clip_name
from asdflow.data.transfer import (
    DownloadSettings,
    InterruptedTransferError,
    open_session,
    read_small,
    with_retries,
)
from asdflow.errors import InputError
from asdflow.files import atomic_path, file_digest
from asdflow.locks import exclusive, sweep

log = logging.getLogger(__name__)

HIDDEN_COLUMNS = ["clip_id", "attribute_label"]
LARGEST_LIST = 64 << 20
_OLD_ROBOTIC_ARM = re.compile(r"^(section_\d{2}_(?:source|target))_(normal|anomaly)_")
_DAMAGE = re.compile(r"_damage\d+$")


def fetch_labels(
    dataset: str, entry: Mapping[str, Any], data_dir: str | Path, settings: DownloadSettings
) -> tuple[Path, Path]:
    """Fetch the lists that the entry names, verified by sha256, and write what they say as two tables.

    `<data_dir>/<dataset>/evaluation_labels.csv` (LABEL_COLUMNS, one row an evaluation test clip of the chosen machines) and
    `<data_dir>/<dataset>/hidden_attributes.csv` (clip_id, attribute_label); only a header where there is nothing. Attributes of
    machines whose attributes are hidden stand in the second table only. The lists are kept beside the archives.

    Raises InputError for a list that cannot be had or has another sha256, and for rows that cannot be understood, all of them.
    """
    folder = Path(data_dir) / dataset
    paths = folder / "evaluation_labels.csv", folder / "hidden_attributes.csv"
    with exclusive(archive_folder(data_dir, dataset) / ".labels.lock"):
        sources = _wanted_sources(dataset, entry)
        lists = _fetch_all(dataset, sources, data_dir, settings, entry.get("offline"))
        labels, names = _evaluation_table(dataset, entry, lists)
        hidden = _hidden_table(dataset, entry, lists, names)
        for table, path in zip((labels, hidden), paths, strict=True):
            sweep(folder, path.name)
            with atomic_path(path) as temporary:
                table.to_csv(temporary, index=False, lineterminator="\n")
    return paths


def _wanted_sources(
    dataset: str, entry: Mapping[str, Any]
) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Path of each list that the chosen split and machines need -> (its source, its pin)."""
    archives = plan_archives(dataset, entry)
    machines = {archive.machine for archive in archives}
    evaluation = {archive.machine for archive in archives if archive.kind == "evaluation"}
    wanted = {}
    for key, among in (("evaluation_labels", evaluation), ("hidden_attributes", machines)):
        source = entry.get(key) or {"files": {}}
        for path, pin in source["files"].items():
            if among and pin.get("machine") in (None, *among):
                wanted[path] = (source, pin)
    return wanted


def _fetch_all(
    dataset: str,
    sources: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    data_dir: str | Path,
    settings: DownloadSettings,
    offline: str | None,
) -> dict[str, list[list[str]]]:
    """Rows of every list, by path; each is verified, and kept in `labels/` beside the archives."""
    folder = archive_folder(data_dir, dataset) / "labels"
    problems = []
    with open_session() as session:
        for path, (source, pin) in sources.items():
            if _has_digest(folder / path, pin["sha256"]):
                continue
            address = f"{settings.labels.rstrip('/')}/{source['repository']}/{source['commit']}/{quote(path)}"
            if offline is None:
                content = _fetch_list(session, address, pin["sha256"], settings)
            else:
                given = [
                    place
                    for place in (Path(offline) / path, Path(offline) / Path(path).name)
                    if place.is_file()
                ]
                fitting = [place for place in given if file_digest(place) == pin["sha256"]]
                if not fitting:
                    found = f"found {', '.join(map(file_digest, given))}" if given else "not found"
                    problems.append(
                        f"{Path(offline) / path} ({address}): sha256 expected {pin['sha256']}, {found}"
                    )
                    continue
                content = fitting[0].read_bytes()
            sweep((folder / path).parent, Path(path).name)
            with atomic_path(folder / path) as temporary:
                temporary.write_bytes(content)
    if problems:
        raise InputError(
            "Label lists are missing in the offline folder or differ",
            problems,
            "fetch them from these addresses",
        )
    return {path: _rows((folder / path).read_bytes()) for path in sources}


def _fetch_list(session: requests.Session, address: str, sha256: str, settings: DownloadSettings) -> bytes:
    """One list; InputError names address, expected and found when it comes with another sha256 again and again."""
    wrong: list[str] = []

    def once() -> bytes:
        content = read_small(session, address, settings, LARGEST_LIST)
        found = hashlib.sha256(content).hexdigest()
        if found == sha256:
            return content
        wrong.append(f"{address}: sha256 expected {sha256}, found {found}")
        if len(wrong) < WHOLE_FETCHES:
            raise InterruptedTransferError(wrong[-1])
        raise InputError(
            f"A label list is not the pinned one after {WHOLE_FETCHES} fetches",
            wrong,
            "fetch it by other means and put it into the folder that `offline` names",
        )

    return with_retries(once, settings, f"Label list {PurePosixPath(address).name}")


def _has_digest(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def _rows(content: bytes) -> list[list[str]]:
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]


# ------------------------------------------------------------------ reading the lists


def _evaluation_table(
    dataset: str, entry: Mapping[str, Any], lists: Mapping[str, list[list[str]]]
) -> tuple[pd.DataFrame, dict[tuple[str, str], str]]:
    """The table of LABEL_COLUMNS, and (machine, file name) -> official name with condition."""
    archives = plan_archives(dataset, entry)
    machines = list(dict.fromkeys(archive.machine for archive in archives if archive.kind == "evaluation"))
    source = entry.get("evaluation_labels")
    if source is None or not machines:
        return pd.DataFrame(columns=LABEL_COLUMNS, dtype=object), {}
    problems: list[str] = []
    read = _read_names if source["format"] == "names" else _read_evaluator
    labels, names = read({path: lists[path] for path in source["files"] if path in lists}, machines, problems)
    hidden = _hidden_machines(entry)
    for label in labels:
        if label["machine"] in hidden:
            label |= {"attributes": "{}", "attribute_label": None}
    for machine in machines:
        if not any(label["machine"] == machine for label in labels):
            problems.append(f"no label of machine '{machine}'")
    _raise_if_any(dataset, problems)
    return pd.DataFrame(labels, columns=LABEL_COLUMNS, dtype=object), names


def _read_names(
    lists: Mapping[str, list[list[str]]], machines: Sequence[str], problems: list[str]
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], str]]:
    """Lists of `<machine>` lines, each followed by `<file name>,<name that tells>[,<1 for an anomaly>]`."""
    labels, names = [], {}
    for path, rows in lists.items():
        machine = ""
        for row in rows:
            if len(row) == 1:
                machine = row[0]
            elif machine in machines:
                name = _official_name(f"{path}: {machine}", row[1], problems)
                if (machine, row[0]) in names:
                    problems.append(f"{path}: {machine}: {row[0]} is listed twice")
                names[machine, row[0]] = row[1]
                if name is None:
                    continue
                if len(row) > 2 and row[2] != str(int(name.condition == "anomaly")):
                    problems.append(f"{path}: {machine}: {row[0]} is called {row[1]} but labelled {row[2]}")
                labels.append(_label(machine, row[0], name))
    return labels, names


def _official_name(place: str, text: str, problems: list[str]) -> ClipName | None:
    """Read a name that tells domain and condition; RoboticArm of 2024 is listed without `_test_`."""
    stem = _OLD_ROBOTIC_ARM.sub(r"\1_test_\2_", text.removesuffix(".wav"))
    try:
        name = parse_clip_name("test", stem)
    except UnknownNameError as problem:
        problems.append(f"{place}: {text}: {problem}")
        return None
    if name.condition is None:
        problems.append(f"{place}: {text}: the name does not tell the condition")
        return None
    return name


def _label(machine: str, file_name: str, name: ClipName) -> dict[str, Any]:
    return {
        "machine": machine,
        "file_name": file_name,
        "section": name.section,
        "domain": name.domain,
        "condition": name.condition,
        "attributes": json.dumps(name.attributes, ensure_ascii=False),
        "attribute_label": attribute_label(name.attributes),
    }


def _read_evaluator(
    lists: Mapping[str, list[list[str]]], machines: Sequence[str], problems: list[str]
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], str]]:
    """The evaluator of 2022: conditions (1 is an anomaly) and domains (1 is target) in files of `<file name>,<0 or 1>`.

    Its attribute tables end in a column with the telling name; a name that contradicts condition or domain is an error.
    """
    conditions = _marks(lists, "ground_truth_data", problems)
    domains = _marks(lists, "ground_truth_domain", problems)
    for machine, file_name in sorted(conditions.keys() ^ domains.keys()):
        problems.append(f"{machine}/{file_name} has a condition or a domain, not both")
    names = _telling_names(lists)
    problems += [
        f"{machine}/{file_name} has attributes but no label"
        for machine, file_name in sorted(names.keys() - conditions.keys())
    ]
    labels = []
    for (machine, file_name), condition in conditions.items():
        domain = domains.get((machine, file_name))
        section = re.match(r"section_(\d{2})_", file_name)
        if machine not in machines or domain is None or section is None:
            continue
        known = {"condition": ("normal", "anomaly")[condition], "domain": ("source", "target")[domain]}
        name = ClipName(section[1], known["domain"], "test", known["condition"])
        if (machine, file_name) in names:
            told = _official_name(f"{machine}/{file_name}", names[machine, file_name], problems)
            if told is not None and (told.domain, told.condition) != (name.domain, name.condition):
                problems.append(
                    f"{machine}/{file_name}: labelled {name.domain} {name.condition}, called {names[machine, file_name]}"
                )
            name = told or name
        labels.append(_label(machine, file_name, name))
    return labels, names


def _marks(
    lists: Mapping[str, list[list[str]]], folder: str, problems: list[str]
) -> dict[tuple[str, str], int]:
    marks: dict[tuple[str, str], int] = {}
    for path, rows in lists.items():
        match = re.match(rf"{folder}/ground_truth_(\w+)_section_\d\d_test\.csv", path)
        for row in rows if match else []:
            key = (match[1], row[0])  # type: ignore[index]
            if len(row) != 2 or row[1] not in ("0", "1") or key in marks:
                problems.append(f"{path}: {','.join(row)} is not `<file name>,<0 or 1>`, or is listed twice")
            else:
                marks[key] = int(row[1])
    return marks


def _telling_names(lists: Mapping[str, list[list[str]]]) -> dict[tuple[str, str], str]:
    names = {}
    for path, rows in lists.items():
        if path.startswith("ground_truth_attributes/"):
            machine = PurePosixPath(path).parent.name
            names.update(
                {(machine, PurePosixPath(row[0]).name): PurePosixPath(row[-1]).name for row in rows[1:]}
            )
    return names


def _hidden_machines(entry: Mapping[str, Any]) -> set[str]:
    return {pin["machine"] for pin in ((entry.get("hidden_attributes") or {}).get("files") or {}).values()}


def _hidden_table(
    dataset: str,
    entry: Mapping[str, Any],
    lists: Mapping[str, list[list[str]]],
    names: Mapping[tuple[str, str], str],
) -> pd.DataFrame:
    """Clip ids of machines with hidden attributes and the canonical text of what was revealed.

    The files say `<name with attributes>,<name as published>`; published evaluation clips of 2024 appear there under the name that
    the label list gives them. `_damage<n>` and a trailing `_` in names of anomalous clips are no attributes and dropped [ours].
    """
    kinds = {(archive.machine, archive.kind) for archive in plan_archives(dataset, entry)}
    source = entry.get("hidden_attributes") or {"files": {}}
    problems: list[str] = []
    revealed: dict[str, str] = {}
    published = {(machine, name): file_name for (machine, file_name), name in names.items()}
    for (machine, file_name), name in names.items():
        if machine in _hidden_machines(entry) and not name.endswith("_noAttribute.wav"):
            _reveal(revealed, f"{machine}/test/{PurePosixPath(file_name).stem}", name, problems)
    for path, pin in source["files"].items():
        machine, split = pin["machine"], "train" if "_train_" in path else "test"
        kind = (
            "development"
            if "/dev_data/" in path
            else ("additional_training" if split == "train" else "evaluation")
        )
        if (machine, kind) not in kinds:
            continue
        for told, listed in lists[path][1:]:
            file_name = published.get((machine, listed), listed)
            if kind == "evaluation" and (machine, file_name) not in names:
                problems.append(f"{path}: {listed} is no evaluation clip of {machine}")
            _reveal(revealed, f"{machine}/{split}/{PurePosixPath(file_name).stem}", told, problems)
    _raise_if_any(dataset, problems)
    return pd.DataFrame(sorted(revealed.items()), columns=HIDDEN_COLUMNS, dtype=object)


def _reveal(revealed: dict[str, str], clip_id: str, told: str, problems: list[str]) -> None:
    stem = _DAMAGE.sub("", told.removesuffix(".wav").rstrip("_"))
    stem = _OLD_ROBOTIC_ARM.sub(r"\1_test_\2_", stem)
    try:
        name = parse_clip_name("train" if "_train_" in stem else "test", stem)
    except UnknownNameError as problem:
        problems.append(f"{clip_id}: {told}: {problem}")
        return
    label = attribute_label(name.attributes)
    if label is None:
        problems.append(f"{clip_id}: {told} reveals no attribute")
    elif revealed.setdefault(clip_id, label) != label:
        problems.append(f"{clip_id}: revealed as {revealed[clip_id]} and as {label}")


def _raise_if_any(dataset: str, problems: list[str]) -> None:
    if problems:
        raise InputError(
            f"The label lists of '{dataset}' cannot be used",
            problems,
            "the pinned lists are known to be sound: check evaluation_labels and hidden_attributes in the data set's configuration",
        )
