"""Unpack one machine's archives into its folder, whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.download import DownloadSettings
from asdflow.data.unpack import unpack_machine
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    entry = smk.config["datasets"][smk.wildcards.dataset]
    unpack_machine(
        smk.wildcards.dataset,
        smk.wildcards.machine,
        entry,
        Path(smk.config["data_dir"]),
        DownloadSettings.of(smk.config["download"]),
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
