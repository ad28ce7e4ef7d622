"""List the clips whose sound is the same as another clip's, in whatever data set or split."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from asdflow.data.catalogue import read_catalogue
from asdflow.data.duplicates import find_duplicates, hash_candidates
from asdflow.files import write_text
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    audio = smk.params.cfg["audio"]
    tables = [
        read_catalogue(Path(path)).assign(dataset=name)
        for name, path in zip(audio, smk.input.clips, strict=True)
    ]
    clips = pd.concat(tables, ignore_index=True)
    found = find_duplicates(hash_candidates(clips, audio, smk.threads))
    logging.getLogger("asdflow").info("%d of %d clips sound exactly like another one", len(found), len(clips))
    write_text(Path(smk.output.duplicates), found.to_csv(index=False))


if __name__ == "__main__":
    run_stage(main, snakemake)
