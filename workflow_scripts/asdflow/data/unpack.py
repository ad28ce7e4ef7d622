"""Unpacks a machine's archives into its folder: streaming, refusing hostile entries by name, whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from asdflow.data.archives import Archive, archive_folder, contents_path, plan_archives
from asdflow.data.download import archive_file, archive_record
from asdflow.data.listing import AUDIO_SUFFIXES
from asdflow.locks import exclusive, sweep
from asdflow.data.transfer import DownloadSettings
from asdflow.errors import InputError
from asdflow.files import full_disk_in_words, write_text

log = logging.getLogger(__name__)

LARGEST_ENTRY = 512 << 20
MOST_ENTRIES = 200_000
LARGEST_RATIO = 20
SMALL_ARCHIVE = 64 << 20
DISK_RESERVE = 256 << 20
BLOCK = 1 << 20


@dataclass(frozen=True)
class _Entry:
    """A file to unpack: where it goes below the machine's folder, and the archive and entry it comes from."""

    target: str
    archive: Path
    info: zipfile.ZipInfo


def unpack_machine(
    dataset: str, machine: str, entry: Mapping[str, Any], data_dir: str | Path, settings: DownloadSettings
) -> Path:
    """Unpack the machine's archives into `<data_dir>/<dataset>/<machine>/` and return `<machine>.unpacked.json` beside it.

    The folder appears whole, by a rename, or not at all; what a killed run left is removed. A folder that already holds all files of
    the same archives is left as it is. An archive that is no longer there is fetched again. Archives are deleted afterwards unless
    `keep_archives` or `offline` is set.

    Raises InputError naming archive and entry for absolute paths, `..`, links, encrypted entries, sizes beyond any recording,
    damaged data and clips that lie in two archives.
    """
    folder = Path(data_dir) / dataset / machine
    archives = plan_archives(dataset, entry, machine)
    with exclusive(folder.with_name(f".{machine}.lock")):
        sweep(folder.parent, f"{machine}.unpacked.json")
        for litter in (_temporary(folder), _displaced(folder)):
            shutil.rmtree(litter, ignore_errors=True)
        if not _is_complete(folder, archives, data_dir):
            paths = [archive_file(archive, data_dir, settings, entry.get("offline")) for archive in archives]
            _unpack(paths, machine, folder, _sources(archives, data_dir))
        record = folder.with_name(f"{machine}.unpacked.json")
        write_text(record, contents_path(folder).read_text(encoding="utf-8"))
        if not entry.get("keep_archives", False) and entry.get("offline") is None:
            for archive in archives:
                (archive_folder(data_dir, dataset) / archive.name).unlink(missing_ok=True)
    return record


def unpack_archives(archives: Sequence[Path], machine: str, target: Path) -> dict[str, int]:
    """Unpack what the archives hold of `machine` into `target`, which must not exist; returns file -> size, sorted.

    Nothing is written before every entry of every archive has passed; raises InputError as `unpack_machine` does.
    """
    entries = _inspect(archives, machine)
    _check_disk(target, sum(entry.info.file_size for entry in entries))
    target.mkdir(parents=True)
    opened: dict[Path, zipfile.ZipFile] = {}
    try:
        for entry in entries:
            if entry.archive not in opened:
                opened[entry.archive] = zipfile.ZipFile(entry.archive)
            _extract(opened[entry.archive], entry, target / entry.target)
    finally:
        for archive in opened.values():
            archive.close()
    return {entry.target: entry.info.file_size for entry in entries}


def _unpack(paths: Sequence[Path], machine: str, folder: Path, sources: list[dict[str, Any]]) -> None:
    temporary = _temporary(folder)
    try:
        files = unpack_archives(paths, machine, temporary)
        write_text(
            contents_path(temporary), json.dumps({"archives": sources, "files": files}, indent=1) + "\n"
        )
        _flush(temporary)
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("%s: %d files from %s", folder, len(files), ", ".join(path.name for path in paths))


def _sources(archives: Iterable[Archive], data_dir: str | Path) -> list[dict[str, Any]]:
    records = [archive_record(archive, data_dir) for archive in archives]
    return [{key: record[key] for key in ("archive", "size", "md5")} for record in records]


def _is_complete(folder: Path, archives: Sequence[Archive], data_dir: str | Path) -> bool:
    """Whether the folder holds every file, in full size, of exactly the archives that are on record."""
    try:
        contents = json.loads(contents_path(folder).read_text(encoding="utf-8"))
        same = contents["archives"] == _sources(archives, data_dir)
        return same and all(
            (folder / name).stat().st_size == size for name, size in contents["files"].items()
        )
    except (OSError, ValueError, KeyError, InputError):
        return False


def _inspect(archives: Sequence[Path], machine: str) -> list[_Entry]:
    """Every file to unpack, sorted by target; all refusals of all archives in one InputError."""
    problems: list[str] = []
    entries: dict[str, _Entry] = {}
    for path in archives:
        for entry in _entries_of(path, machine, problems):
            known = entries.get(entry.target)
            if known is None:
                entries[entry.target] = entry
            elif not _is_same(known, entry):
                _keep_both(entries, entry, known, problems)
    if problems:
        raise InputError(
            f"Archives of machine '{machine}' are refused; nothing was unpacked",
            problems,
            "fetch the archives again from their Zenodo record; if they stay like this, report it there",
        )
    return [entries[target] for target in sorted(entries)]


