"""Give the training clips the labels a system is tuned on."""

from pathlib import Path

from asdflow.clustering import make_labels
from asdflow.job import run_stage


def main(smk):
    names = smk.params.cfg["datasets"]
    make_labels(
        dict(zip(names, map(Path, smk.input.clips), strict=True)),
        embeddings={names[0]: Path(path) for path in smk.input.get("embeddings", [])},
        settings=smk.params.cfg["labels"],
        labels_path=Path(smk.output.labels),
        clusters_path=Path(smk.output.clusters),
        seed=smk.params.cfg["labels"]["seed"],
        hidden_attributes=next(map(Path, smk.input.get("hidden_attributes", [])), None),
    )


if __name__ == "__main__":
    run_stage(main, snakemake)  # noqa: F821
