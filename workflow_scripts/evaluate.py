"""Official metrics of every system and seed, and how well clusters agree with hidden attributes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asdflow.detection.evaluate import evaluate
from asdflow.job import run_stage

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def main(smk: Any) -> None:
    cfg = smk.params.cfg
    evaluate(
        Path(smk.input.clips),
        [
            (system, seed, Path(path))
            for (system, seed), path in zip(cfg["runs"], smk.input.scores, strict=True)
        ],
        cfg["year"],
        metrics_out=Path(smk.output.metrics),
        official_out=Path(smk.output.official),
        intervals_out=Path(smk.output.intervals),
        comparisons_out=Path(smk.output.comparisons),
        references=cfg["references"],
        hidden_attributes=next(map(Path, smk.input.hidden_attributes), None),
        labels=dict(zip(cfg["labelled"], map(Path, smk.input.labels), strict=True)),
        labels_unadapted=dict(
            zip(cfg["labelled_unadapted"], map(Path, smk.input.unadapted_labels), strict=True)
        ),
    )


if __name__ == "__main__":
    run_stage(main, snakemake)
