"""Locks between processes that vanish with their holder: one writer per file, and a limited number of downloads at once.

Where a file system knows no locks (some cluster mounts) work goes on without them: Snakemake runs one job per file anyhow.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

POLL_S = 0.1
NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path` (made if need be), waiting for whoever has it; the system frees it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        _lock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def one_of(folder: Path, count: int) -> Iterator[int]:
    """Hold one of `count` places in `folder`, waiting until one is free; yields its number."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        handles = [
            stack.enter_context((folder / f".place_{number}.lock").open("a")) for number in range(count)
        ]
        number = _take_first_free(handles)
        while number is None:
            time.sleep(POLL_S)
            number = _take_first_free(handles)
        yield number


def take(path: Path) -> IO[str] | None:
    """Take the lock of the file `path` for as long as the returned handle is open; None when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a")
    if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
        return handle
    handle.close()
    return None


def is_held(path: Path) -> bool:
    """Whether another holder has the lock of `path` just now."""
    if not path.exists():
        return False
    with path.open("a") as handle:
        return not _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: Path, name: str) -> None:
    """Remove the temporary files that a killed writer of `<name>*` left in `folder`; only for whoever holds the lock of `name`."""
    for litter in folder.glob(f".{glob.escape(name)}*.part"):
        litter.unlink(missing_ok=True)


def _take_first_free(handles: Sequence[IO[str]]) -> int | None:
    return next((n for n, handle in enumerate(handles) if _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)), None)


def _lock(handle: IO[str], operation: int) -> bool:
    """Whether the lock was had; True as well where the file system has none to give."""
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in NO_LOCKS_HERE:
            raise
        log.warning("%s: this file system has no locks; do not run two workflows on it at once", handle.name)
    return True
