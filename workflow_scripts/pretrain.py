"""Pre-train an encoder by self-supervision on machine sounds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.features.sources import features_by_dataset
from asdflow.job import run_stage, with_pace
from asdflow.training.pretrain import pretrain

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    names = smk.params.cfg["datasets"]
    features = features_by_dataset(names, smk.input.features)
    recipe = with_pace(smk.params.cfg["recipe"], smk.config["encoders"][smk.wildcards.encoder]["pretraining"])
    pretrain(
        {**recipe, "seed": smk.params.cfg["seed"]},
        {name: (Path(clips), features[name]) for name, clips in zip(names, smk.input.clips, strict=True)},
        init=Path(smk.input.init_weights).parent,
        output=Path(smk.output.weights).parent,
        checkpoint_dir=Path(smk.params.checkpoints),
        device=smk.config["device"],
        devices=smk.resources.devices,
        nodes=smk.resources.nodes,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
