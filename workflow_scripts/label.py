"""Give the training clips the labels a system is tuned on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.clustering import make_labels
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    names = smk.params.cfg["datasets"]
    make_labels(
        dict(zip(names, map(Path, smk.input.clips), strict=True)),
        embeddings=dict(zip(names, map(Path, smk.input.get("embeddings", [])), strict=False)),
        settings=smk.params.cfg["labels"],
        labels_path=Path(smk.output.labels),
        clusters_path=Path(smk.output.clusters),
        seed=smk.params.cfg["labels"]["seed"],
        hidden_attributes=next(map(Path, smk.input.get("hidden_attributes", [])), None),
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
