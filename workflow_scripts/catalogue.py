"""List a data set's clips, after checking every one of them."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.catalogue import build_catalogue, write_catalogue
from asdflow.data.counts import check_counts
from asdflow.data.evaluation_labels import apply_labels, read_evaluation_labels
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    settings = smk.params.cfg
    clips, notices = build_catalogue(Path(settings["path"]), settings, workers=smk.threads)
    labels = smk.input.get("labels")
    if labels is not None:
        clips = apply_labels(clips, read_evaluation_labels(Path(labels)), partial=settings["partial"])
    if not settings["partial"] and not settings["auxiliary"]:
        notices += check_counts(clips, settings["rules_of"])
    for notice in notices:
        logging.getLogger("asdflow").info("%s", notice)
    write_catalogue(clips, Path(smk.output.clips))


if __name__ == "__main__":
    run_stage(main, snakemake)
