"""Pre-train an encoder by self-supervision on machine sounds."""

from pathlib import Path

from asdflow.features.sources import sources_from
from asdflow.job import run_stage
from asdflow.training.pretrain import pretrain


def main(smk):
    pretrain(
        {**smk.params.cfg["recipe"], "seed": smk.params.cfg["seed"]},
        sources_from(smk.input.clips, smk.input.features),
        init=Path(smk.input.init_weights).parent,
        output=Path(smk.output.weights).parent,
        checkpoint_dir=Path(smk.params.checkpoints),
        device=smk.params.device,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)  # noqa: F821
