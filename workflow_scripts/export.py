"""Assemble a trained system as a folder that can be copied to another machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.detection.system import export_detector
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    export_detector(
        Path(smk.input.clips),
        model_dir=Path(smk.input.model).parent,
        encoder_dir=Path(smk.input.encoder).parent,
        detector_dir=Path(smk.input.detector),
        output=Path(smk.output.model),
        audio=smk.params.cfg["audio"],
        configuration=smk.params.cfg["system"],
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
