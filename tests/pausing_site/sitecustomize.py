"""On PYTHONPATH of a Snakemake under test: its trainings pause after chosen updates, each once, until a signal comes.

ASDFLOW_PAUSES is a folder and, as JSON, updates by the end of the folder their checkpoints lie in (see tests/pausing.py). Snakemake
looks after jobs on a cluster every second, instead of ever more seldom up to every three minutes.
"""

import asyncio
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_folder, _, _text = os.environ.get("ASDFLOW_PAUSES", ":{}").partition(":")
_updates = json.loads(_text)
LONGEST_S = 300


def _pause(module: Any) -> None:
    checkpoints = module.Checkpoints
    go_on = checkpoints.after_step

    def after_step(self, step, state):
        for part, updates in _updates.items():
            mark = Path(_folder, part, str(step))
            if str(self.directory).endswith(part) and step in updates and not mark.exists():
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.with_suffix(".new").write_text(_name())
                mark.with_suffix(".new").rename(mark)
                until = time.monotonic() + LONGEST_S
                while self.signal is None and time.monotonic() < until:
                    time.sleep(0.02)
        go_on(self, step, state)

    checkpoints.after_step = after_step


def _name() -> str:
    """SLURM's number of this job, or the process's."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if task:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    return os.environ.get("SLURM_JOB_ID") or str(os.getpid())


def _look_often(module: Any) -> None:
    async def sleep(self):
        await asyncio.sleep(1)

    module.RemoteExecutor.sleep = sleep


_CHANGES = {
    "asdflow.training.checkpoint": _pause,
    "snakemake_interface_executor_plugins.executors.remote": _look_often,
}


class _Finder:
    """Changes modules as they are loaded."""

    def find_spec(self, name, path=None, target=None):
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path) if name in _CHANGES else None
        if spec is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), _CHANGES[name](module))
        return spec


sys.meta_path.insert(0, _Finder())
