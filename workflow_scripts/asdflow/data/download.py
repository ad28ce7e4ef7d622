"""Fetches archives from Zenodo and lets none pass that differs from its published size and md5."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import requests

from asdflow.data.archives import Archive, archive_folder, contents_path, record_path
from asdflow.locks import exclusive, is_held, one_of, sweep
from asdflow.data.transfer import DownloadSettings as DownloadSettings
from asdflow.data.transfer import (
    InterruptedTransferError,
    Progress,
    ask,
    blocks,
    open_session,
    with_retries,
)
from asdflow.data.zenodo import PublishedFile, ask_zenodo, from_saved_answer, record_address
from asdflow.errors import InputError
from asdflow.files import file_digest, full_disk_in_words, write_text

log = logging.getLogger(__name__)

WHOLE_FETCHES = 3
DISK_RESERVE = 256 << 20
PROGRESS_WORTH_COUNTING = 1 << 20


def download_archive(
    archive: Archive, data_dir: str | Path, settings: DownloadSettings, offline: str | Path | None = None
) -> Path:
    """Have the archive on disk, verified, and return the path of its record (JSON: archive, path, url, size, md5, licence).

    An interrupted transfer goes on where it stopped. Neither a verified archive is fetched again nor one that was deleted after its
    machine was unpacked from it. With `offline` the archive is verified where it lies in that folder. Only one process at a time
    works on an archive; at most `settings.parallel` are fetched at once.

    Raises InputError when the server refuses, the disk is too small, or the checksum stays wrong.
    """
    if offline is not None:
        return _verify_offline(archive, data_dir, settings, Path(offline))
    target = archive_folder(data_dir, archive.dataset) / archive.name
    with exclusive(_lock_path(target)):
        sweep(target.parent, target.name)
        known = _read_record(record_path(data_dir, archive))
        if known is not None and _matches(target, known):
            return record_path(data_dir, archive)
        published = _unpacked_before(archive, data_dir, settings) or _fetch(archive, target, settings)
        return _write_record(archive, data_dir, target, published)


def archive_file(
    archive: Archive, data_dir: str | Path, settings: DownloadSettings, offline: str | Path | None
) -> Path:
    """The archive's file, as its record names it; fetched again when it is gone or no longer has the recorded md5."""
    known = _read_record(record_path(data_dir, archive))
    if known is not None and _matches(Path(known["path"]), known):
        return Path(known["path"])
    if offline is not None:
        _verify_offline(archive, data_dir, settings, Path(offline))
        return Path(offline) / archive.name
    target = archive_folder(data_dir, archive.dataset) / archive.name
    with exclusive(_lock_path(target)):
        _write_record(archive, data_dir, target, _fetch(archive, target, settings))
    return target


def archive_record(archive: Archive, data_dir: str | Path) -> dict[str, Any]:
    """What was recorded when the archive was verified."""
    known = _read_record(record_path(data_dir, archive))
    if known is None:
        raise InputError(
            f"'{record_path(data_dir, archive)}' is missing or unreadable",
            remedy="run the download of the data set again",
        )
    return known


class _WrongBytesError(Exception):
    """What arrived is not the published file."""


def _unpacked_before(
    archive: Archive, data_dir: str | Path, settings: DownloadSettings
) -> PublishedFile | None:
    """The published file, when the machine's folder says that it was unpacked from just this; else None."""
    contents = _read_record(contents_path(Path(data_dir) / archive.dataset / archive.machine)) or {}
    sources = {source["archive"]: source for source in contents.get("archives", [])}
    if archive.name not in sources:
        return None
    with open_session() as session:
        published = with_retries(
            lambda: ask_zenodo(session, archive, settings), settings, f"The md5 of {archive.name}"
        )
    source = sources[archive.name]
    if (source["size"], source["md5"]) != (published.size, published.md5):
        return None
    log.info("%s: unpacked before, not fetched again", archive.name)
    return published


