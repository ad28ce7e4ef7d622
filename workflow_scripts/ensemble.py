"""Join the scores of several systems into those of one ensemble."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.detection.ensemble import ensemble
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    ensemble(
        Path(smk.input.clips),
        members=[Path(path).parent for path in smk.input.scores],
        decision=smk.params.cfg["decision"],
        output=Path(smk.output.scores).parent,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
