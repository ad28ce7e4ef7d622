"""Fine-tune a system's encoder on its labels and embed every clip with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.features.sources import features_by_dataset
from asdflow.job import run_stage, with_pace
from asdflow.training.finetune import finetune

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    settings = smk.params.cfg["system"]
    tuning = with_pace(settings["tuning"], smk.config["systems"][smk.wildcards.system]["tuning"])
    finetune(
        {**settings, "tuning": tuning},
        features_by_dataset(smk.params.cfg["datasets"], smk.input.features),
        labels=Path(smk.input.labels),
        clips=Path(smk.input.clips),
        encoder_dir=Path(smk.input.encoder_weights).parent,
        seed=int(smk.wildcards.seed),
        output=Path(smk.output.model).parent,
        checkpoint_dir=Path(smk.params.checkpoints),
        device=smk.config["device"],
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
