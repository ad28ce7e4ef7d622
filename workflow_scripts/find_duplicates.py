"""List the clips whose sound is the same as another clip's, in whatever data set or split."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.data.duplicates import find_duplicates
from asdflow.features.sources import features_by_dataset
from asdflow.features.store import FeatureStore
from asdflow.files import write_text
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    store = FeatureStore(features_by_dataset(smk.params.cfg["datasets"], smk.input.features))
    found = find_duplicates(store.index)
    logging.getLogger("asdflow").info("%d clips sound exactly like another one", len(found))
    write_text(Path(smk.output.duplicates), found.to_csv(index=False))


if __name__ == "__main__":
    run_stage(main, snakemake)
