"""Checkpoints of a training run: written whole, verified, refused when they belong to another run; signals end a run softly."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from asdflow.files import file_digest, full_disk_in_words, temporary_beside

log = logging.getLogger(__name__)

FORMAT = "asdflow-checkpoint-1"
KEPT = 2
"""So many checkpoints stay on disk: when the newest is damaged, the one before it is taken."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT_AFTER_S = 2.0
"""Signals that follow sooner are the same wish: schedulers tell every process of a job, and these tell each other."""


class Checkpoints:
    """The checkpoints of one run in `directory`, and the orderly end when a signal comes.

    Parameters
    ----------
    directory : where they lie; nothing else should.
    identity : plain content that tells this run from any other (configuration, code digest, data). A checkpoint with
        another identity is passed over with a warning that names what differs, and stays until this run has ended.
    every_minutes : time between two checkpoints.

    As a context manager it catches SIGTERM and SIGINT: `after_step` then saves and ends the process with exit code
    128 + signal. Files are `step_<n>-<identity>-<digest>.pt`: tensors and plain containers, read with `weights_only=True`,
    the first 8 digits of the identity's SHA-256 and the first 16 of the file's own in the name.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any], every_minutes: float) -> None:
        self.directory, self.identity = Path(directory), dict(identity)
        self.every_seconds = 60.0 * every_minutes
        text = json.dumps(self.identity, sort_keys=True, default=str)
        self.identity_digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.signal: int | None = None
        self._signalled = 0.0
        self._last = time.monotonic()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Checkpoints:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._signalled = number, time.monotonic()
        elif time.monotonic() - self._signalled > REPEAT_AFTER_S:
            raise KeyboardInterrupt  # asked twice: leave at once

    @property
    def due(self) -> bool:
        """Whether it is time to save: the minutes are over or a signal has come."""
        return self.signal is not None or time.monotonic() - self._last >= self.every_seconds

    def after_step(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save `state()` if due; raise SystemExit if a signal has come. `step` counts the updates made so far."""
        if self.due:
            self.save(step, state())
            self.stop_if_asked(step)

    def stop_if_asked(self, step: int) -> None:
        """End the process with 128 + signal, as a shell reports it, if a signal has come."""
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            log.warning("Stopped by %s after update %d; the next start continues from here", name, step)
            raise SystemExit(128 + self.signal)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically, then remove all but this run's newest ones. Returns its path."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step_{step:09d}"
        temporary = temporary_beside(path)
        try:
            self._write(temporary, step, state, path)
            path = self.directory / f"{path.name}-{self.identity_digest}-{file_digest(temporary)[:16]}.pt"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for old in self._files(self.identity_digest)[KEPT:]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        return path

    def _write(self, temporary: Path, step: int, state: Mapping[str, Any], path: Path) -> None:
        with full_disk_in_words(path, temporary):
            content = {"format": FORMAT, "identity": self.identity, "step": step, "state": dict(state)}
            with temporary.open("wb") as handle:
                torch.save(content, handle)
                handle.flush()
                os.fsync(handle.fileno())

    def load(self) -> dict[str, Any] | None:
        """The state of the newest sound checkpoint of this run, or None (then the run starts from the beginning).

        Damaged checkpoints and those of another configuration are named in a warning and passed over.
        """
        for path in self._files():
            problem, content = _read(path)
            if content is not None:
                differences = describe_differences(content["identity"], self.identity)
                if not differences:
                    log.info("Continuing after update %d from %s", content["step"], path)
                    state: dict[str, Any] = content["state"]
                    return state
                problem = f"it belongs to another configuration ({'; '.join(differences)})"
            log.warning("Checkpoint %s refused: %s", path, problem)
        if self.directory.is_dir() and any(self.directory.iterdir()):
            log.warning("No usable checkpoint in %s: starting from the beginning", self.directory)
        return None

    def clear(self) -> None:
        """Remove all checkpoints, other configurations' too: the run has ended."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self, identity: str = "*") -> list[Path]:
        """Checkpoints, newest first: by update, then by time of writing."""
        files = list(self.directory.glob(f"step_*-{identity}-*.pt"))
        return sorted(
            files, key=lambda path: (path.name.split("-")[0], path.stat().st_mtime_ns), reverse=True
        )


def _read(path: Path) -> tuple[str, dict[str, Any] | None]:
    """What is wrong with a checkpoint, and its content if nothing is."""
    if file_digest(path)[:16] != path.stem.split("-")[2]:
        return "its bytes do not fit the checksum in its name: it is damaged", None
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content.get("format") != FORMAT:
        return f"its format is {content.get('format')!r}, this program reads {FORMAT!r}", None
    return "", content


def describe_differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """Name every entry in which two nested plain structures differ: 'settings.masks: 8, now 16'."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        found = []
        for key in sorted({*theirs, *ours}, key=str):
            name = f"{where}.{key}" if where else str(key)
            found += describe_differences(theirs.get(key), ours.get(key), name)
        return found
    return [] if theirs == ours else [f"{where}: {theirs!r}, now {ours!r}"]
