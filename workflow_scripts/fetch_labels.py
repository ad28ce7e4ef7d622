"""Fetch the published labels of a benchmark year, verified by checksum."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.download import DownloadSettings
from asdflow.data.labels import fetch_labels
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    entry = smk.config["datasets"][smk.wildcards.dataset]
    fetch_labels(
        smk.wildcards.dataset,
        entry,
        Path(smk.config["data_dir"]),
        DownloadSettings.of(smk.config["download"]),
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