def _keep_both(entries: dict[str, _Entry], entry: _Entry, known: _Entry, problems: list[str]) -> None:
    """Attribute tables of the same name in two archives are kept side by side, clips are not."""
    if entry.target.endswith(".csv"):
        beside = f"{entry.target.removesuffix('.csv')}_{entry.archive.stem}.csv"
        entries[beside] = _Entry(beside, entry.archive, entry.info)
    else:
        problems.append(
            f"'{entry.target}' lies in {known.archive.name} and, different, in {entry.archive.name}"
        )


def _entries_of(path: Path, machine: str, problems: list[str]) -> list[_Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as problem:
        problems.append(f"{path}: not a readable zip archive ({problem})")
        return []
    found, total = [], 0
    for info in infos:
        total += info.file_size
        try:
            _refuse(info)
            target = _target(info, machine)
        except ValueError as reason:
            problems.append(f"{path.name}, entry {info.orig_filename!r}: {reason}")
            continue
        if target is not None:
            found.append(_Entry(target, path, info))
    if len(infos) > MOST_ENTRIES or total > max(LARGEST_RATIO * path.stat().st_size, SMALL_ARCHIVE):
        problems.append(
            f"{path.name}: {len(infos)} entries of {total} bytes in an archive of {path.stat().st_size} bytes"
        )
    if not found and not problems:
        problems.append(f"{path.name}: holds no recording of machine '{machine}'")
    return found


def _refuse(info: zipfile.ZipInfo) -> None:
    """Raise ValueError, saying why, for an entry that is not an ordinary file or folder of the archive."""
    name = info.orig_filename
    mode = info.external_attr >> 16
    if "\0" in name or "\\" in name:
        raise ValueError("the name holds a backslash or NUL")
    if name.startswith("/") or name[1:2] == ":":
        raise ValueError("an absolute path")
    if ".." in PurePosixPath(name).parts:
        raise ValueError("the path leads upwards ('..')")
    if stat.S_ISLNK(mode):
        raise ValueError("a symbolic link")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError("not an ordinary file")
    if info.flag_bits & 0x1:
        raise ValueError("encrypted")
    if info.file_size > LARGEST_ENTRY:
        raise ValueError(f"{info.file_size} bytes, more than any recording (limit {LARGEST_ENTRY})")


def _target(info: zipfile.ZipInfo, machine: str) -> str | None:
    """Path below the machine's folder, None for what is not unpacked (folders, notes, desktop litter).

    Raises ValueError for a recording outside `<machine>/<folder>/`: leaving it out silently would lose it.
    """
    parts = PurePosixPath(info.filename).parts
    if info.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
        return None
    below = parts[parts.index(machine) + 1 :] if machine in parts[:-1] else ()
    suffix = PurePosixPath(info.filename).suffix.lower()
    if suffix in AUDIO_SUFFIXES and len(below) != 2:
        raise ValueError(f"a recording that is not at {machine}/<folder>/<file>")
    if suffix not in AUDIO_SUFFIXES and (suffix != ".csv" or len(below) not in (1, 2)):
        log.info("%s is not unpacked: neither a recording nor an attribute table", info.filename)
        return None
    return "/".join(below)


def _is_same(one: _Entry, other: _Entry) -> bool:
    return one.archive != other.archive and (one.info.CRC, one.info.file_size) == (
        other.info.CRC,
        other.info.file_size,
    )


def _extract(archive: zipfile.ZipFile, entry: _Entry, target: Path) -> None:
    """Write one entry, never more bytes than it declares; zipfile compares the CRC at its end."""
    target.parent.mkdir(exist_ok=True)
    written = 0
    try:
        with full_disk_in_words(target), archive.open(entry.info) as source, target.open("xb") as sink:
            while block := source.read(BLOCK):
                written += len(block)
                sink.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as problem:
        raise InputError(
            f"Archive {entry.archive} is damaged or hostile; its machine was not unpacked",
            [f"entry {entry.info.orig_filename!r}: {problem}"],
            "delete the archive and its record, and run the same command again to fetch it",
        ) from problem
    if written != entry.info.file_size:
        raise InputError(
            f"Archive {entry.archive} is damaged or hostile; its machine was not unpacked",
            [f"entry {entry.info.orig_filename!r}: {entry.info.file_size} bytes declared, {written} found"],
            "delete the archive and its record, and run the same command again to fetch it",
        )


def _check_disk(target: Path, needed: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed + DISK_RESERVE:
        raise InputError(
            f"Not enough free disk to unpack into '{target.parent}'",
            [f"needed {(needed + DISK_RESERVE) / 1e6:.0f} MB, free {free / 1e6:.0f} MB"],
            "free some space, or set `data_dir` to a larger disk",
        )


def _flush(folder: Path) -> None:
    """Have every file and folder below on the disk before the rename says that they are complete."""
    for root, _, names in os.walk(folder):
        for name in [*names, "."]:
            _sync(Path(root) / name)


def _swap(temporary: Path, folder: Path) -> None:
    """Put the new folder in the place of the old one; between the two renames there is none."""
    if folder.exists():
        folder.rename(_displaced(folder))
    temporary.rename(folder)
    shutil.rmtree(_displaced(folder), ignore_errors=True)
    _sync(folder.parent)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unpacking")


def _displaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
