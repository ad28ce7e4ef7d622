"""Build the report and the record of the run it shows."""

from pathlib import Path

from asdflow.job import run_stage
from asdflow.report.build import build_report
from asdflow.report.workflow import workflow_inputs


def main(smk):
    output = Path(smk.output.page)
    inputs = workflow_inputs(
        smk.params.cfg,
        results=Path(smk.params.results),
        benchmarks=Path(smk.params.benchmarks),
        root=Path(smk.params.root),
        folder=output.parent,
    )
    build_report(inputs, output)


if __name__ == "__main__":
    run_stage(main, snakemake)  # noqa: F821
