"""Unpack one machine's archives into its folder, whole or not at all."""

from pathlib import Path

from asdflow.data.download import DownloadSettings
from asdflow.data.unpack import unpack_machine
from asdflow.job import run_stage


def main(smk):
    entry = smk.config["datasets"][smk.wildcards.dataset]
    unpack_machine(
        smk.wildcards.dataset,
        smk.wildcards.machine,
        entry,
        Path(smk.params.data_dir),
        DownloadSettings.of(smk.config["download"]),
    )


if __name__ == "__main__":
    run_stage(main, snakemake)  # noqa: F821
