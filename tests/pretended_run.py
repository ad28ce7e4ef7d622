"""A results folder that Snakemake takes for finished: empty files in place of results, with the records a real run leaves."""

from pathlib import Path

from asdflow_plan.plan import planned_workflow
from snakemake.settings.types import ExecutionSettings

from tests.conftest import REPOSITORY


def pretend_run(directory: Path, configfiles, config=None, snakefile: Path = REPOSITORY / "Snakefile") -> int:
    """Make every output that is missing or out of date as an empty file and record it; returns the number of jobs."""
    count = 0
    with planned_workflow(snakefile, directory, configfiles, config) as workflow:
        workflow.execution_settings = ExecutionSettings()
        needed = set(workflow.dag.needrun_jobs())
        for level in workflow.dag.toposorted():
            for job in sorted(needed & set(level), key=str):
                for file in job.output:
                    file.touch_or_create()
                workflow.async_run(workflow.persistence.finished(job))
                count += bool(job.output)
    return count
