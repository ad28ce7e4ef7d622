"""Fit a system's back end on normal training clips and score the test clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.detection.score import score
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    score(
        clips=Path(smk.input.clips),
        embeddings=Path(smk.input.embeddings),
        settings=smk.params.cfg,
        seed=int(smk.wildcards.seed),
        output=Path(smk.output.scores).parent,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
