"""Make the synthetic demo recordings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.synthetic import synthesize
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    synthesize(
        target=Path(smk.output.recordings),
        hidden_attributes=Path(smk.output.hidden_attributes),
        settings=smk.params.cfg,
        seed=smk.params.cfg["seed"],
        workers=smk.threads,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
