"""What `asdflow detect` does with its arguments: one pass over recordings, or following a folder until it is stopped."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from asdflow.detection.detect import Options, Recording, detect, exit_code
from asdflow.detection.watch import Patience, watch
from asdflow.device import pick_device
from asdflow.errors import InputError

log = logging.getLogger(__name__)


def run_detect(
    model_dir: Path,
    recordings: Sequence[Path],
    machine: str | None,
    section: str | None,
    output: Path | None,
    plot: Path | None,
    windows: Path | None,
    options: Options,
    device: str,
) -> int:
    """Score recordings once; returns the exit code. Raises InputError without recordings."""
    if not recordings:
        raise InputError("no recordings were given", remedy="give WAV or FLAC files, folders, or --watch DIR")
    rows = detect(
        model_dir, recordings, machine, section, output, plot, windows, options, pick_device(device).type
    )
    return _conclude(rows)


def run_watch(
    model_dir: Path,
    recordings: Sequence[Path],
    directory: Path,
    machine: str | None,
    section: str | None,
    output: Path | None,
    options: Options,
    settle: float,
    device: str,
) -> int:
    """Follow a folder until SIGINT or SIGTERM; the recording in hand is finished first. Returns the exit code."""
    problems = ["recordings are given as well as --watch"] if recordings else []
    problems += ["--output is missing; results and the journal are kept there"] if output is None else []
    if problems or output is None:
        raise InputError("--watch cannot be used like this", problems, "see asdflow detect --help")
    stopped = False

    def stop(signal_number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    patience = Patience(poll=min(1.0, max(settle / 2, 0.05)), settle=settle)
    kind = pick_device(device).type
    rows = watch(model_dir, directory, output, machine, section, options, patience, kind, lambda: stopped)
    return _conclude(rows)


def _conclude(rows: Sequence[Recording]) -> int:
    anomalous, refused = sum(row.decision == 1 for row in rows), sum(bool(row.problem) for row in rows)
    log.info("%d recordings: %d anomalous, %d refused", len(rows), anomalous, refused)
    return exit_code(rows)
