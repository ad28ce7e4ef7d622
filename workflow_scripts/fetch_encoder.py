"""Put an encoder where the workflow finds it: a published checkpoint, or random weights by seed."""

from pathlib import Path

from asdflow.job import run_stage
from asdflow.models.loading import fetch_encoder


def main(smk):
    fetch_encoder(smk.params.cfg, Path(smk.output.weights).parent)


if __name__ == "__main__":
    run_stage(main, snakemake)  # noqa: F821
