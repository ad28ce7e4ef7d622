"""Tasks of a SLURM job array: each becomes its own job at once, and an array that could never be submitted is refused.

Both mend the submission plugin (snakemake-executor-plugin-slurm 2.8.0, its issues 447 and 473). It starts every task as the
array's first job, which then calls the task's own: when such a task fails, the *first* job's results are removed. And of jobs
of one rule that are ready together it submits all or none; those it leaves out are waited for without end.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence

OPTION = "--slurm-jobstep-array-execs="
"""Of a task's command: task number -> command of its own job, for every task but the first."""


def own_command(command: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """What a process started with `command` should be instead; None unless it is the start of an array's task."""
    payloads = [argument.removeprefix(OPTION) for argument in command if argument.startswith(OPTION)]
    task = environment.get("SLURM_ARRAY_TASK_ID")
    if not payloads or task is None:
        return None
    own = json.loads(base64.b64decode(payloads[-1])).get(task)
    if own is None:  # the first task, whose own job the command names
        return [argument for argument in command if not argument.startswith(OPTION)]
    return ["/bin/sh", "-c", zlib.decompress(bytes.fromhex(own)).decode()]


def become_own_job(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Replace this process by its own job where it is the start of an array's task; otherwise nothing happens."""
    own = own_command(command, environment)
    if own is not None:
        os.execvpe(own[0], own, dict(environment))


def limits_in_the_way(jobs: int, limits: Mapping[str, int | None]) -> list[str]:
    """The limits (setting -> value, None for no limit) below the number of jobs that could be ready together, in words."""
    return [
        f"{setting}: {value}, and {jobs} submissions could be ready at once"
        for setting, value in limits.items()
        if value is not None and value < jobs
    ]
