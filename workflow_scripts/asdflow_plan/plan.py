"""What a run would do, asked of Snakemake itself without starting anything; the only code of ours that imports Snakemake.

Beside the package because that never imports Snakemake. Pinned to the version in requirements.txt: the parts of it that know
which jobs need to run, and what was recorded of earlier ones, are no public interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asdflow.why import PlannedJob
from snakemake.api import SnakemakeApi
from snakemake.settings.enums import Quietness, RerunTrigger
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

TRIGGERS = frozenset({RerunTrigger.MTIME, RerunTrigger.PARAMS, RerunTrigger.INPUT, RerunTrigger.SOFTWARE_ENV})
"""As in profiles/."""


@contextlib.contextmanager
def planned_workflow(
    snakefile: Path,
    directory: Path,
    configfiles: Sequence[Path],
    config: Mapping[str, Any] | None = None,
    targets: Sequence[str] = (),
) -> Iterator[Any]:
    """Snakemake's workflow object with its graph of jobs.

    Parameters
    ----------
    snakefile : the Snakefile. directory : working directory of the run.
    configfiles, config : what `--configfile` and `--config` name. targets : none takes the default target.
    """
    with SnakemakeApi(OutputSettings(quiet=frozenset({Quietness.ALL}))) as api:
        opened = api.workflow(
            ResourceSettings(cores=1),
            ConfigSettings(configfiles=tuple(configfiles), config=dict(config or {})),
            snakefile=Path(snakefile),
            workdir=Path(directory),
        )
        opened.dag(DAGSettings(targets=frozenset(targets), rerun_triggers=TRIGGERS, force_incomplete=True))
        workflow = opened._workflow
        workflow._prepare_dag(forceall=False, ignore_incomplete=False, lock_warn_only=True)
        workflow._build_dag()
        yield workflow


def planned_jobs(workflow: Any) -> list[PlannedJob]:
    """The jobs that `snakemake -n` would list, in the order of their dependencies, and what Snakemake knows of each."""
    dag = workflow.dag
    needed = set(dag.needrun_jobs())
    ordered = [job for level in dag.toposorted() for job in sorted(level, key=_name) if job in needed]
    return [_planned(job, dag.reason(job), workflow) for job in ordered if job.output]


def _name(job: Any) -> tuple[str, list[str]]:
    return job.rule.name, [str(value) for value in job.wildcards]


def _planned(job: Any, reason: Any, workflow: Any) -> PlannedJob:
    """A job of Snakemake's as plain content."""
    persistence = workflow.persistence
    records = [record for record in map(persistence.metadata, job.output) if record is not None]
    made_now = {str(file) for file in reason.updated_input_run}
    return PlannedJob(
        rule=job.rule.name,
        wildcards={str(key): str(value) for key, value in job.wildcards.items()},
        output=[str(file) for file in job.output],
        missing=[str(file) for file in job.output if not Path(file).exists()],
        newer=sorted({str(file) for file in reason.updated_input} - made_now),
        made_by_others=sorted(made_now),
        interrupted=bool(reason.forced),
        inputs=persistence._input(job),
        params=persistence._params(job),
        recorded_inputs=records[0].input if records else None,
        recorded_params=records[0].params if records else None,
    )
