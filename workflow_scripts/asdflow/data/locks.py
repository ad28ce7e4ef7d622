"""Locks between processes that vanish with their holder: one writer per file, and a limited number of downloads at once."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

POLL_S = 0.1


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path` (made if need be), waiting for whoever has it; the system frees it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def one_of(folder: Path, count: int) -> Iterator[int]:
    """Hold one of `count` places in `folder`, waiting until one is free; yields its number."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        handles = [
            stack.enter_context((folder / f".place_{number}.lock").open("a"))
            for number in range(max(1, count))
        ]
        number = _take_first_free(handles)
        while number is None:
            time.sleep(POLL_S)
            number = _take_first_free(handles)
        yield number


def is_held(path: Path) -> bool:
    """Whether another holder has the lock of `path` just now."""
    if not path.exists():
        return False
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sweep(folder: Path, name: str) -> None:
    """Remove the temporary files that a killed writer of `<name>*` left in `folder`; only for whoever holds the lock of `name`."""
    for litter in folder.glob(f".{glob.escape(name)}*.part"):
        litter.unlink(missing_ok=True)


def _take_first_free(handles: Sequence[IO[str]]) -> int | None:
    for number, handle in enumerate(handles):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
    return None
