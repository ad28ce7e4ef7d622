"""Write the challenge's submission files of one run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.detection.submission import write_submission
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    write_submission(
        Path(smk.input.clips),
        Path(smk.input.scores),
        smk.params.cfg["year"],
        Path(smk.output.submission),
        system=smk.wildcards.system,
        description=smk.params.cfg["description"],
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
