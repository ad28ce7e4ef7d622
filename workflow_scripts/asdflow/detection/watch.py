"""Follow a folder into which a recorder writes: each recording is scored once, over restarts and kills."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from asdflow.data.audio import inspect_audio
from asdflow.data.listing import AUDIO_SUFFIXES
from asdflow.detection.detect import (
    DEFAULT_OPTIONS,
    Options,
    Recording,
    Scored,
    check_output,
    drift_warnings,
    score_recording,
    summary_line,
    write_results,
)
from asdflow.detection.system import System
from asdflow.errors import InputError

log = logging.getLogger(__name__)

FORMAT, VERSION = "asdflow-watch", 1
WRITE_SECONDS = 10.0
"""While many recordings wait, the results are written anew so often; the journal has them at once."""
RECENT = 50
"""Recordings that drift warnings are taken from."""


@dataclass(frozen=True)
class Patience:
    """Seconds: between looks at the folder; that a file must have stood still; and that an unreadable one may still grow."""

    poll: float = 1.0
    settle: float = 2.0
    unreadable: float = 60.0


DEFAULT_PATIENCE = Patience()


class Journal:
    """What has been scored, one JSON line a recording, on disk before anything else is done with it.

    A line torn by a kill in the middle of writing is cut off when the journal is opened; its recording is then scored again, as
    no result of it was ever kept. One process at a time holds the journal.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(
                f"{path} is in use: another process is watching", remedy="stop it, or give another --output"
            ) from error
        self.rows: dict[str, Recording] = {}
        self.sizes: dict[str, int] = {}
        self._read({"format": FORMAT, "version": VERSION, **identity})

    def _read(self, head: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        lines = whole.decode("utf-8").splitlines()
        if not lines:
            self._append(head)
            return
        if json.loads(lines[0]) != head:
            raise InputError(
                f"{self.path} belongs to another system, machine or folder",
                [f"it says {lines[0]}"],
                "give another --output, or remove the journal to score everything again",
            )
        for line in lines[1:]:
            entry = json.loads(line)
            self.sizes[entry["name"]] = entry["size"]
            self.rows[entry["name"]] = Recording(**entry["row"])

    def add(self, name: str, size: int, row: Recording) -> None:
        """Keep a recording's result; it is on disk when this returns."""
        self._append({"name": name, "size": size, "row": row.to_dict()})
        self.rows[name], self.sizes[name] = row, size

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the journal."""
        self._file.close()


class Folder:
    """The recordings of a folder that have come to rest and were not scored yet."""

    def __init__(
        self, directory: Path, patience: Patience, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory, self.patience, self.clock = Path(directory), patience, clock
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        self._grown: set[str] = set()

    def ready(self, sizes: dict[str, int], audio: dict[str, Any]) -> Iterator[tuple[str, Path, int]]:
        """Yield (name, path, size) of each recording that stands still and is not among `sizes` (those already scored)."""
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            if path.suffix.lower() not in AUDIO_SUFFIXES or path.name.startswith("."):
                continue
            try:
                status = path.stat()
            except OSError:  # it went away between the listing and the look
                continue
            if name in sizes:
                self._warn_grown(name, status.st_size, sizes[name])
            elif self._stands_still(name, (status.st_size, status.st_mtime_ns)) and self._complete(
                name, path, audio
            ):
                yield name, path, status.st_size

    def _stands_still(self, name: str, state: tuple[int, int]) -> bool:
        now = self.clock()
        before, since = self._seen.get(name, (None, now))
        if before != state:
            self._seen[name] = (state, now)
            return False
        return now - since >= self.patience.settle

    def _complete(self, name: str, path: Path, audio: dict[str, Any]) -> bool:
        """Whether a file can be read, or has been unreadable for so long that it will not become better."""
        if not isinstance(inspect_audio(path, {**audio, "minimum_seconds": 0.0}), str):
            return True
        return self.clock() - self._seen[name][1] >= self.patience.unreadable

    def _warn_grown(self, name: str, size: int, scored: int) -> None:
        if size != scored and name not in self._grown:
            self._grown.add(name)
            log.warning(
                "%s changed after it was scored; each recording is scored once, write new ones under new names",
                name,
            )


def watch(
    model_dir: Path,
    directory: Path,
    output: Path,
    machine: str | None = None,
    section: str | None = None,
    options: Options = DEFAULT_OPTIONS,
    patience: Patience = DEFAULT_PATIENCE,
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> list[Recording]:
    """Score every recording that appears in a folder, once, until `stop` says so.

    Parameters
    ----------
    model_dir, machine, section, options, device : as for `detect`.
    directory : the folder the recorder writes to; sub-folders count. Files are only read.
    output : CSV or Parquet of all results so far, written anew when recordings came in. Beside it lies the journal
        `<output>.journal.jsonl`, from which a later call goes on.
    patience : when a file counts as complete.
    stop : asked between recordings and while waiting.

    Raises InputError for a wrong folder, machine or output, and for a journal of another system.
    """
    check_output(output)
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder", remedy="give the folder the recorder writes to")
    system = System(model_dir, machine, section, device)
    identity = {"system": system.digest, "machine": system.machine, "section": system.section}
    with _journal(Path(f"{output}.journal.jsonl"), identity) as journal:
        write_results(journal.rows.values(), output)
        log.info("Watching %s: %d recordings scored so far", directory, len(journal.rows))
        _follow(system, Folder(directory, patience), journal, output, options, stop)
        return list(journal.rows.values())


@contextmanager
def _journal(path: Path, identity: dict[str, Any]) -> Iterator[Journal]:
    journal = Journal(path, identity)
    try:
        yield journal
    finally:
        journal.close()


def _follow(
    system: System,
    folder: Folder,
    journal: Journal,
    output: Path,
    options: Options,
    stop: Callable[[], bool],
) -> None:
    recent: list[Scored] = []
    told: set[str] = set()
    kept = len(journal.rows)
    while not stop():
        written = time.monotonic()
        for name, path, size in folder.ready(journal.sizes, system.audio):
            scored = score_recording(system, path, options)
            if not path.is_file():  # taken away while it was read: it may come back whole
                continue
            journal.add(name, size, scored.row)
            log.info("%s", summary_line(scored.row))
            recent = [*recent, scored][-RECENT:]
            _warn(drift_warnings(system, recent), told)
            if stop():
                break
            if time.monotonic() - written > WRITE_SECONDS:
                write_results(journal.rows.values(), output)
                written = time.monotonic()
        if len(journal.rows) > kept:
            write_results(journal.rows.values(), output)
            kept = len(journal.rows)
        time.sleep(folder.patience.poll)


def _warn(warnings: list[str], told: set[str]) -> None:
    """Tell each kind of drift when it begins, and again only after it had gone."""
    kinds = {warning.split(":")[0]: warning for warning in warnings}
    for kind, warning in kinds.items():
        if kind not in told:
            log.warning(
                "Warning, the last recordings as a whole differ from the training clips - %s", warning
            )
    told.clear()
    told.update(kinds)
