"""Score a folder of new recordings with a trained system."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.detection.detect import Options, detect
from asdflow.device import pick_device
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    detect(
        Path(smk.input.model),
        [Path(smk.input.recordings)],
        machine=smk.params.cfg["machine"],
        output=Path(smk.output.decisions),
        options=Options(workers=smk.threads),
        device=pick_device(smk.config["device"]).type,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