def _fetch(archive: Archive, target: Path, settings: DownloadSettings) -> PublishedFile:
    """Fetch until size and md5 agree; after WHOLE_FETCHES wrong files InputError names address, expected and found."""
    wrong: list[str] = []
    remedy = f"run the same command again: it goes on where it stopped ({target}.part is kept)"
    with one_of(target.parent.parent, settings.parallel), open_session() as session:
        while len(wrong) < WHOLE_FETCHES:
            try:
                return with_retries(
                    lambda: _one_try(archive, target, settings, session),
                    settings,
                    f"Archive {archive.name}",
                    remedy,
                )
            except _WrongBytesError as problem:
                wrong.append(str(problem))
                log.warning("%s: %s; deleted, fetching it again", archive.name, problem)
    raise InputError(
        f"Archive {archive.name}: {WHOLE_FETCHES} fetches in a row did not give the published file",
        wrong,
        "try later, or fetch the file by other means and set `offline` of the data set to its folder",
    )


def _one_try(
    archive: Archive, target: Path, settings: DownloadSettings, session: requests.Session
) -> PublishedFile:
    published = ask_zenodo(session, archive, settings)
    part = target.with_name(target.name + ".part")
    if _matches(target, {"size": published.size, "md5": published.md5}):
        _discard(part)
        return published
    held = _held_bytes(part, published)
    _check_disk(target, published.size - held)
    digest = hashlib.md5(usedforsecurity=False)
    if held:
        log.info("%s: going on after %.1f MB", archive.name, held / 1e6)
        _feed(digest, part)
    if held < published.size:
        digest = _receive(archive, part, published, held, digest, settings, session)
    if digest.hexdigest() != published.md5:
        _discard(part)
        raise _WrongBytesError(f"{published.url}: md5 expected {published.md5}, found {digest.hexdigest()}")
    part.replace(target)
    _note_path(part).unlink()
    return published


def _receive(
    archive: Archive,
    part: Path,
    published: PublishedFile,
    held: int,
    digest: Any,
    settings: DownloadSettings,
    session: requests.Session,
) -> Any:
    """Append what is missing to `part`; returns the digest of all of it."""
    headers = {"Range": f"bytes={held}-"} if held else None
    with ask(session, published.url, settings, headers) as response:
        start = _check_announced(response, published, held, part)
        if start == 0:
            digest = hashlib.md5(usedforsecurity=False)
        progress = Progress(archive.name, published.size, start)
        try:
            with full_disk_in_words(part), part.open("ab") as handle:
                handle.truncate(start)
                for block in blocks(response, published.url):
                    handle.write(block)
                    digest.update(block)
                    progress.add(len(block))
                    if progress.done > published.size:
                        break
        except InterruptedTransferError as problem:
            problem.progressed = progress.done - start >= PROGRESS_WORTH_COUNTING
            raise
    if progress.done < published.size:
        raise InterruptedTransferError(
            f"{published.url}: the body ended after {progress.done} of {published.size} bytes",
            progressed=progress.done - start >= PROGRESS_WORTH_COUNTING,
        )
    return digest


def _check_announced(response: requests.Response, published: PublishedFile, held: int, part: Path) -> int:
    """Where the announced body starts in the file (0 when the server ignored the range); refuses what cannot be the published file."""
    total: int | None = None
    start = 0
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        start, total = (int(match[1]), int(match[3])) if match else (-1, None)
    elif response.status_code == 200 and (length := response.headers.get("Content-Length")) is not None:
        total = int(length)
    if (
        response.status_code == 416
        or start not in (0, held)
        or (total is not None and total != published.size)
    ):
        _discard(part)
        announced = response.headers.get("Content-Range") or f"{total} bytes"
        raise _WrongBytesError(
            f"{published.url}: {published.size} bytes expected from byte {held}, the server announced "
            f"{response.status_code} {announced}"
        )
    return start


