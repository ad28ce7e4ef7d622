"""One embedding per clip of a data set from one encoder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.job import run_stage
from asdflow.models.embed import embed

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    embed(
        Path(smk.input.weights).parent,
        [Path(path) for path in smk.input.features],
        output=Path(smk.output.embeddings),
        pooling=smk.params.cfg["pooling"],
        device=smk.config["device"],
        batch_size=smk.params.cfg["batch_size"],
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
