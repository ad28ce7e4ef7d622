"""Cache the log-mel frames of one machine's clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.catalogue import build_catalogue
from asdflow.features.extract import extract_features
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    settings = smk.params.cfg
    clips, _ = build_catalogue(Path(settings["path"]), settings, workers=smk.threads)
    extract_features(
        clips,
        front_end=settings["front_end"],
        audio=settings["audio"],
        output=Path(smk.output.features),
        workers=smk.threads,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
