"""Who works on a results folder: one run at a time, and the jobs it started, which a killed run leaves behind."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

from asdflow.errors import InputError
from asdflow.locks import POLL_S, is_held, take

log = logging.getLogger(__name__)

RUN, JOBS = ".running.lock", ".jobs"
PATIENCE_S = 300.0
"""So long a job of a killed run may take to end, a training to save its state, before it is killed too."""


def enter(results: Path) -> tuple[IO[str], str]:
    """Begin a run: its lock, held until the handle is closed, and what there is to say of an earlier run that was killed.

    Jobs that outlived their run are told to end (SIGTERM: training saves its state) and waited for. Raises InputError where another
    run has the folder, or jobs of an earlier one still work on other hosts.
    """
    lock = take(results / RUN)
    holder = _note(results / RUN)
    if lock is None:
        raise InputError(
            f"Another run is writing to '{results}'",
            [describe(holder)],
            "wait for it, or give this one a folder of its own with --config results_dir=DIR",
        )
    try:
        ended = _end_left_jobs(results / JOBS)
    except InputError:
        lock.close()
        raise
    _write_note(lock, "run")
    if not holder:
        return lock, ""
    lines = [
        f"The last run on '{results}' ended without a word, as after kill -9 or a power cut: {describe(holder)}.",
        *(f"A job of it was still at work and has been ended: {describe(job)}." for job in ended),
        "What it finished stays; what it had begun is made again, training from its last checkpoint.",
    ]
    return lock, "\n".join(lines)


def pass_sigterm_on(lock: IO[str], results: Path) -> None:
    """From now on a SIGTERM to this process reaches the jobs of its run on this machine; those that SLURM runs go on.

    Snakemake alone would begin no more jobs and wait for the running ones, a training for days. A job that is told to end saves
    what it can go on from; one that is just starting reads in the lock that the run is ending.
    """
    earlier = signal.getsignal(signal.SIGTERM)

    def tell_jobs(number: int, frame: FrameType | None) -> None:
        if not lock.closed:  # after the run's end jobs there are another run's
            os.write(
                2, b"SIGTERM: the jobs on this machine are told to end; training saves a checkpoint first.\n"
            )
            _write_note(lock, "run", ending=True)
            for path in (results / JOBS).glob("*.lock"):
                note = _note(path)
                if is_held(path) and _is_here(note):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(note["process"], number)
        if callable(earlier):  # Snakemake's, which waits for a lock
            earlier(number, frame)

    signal.signal(signal.SIGTERM, tell_jobs)


def leave(lock: IO[str]) -> None:
    """End a run in good order."""
    lock.truncate(0)
    lock.close()


@contextlib.contextmanager
def job(results: Path, name: str) -> Iterator[None]:
    """Note while a job runs, for its run and for one to come, that it does. Raises SystemExit where its run is ending."""
    path = results / JOBS / f"{socket.gethostname()}-{os.getpid()}.lock"
    lock = take(path)
    if lock is None:  # a forked copy of this very process
        yield
        return
    try:
        _write_note(lock, name)
        run = _note(results / RUN)
        if run.get("ending") and _is_here(run):
            log.warning("Not begun: the run is ending")
            raise SystemExit(128 + signal.SIGTERM)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def describe(note: dict[str, Any]) -> str:
    """A holder in words: what, process, host, since when."""
    if not note:
        return "it has not said who it is"
    text = f"{note['what']}, process {note['process']} on {note['host']}, since {note['since']}"
    return text + (f", SLURM job {note['slurm']}" if note["slurm"] else "")


def _write_note(lock: IO[str], what: str, **more: Any) -> None:
    note = {
        "what": what, "process": os.getpid(), "parent": os.getppid(), "host": socket.gethostname(),
        "since": datetime.now().isoformat(" ", "seconds"), "slurm": os.environ.get("SLURM_JOB_ID", ""), **more,
    }  # fmt: skip
    lock.truncate(0)
    lock.write(json.dumps(note))
    lock.flush()


def _note(path: Path) -> dict[str, Any]:
    """What the holder of a lock, also one that was killed, wrote into it; empty after an orderly end."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _is_here(note: dict[str, Any]) -> bool:
    """Whether the writer of a note runs on this machine and, under SLURM, within this very job."""
    here = (socket.gethostname(), os.environ.get("SLURM_JOB_ID", ""))
    return (note.get("host"), note.get("slurm")) == here


def _end_left_jobs(folder: Path) -> list[dict[str, Any]]:
    """End the jobs of an earlier run, or wait for those that only a cluster can end; returns who they were."""
    held = {path: _note(path) for path in sorted(folder.glob("*.lock")) if is_held(path)}
    for path, note in held.items():
        log.warning("Waiting for a job of an earlier run to end: %s", describe(note))
        if note.get("host") == socket.gethostname() and not note["slurm"]:
            _end(path, note)
    last = time.monotonic() + PATIENCE_S
    while (left := [note for path, note in held.items() if is_held(path)]) and time.monotonic() < last:
        time.sleep(POLL_S)
    if left:
        raise InputError(
            "jobs of an earlier run are still at work",
            map(describe, left),
            "wait for them, or end them (scancel)",
        )
    for path in folder.glob("*.lock"):
        path.unlink(missing_ok=True)
    return list(held.values())


def _end(path: Path, note: dict[str, Any]) -> None:
    """Have the holder of the lock `path` end, and wait for it and for the part of Snakemake that started it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if is_held(path):  # so the process is the one that wrote the note
            os.kill(note["process"], number)
        last = time.monotonic() + PATIENCE_S
        while (is_held(path) or _waits_for_its_job(note["parent"])) and time.monotonic() < last:
            time.sleep(POLL_S)


def _waits_for_its_job(process: int) -> bool:
    """Whether Snakemake's part that started a job is still there: it removes a failed job's files."""
    try:
        return "snakemake" in Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
