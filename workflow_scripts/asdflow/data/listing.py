"""What lies in a folder of recordings, told from names, sizes and times alone: cheap enough for planning a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from asdflow.errors import InputError

AUDIO_SUFFIXES = (".wav", ".flac")


def machine_folders(root: Path) -> list[str]:
    """Names of the machines under `root`: its visible sub-folders, sorted.

    Raises InputError when the folder is missing or holds no machine.
    """
    if not root.is_dir():
        raise InputError(
            f"The folder of recordings '{root}' does not exist",
            remedy="set `path` of the data set to the folder that holds one sub-folder per machine",
        )
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(
            f"The folder of recordings '{root}' holds no machine",
            remedy="lay it out as <path>/<machine>/train/*.wav and <path>/<machine>/test/*.wav",
        )
    return names


def listing_digest(root: Path, machine: str | None = None) -> str:
    """Digest of the names, sizes and modification times of the recordings and attribute tables of one machine, or of all.

    Adding, removing or replacing a recording changes it; nothing is opened.
    """
    digest = hashlib.sha256()
    for name, size, time in sorted(_files(root / machine if machine else root, "")):
        digest.update(f"{name}\0{size}\0{time}\0".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    if not folder.is_dir():
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.name.lower().endswith((*AUDIO_SUFFIXES, ".csv")):
            state = entry.stat()
            yield f"{prefix}{entry.name}", state.st_size, state.st_mtime_ns