def _held_bytes(part: Path, published: PublishedFile) -> int:
    """Bytes of `part` that belong to the published file; a part begun for another file is thrown away."""
    note = _note_path(part)
    wanted = {"md5": published.md5, "size": published.size}
    if part.exists() and _read_record(note) != wanted:
        log.warning("%s was begun for a file with another md5: beginning afresh", part.name)
        _discard(part)
    write_text(note, json.dumps(wanted))
    return part.stat().st_size if part.exists() else 0


def _check_disk(target: Path, missing: int) -> None:
    """Refuse to start when the disk cannot hold what this and the other running downloads still bring."""
    own = _note_path(target.with_name(target.name + ".part"))
    others = (note for note in target.parent.parent.glob("*/*.part.json") if note != own)
    missing += sum(_still_to_come(note) for note in others)
    free = shutil.disk_usage(target.parent).free
    if free < missing + DISK_RESERVE:
        raise InputError(
            f"Not enough free disk for '{target}'",
            [
                f"needed {(missing + DISK_RESERVE) / 1e6:.0f} MB (running downloads included), free {free / 1e6:.0f} MB"
            ],
            "free some space, or set `data_dir` to a larger disk",
        )


def _still_to_come(note: Path) -> int:
    """Bytes that another running download will still write."""
    part = note.with_name(note.name.removesuffix(".json"))
    wanted = _read_record(note)
    if wanted is None or not is_held(_lock_path(part.with_name(part.name.removesuffix(".part")))):
        return 0
    return max(0, int(wanted["size"]) - (part.stat().st_size if part.exists() else 0))


def _verify_offline(archive: Archive, data_dir: str | Path, settings: DownloadSettings, folder: Path) -> Path:
    path = folder / archive.name
    if not path.is_file():
        raise InputError(
            f"Archive '{archive.name}' of data set '{archive.dataset}' is not in the offline folder '{folder}'",
            remedy=f"put it there (Zenodo record {archive.zenodo_record}), or set `offline: null` to download it",
        )
    published = _published_offline(archive, settings, folder)
    found = {"size": path.stat().st_size, "md5": file_digest(path, "md5")}
    if found != {"size": published.size, "md5": published.md5}:
        raise InputError(
            f"'{path}' is not the published file {published.url}",
            [
                f"size expected {published.size}, found {found['size']}",
                f"md5 expected {published.md5}, found {found['md5']}",
            ],
            "copy or fetch it again",
        )
    return _write_record(archive, data_dir, path, published)


def _published_offline(archive: Archive, settings: DownloadSettings, folder: Path) -> PublishedFile:
    """Size and md5 from a record beside the archive, a saved answer of the API, or the API itself."""
    known = _read_record(folder / f"{archive.name}.json")
    if known is not None and {"url", "size", "md5"} <= known.keys():
        return PublishedFile(known["url"], known["size"], known["md5"], known.get("licence"))
    answer = folder / f"{archive.zenodo_record}.json"
    if answer.is_file():
        return from_saved_answer(answer, archive, settings)
    with open_session() as session:
        return with_retries(
            lambda: ask_zenodo(session, archive, settings),
            settings,
            f"The md5 of offline archive {archive.name}",
            f"on a machine with a connection save {record_address(archive, settings)} as '{answer}'",
        )


def _write_record(archive: Archive, data_dir: str | Path, path: Path, published: PublishedFile) -> Path:
    record = record_path(data_dir, archive)
    content = {
        "archive": archive.name,
        "zenodo_record": archive.zenodo_record,
        "path": str(path),
        "url": published.url,
        "size": published.size,
        "md5": published.md5,
        "licence": published.licence,
    }
    write_text(record, json.dumps(content, indent=1) + "\n")
    return record


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _matches(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether there is a file of the wanted size and md5."""
    if not path.is_file() or path.stat().st_size != wanted["size"]:
        return False
    return file_digest(path, "md5") == wanted["md5"]


def _feed(digest: Any, path: Path) -> None:
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _lock_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")
