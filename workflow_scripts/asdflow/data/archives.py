"""Which archives a DCASE data set consists of and where they lie: plain bookkeeping, no network, fast enough for planning a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asdflow.errors import InputError

KINDS_OF_SPLIT = {
    "development": ("development",),
    "evaluation": ("additional_training", "evaluation"),
    "both": ("development", "additional_training", "evaluation"),
}


@dataclass(frozen=True)
class Archive:
    """One zip of one machine in one Zenodo record; `kind` is development, additional_training or evaluation."""

    dataset: str
    machine: str
    kind: str
    zenodo_record: int
    name: str


def plan_archives(dataset: str, entry: Mapping[str, Any], machine: str | None = None) -> list[Archive]:
    """Archives of the split and machines that `entry` chooses (of one machine only when it is given), in the order of the file.

    Raises InputError for a split that does not exist and for machines without an archive in the split.
    """
    wanted = planned_machines(dataset, entry)
    machines = [machine] if machine is not None else wanted
    if unknown := sorted(set(machines) - set(wanted)):
        raise _unknown_machines(dataset, entry, unknown, wanted)
    return [found for found in _archives_of_split(dataset, entry) if found.machine in machines]


def planned_machines(dataset: str, entry: Mapping[str, Any]) -> list[str]:
    """Machines of the chosen split in the order of the file, or those of them that `machines` lists."""
    available = list(dict.fromkeys(found.machine for found in _archives_of_split(dataset, entry)))
    wanted = entry.get("machines")
    if wanted is None:
        return available
    if unknown := [name for name in wanted if name not in available]:
        raise _unknown_machines(dataset, entry, unknown, available)
    return [name for name in available if name in wanted]


def archive_folder(data_dir: str | Path, dataset: str) -> Path:
    """Folder in which the archives of a data set and their records lie."""
    return Path(data_dir) / "archives" / dataset


def record_path(data_dir: str | Path, archive: Archive) -> Path:
    """The JSON beside an archive that says where it came from, its size and its md5; written once the archive is verified."""
    return archive_folder(data_dir, archive.dataset) / f"{archive.name}.json"


def contents_path(folder: Path) -> Path:
    """The JSON in an unpacked machine's folder: the archives it came from (archive, size, md5) and its files with their sizes."""
    return folder / "unpacked.json"


def _archives_of_split(dataset: str, entry: Mapping[str, Any]) -> list[Archive]:
    split = entry.get("split", "both")
    if split not in KINDS_OF_SPLIT:
        raise InputError(
            f"Data set '{dataset}': unknown split '{split}'",
            remedy=f"set `split` to one of {', '.join(KINDS_OF_SPLIT)}",
        )
    archives = []
    for kind in KINDS_OF_SPLIT[split]:
        part = entry["archives"].get(kind) or {"zenodo_record": 0, "files": {}}
        for machine, names in part["files"].items():
            archives += [Archive(dataset, machine, kind, int(part["zenodo_record"]), name) for name in names]
    return archives


def _unknown_machines(
    dataset: str, entry: Mapping[str, Any], unknown: list[str], known: list[str]
) -> InputError:
    return InputError(
        f"Data set '{dataset}' has no such machine in its split '{entry.get('split', 'both')}'",
        [f"machine '{name}'" for name in unknown],
        f"choose among {', '.join(known)} or change `split`",
    )
