"""Files that are whole or not there: atomic writing, a full disk said in words, litter of killed writers, digests and checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asdflow.errors import InputError

FULL_DISK = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process may write",
}
PROBE_BYTES = 1 << 16
HOST = re.sub(r"[^\w-]", "_", socket.gethostname())[:40]
LITTER = re.compile(rf"\..+\.{re.escape(HOST)}-(\d+)\.part")
CHECKSUM = "checksum"
_swept: set[Path] = set()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on failure remove it.

    A reader sees the old file or the new one, never a part of it, whatever kills the writer. Raises InputError on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with full_disk_in_words(path, temporary):
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name for what is to become `path`, which tells its writer: `.<name>.<host>-<process>.part`.

    What dead writers of this host left in the folder is removed, once per process and folder.
    """
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep_dead_writers(path.parent)
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}.part")


def sweep_dead_writers(folder: Path) -> None:
    """Remove temporary files in `folder` whose writers, processes of this host, no longer live; others' stay."""
    for litter in folder.glob(".*.part"):
        match = LITTER.fullmatch(litter.name)
        if match and not _lives(int(match[1])):
            litter.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def full_disk_in_words(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn a write to `path` that failed for want of space, in whatever library, into an InputError.

    `temporary` is the file that was really written; where an error does not say its reason, it is tried whether that can grow.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _full_disk(error) or _cannot_grow(temporary or path)
        if number is None:
            raise
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"'{path}' could not be written: {FULL_DISK[number]}",
            [f"free in '{path.parent}': {free / 1e6:.1f} MB"],
            "make space, or set results_dir or data_dir to a larger disk, and run the same command again; what was finished stays",
        ) from error


def _full_disk(error: BaseException | None) -> int | None:
    """The number of the system's error that says that a disk is full, from an error or those that led to it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _cannot_grow(path: Path) -> int | None:
    try:
        with path.open("ab") as handle:  # some libraries have removed the file by now
            end = handle.tell()
            os.posix_fallocate(handle.fileno(), end, PROBE_BYTES)
            handle.truncate(end)
    except OSError as problem:
        return problem.errno if problem.errno in FULL_DISK else None
    return None


def require_space(path: Path, n_bytes: int) -> None:
    """Raise OSError unless a file of `n_bytes` can be written at `path` (which is left empty).

    For HDF5, whose library may crash the process when a disk becomes full while a file is open.
    """
    with path.open("wb") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, max(1, n_bytes))
        except OSError as problem:
            if problem.errno in FULL_DISK:
                raise
        handle.truncate(0)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping of plain values atomically, with a checksum of it under `checksum`."""
    plain = json.loads(json.dumps(dict(content), default=str))
    write_text(path, json.dumps({**plain, CHECKSUM: _json_digest(plain)}, indent=1, sort_keys=True) + "\n")


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Read a mapping, without its checksum; raises InputError where the file is missing or damaged.

    A file without checksum, made by another program, is taken as it is.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or missing", [str(error)], remedy) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a mapping", remedy=remedy)
    if CHECKSUM in content and content.pop(CHECKSUM) != _json_digest(content):
        raise InputError(
            f"{path} is damaged",
            ["its content does not fit its checksum (take that out after a change by hand)"],
            remedy,
        )
    return content


def _json_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
