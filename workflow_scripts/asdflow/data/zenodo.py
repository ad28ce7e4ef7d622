"""What Zenodo says about a published file: its address, size and md5, from the API or from a saved answer of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from asdflow.data.archives import Archive
from asdflow.data.transfer import DownloadSettings, InterruptedTransferError, read_small
from asdflow.errors import InputError

ANSWER_LIMIT = 64 << 20


@dataclass(frozen=True)
class PublishedFile:
    """A file as its record lists it: address, size in bytes, md5 in hexadecimal, and the record's licence where it states one."""

    url: str
    size: int
    md5: str
    licence: str | None = None


def record_address(archive: Archive, settings: DownloadSettings) -> str:
    """Address of the API's description of the archive's record."""
    return f"{settings.zenodo.rstrip('/')}/api/records/{archive.zenodo_record}"


def file_address(archive: Archive, settings: DownloadSettings) -> str:
    """Address of the archive itself."""
    return f"{settings.zenodo.rstrip('/')}/records/{archive.zenodo_record}/files/{quote(archive.name)}"


def ask_zenodo(session: requests.Session, archive: Archive, settings: DownloadSettings) -> PublishedFile:
    """Ask the API for the archive's size and md5.

    Raises InterruptedTransferError where asking again may help, InputError when the record does not list the archive.
    """
    address = record_address(archive, settings)
    body = read_small(session, address, settings, ANSWER_LIMIT)
    try:
        answer = json.loads(body)
    except ValueError as problem:
        raise InterruptedTransferError(f"{address}: the answer is not JSON ({problem})") from problem
    return from_answer(answer, archive, settings, address)


def from_saved_answer(path: Path, archive: Archive, settings: DownloadSettings) -> PublishedFile:
    """The same from an answer of the API that was saved as a file."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(
            f"'{path}' is not JSON", [str(problem)], f"save {record_address(archive, settings)} there again"
        ) from problem
    return from_answer(answer, archive, settings, str(path))


def from_answer(answer: Any, archive: Archive, settings: DownloadSettings, source: str) -> PublishedFile:
    """Find the archive in an answer of the API (`files`: key, size, checksum as `md5:...`)."""
    files = answer.get("files") if isinstance(answer, dict) else None
    listed = {file["key"]: file for file in files or [] if isinstance(file, dict) and "key" in file}
    if archive.name not in listed:
        raise InputError(
            f"Zenodo record {archive.zenodo_record} ({source}) does not list '{archive.name}'",
            [f"it lists: {name}" for name in sorted(listed)] or ["it lists no file"],
            f"mend archives.{archive.kind}.files.{archive.machine} in the configuration of '{archive.dataset}'",
        )
    file = listed[archive.name]
    algorithm, _, checksum = str(file.get("checksum", "")).partition(":")
    if algorithm != "md5" or len(checksum) != 32 or not isinstance(file.get("size"), int):
        raise InputError(
            f"Zenodo record {archive.zenodo_record} ({source}) gives no size and md5 for '{archive.name}'",
            [f"size {file.get('size')!r}, checksum {file.get('checksum')!r}"],
            "the layout of Zenodo's API may have changed: update asdflow",
        )
    licence = ((answer.get("metadata") or {}).get("license") or {}).get("id")
    return PublishedFile(file_address(archive, settings), file["size"], checksum.lower(), licence)
