"""Tell what the run would do and why: which key, code file, recording or input differs from what was recorded."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.job import run_stage
from asdflow.why import explain
from asdflow_plan.plan import planned_jobs, planned_workflow

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    with planned_workflow(
        Path(smk.params.snakefile),
        Path.cwd(),
        [Path(path) for path in smk.params.configfiles],
        smk.params.config,
    ) as workflow:
        print(explain(planned_jobs(workflow)), flush=True)


if __name__ == "__main__":
    run_stage(main, snakemake)
