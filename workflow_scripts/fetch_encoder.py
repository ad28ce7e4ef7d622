"""Put an encoder where the workflow finds it: a published checkpoint, or random weights by seed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.job import run_stage
from asdflow.models.fetching import fetch_encoder

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    fetch_encoder(smk.params.cfg, Path(smk.output.weights).parent)


if __name__ == "__main__":
    run_stage(main, snakemake)
