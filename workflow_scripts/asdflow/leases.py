"""Which of a workstation's GPUs a job may use: each job holds its own, by file locks that vanish with their holder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from asdflow import locks

log = logging.getLogger(__name__)

FOLDER = Path(f"/tmp/asdflow-gpus-{os.getuid()}")
"""One file per GPU: all runs of one user on one machine take their GPUs from here."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.5


def machine_gpus() -> list[str]:
    """What CUDA may show to this process: the entries of CUDA_VISIBLE_DEVICES, else one number per NVIDIA device file."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name]
    files = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(number) for number in range(len(files))]


@contextlib.contextmanager
def leased_gpus(
    count: int, gpus: Sequence[str] | None = None, folder: Path = FOLDER
) -> Iterator[tuple[str, ...]]:
    """Hold `count` GPUs for as long as the context lasts, waiting until so many are free; CUDA sees these alone.

    Parameters
    ----------
    count : how many; 0 changes nothing.
    gpus : the names to choose from, as in CUDA_VISIBLE_DEVICES; None asks the machine.
    folder : where the locks lie.

    Must be entered before CUDA is first used. Nothing is leased on a machine with one GPU, nor within a SLURM job:
    SLURM has shown the job its own GPUs alone.
    """
    names = list(machine_gpus() if gpus is None else gpus)
    if count == 0 or len(names) < max(count, 2) or "SLURM_JOB_ID" in os.environ:
        yield ()
        return
    with contextlib.ExitStack() as held:
        chosen = _take(count, names, folder, held)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(chosen)
        log.info("Using GPU %s of %d", ", ".join(chosen), len(names))
        try:
            yield tuple(chosen)
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _take(count: int, names: Sequence[str], folder: Path, held: contextlib.ExitStack) -> list[str]:
    """Lock the first `count` GPUs that are or become free, and put the locks into `held`."""
    taken: dict[str, IO[str]] = {}
    with locks.exclusive(
        folder / ".queue.lock"
    ):  # one gathers at a time: two that want two each never hold one each
        waiting = False
        while True:
            for name in names:
                if name not in taken and len(taken) < count:
                    lock = locks.take(folder / f"{name.replace('/', '_')}.lock")
                    if lock is not None:
                        taken[name] = held.enter_context(lock)
            if len(taken) == count:
                return sorted(taken, key=list(names).index)
            if not waiting:
                log.info(
                    "Waiting for a free GPU: other jobs hold %d of %d", len(names) - len(taken), len(names)
                )
            waiting = True
            time.sleep(POLL_S)
