"""Cache the log-mel frames of one machine's clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.catalogue import read_catalogue
from asdflow.features.extract import extract_features
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    clips = read_catalogue(Path(smk.input.clips))
    extract_features(
        clips[clips.machine == smk.wildcards.machine],
        front_end=smk.wildcards.front_end,
        audio=smk.params.cfg["audio"],
        output=Path(smk.output.features),
        workers=smk.threads,
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
