"""Fetch one archive, or verify the one that is given, and record what it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.archives import plan_archives
from asdflow.data.download import DownloadSettings, download_archive
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    entry = smk.config["datasets"][smk.wildcards.dataset]
    archives = {archive.name: archive for archive in plan_archives(smk.wildcards.dataset, entry)}
    download_archive(
        archives[smk.wildcards.archive],
        Path(smk.config["data_dir"]),
        DownloadSettings.of(smk.config["download"]),
        offline=entry["offline"],
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
