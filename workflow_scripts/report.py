"""Build the report and the record of the run it shows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.job import run_stage
from asdflow.report.build import build_report
from asdflow.report.workflow import workflow_inputs

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    output = Path(smk.output.page)
    inputs = workflow_inputs(
        smk.params.cfg, results=output.parents[1], root=Path(smk.scriptdir).parent, folder=output.parent
    )
    build_report(inputs, output, exports=output.parent)


if __name__ == "__main__":
    run_stage(main, snakemake)
