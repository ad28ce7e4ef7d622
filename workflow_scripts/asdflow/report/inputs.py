"""What a report is made from: paths and names only, frozen, so that a thin script can fill it from named inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFiles:
    """One seed of one system; a part that is None or not on disk is named as absent on the page."""

    seed: int
    scores: Path
    history: Path | None = None
    embeddings: Path | None = None
    detector: Path | None = None


@dataclass(frozen=True)
class SystemFiles:
    """One system on one data set.

    `encoder` and `unadapted` name entries of `DatasetFiles.embeddings`: the encoder it was fine-tuned from, and that one
    before its pre-training (None: no such embeddings).
    """

    name: str
    runs: tuple[RunFiles, ...]
    encoder: str | None = None
    unadapted: str | None = None
    labels: Path | None = None
    clusters: Path | None = None


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one data set, in the layouts of docs/architecture.md.

    `embeddings`: encoder name -> embeddings before fine-tuning. `features`: one HDF5 file a machine, of any one
    front end (for the log-mel pictures). `rules_of`: the year whose official score holds. `published_set`: the
    challenge set that these data claim to be, such as "2025 evaluation"; published figures appear only if the machines
    agree with it. `synthetic`: made, not recorded.
    """

    name: str
    clips: Path
    metrics: Path
    official_scores: Path
    systems: tuple[SystemFiles, ...]
    embeddings: Mapping[str, Path] = field(default_factory=dict)
    features: tuple[Path, ...] = ()
    rules_of: int = 2025
    published_set: str | None = None
    synthetic: bool = False


@dataclass(frozen=True)
class ReportInputs:
    """Everything `build_report` reads.

    `encoder_histories`: encoder name -> history.parquet of its pre-training. `provenance`: JSON with any of the keys
    title, created, command, git, configuration, systems, seeds, versions, hardware, checksums, benchmarks (see
    `asdflow.report.provenance_view`). `rule_graph`: SVG. `ablations`: the configuration's tables of
    switched parts. `baseline`: the system that others are compared with.
    `featured`: the system whose clips, maps and dendrograms are shown; None takes the highest official score.
    `media_megabytes`: upper bound of sound and pictures in the file. `replicates`: of the bootstrap.
    """

    datasets: tuple[DatasetFiles, ...]
    encoder_histories: Mapping[str, Path] = field(default_factory=dict)
    provenance: Path | None = None
    rule_graph: Path | None = None
    ablations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baseline: str | None = None
    featured: str | None = None
    seed: int = 0
    replicates: int = 1000
    media_megabytes: float = 8.0


def dataset_files(
    results: Path,
    name: str,
    systems: Mapping[str, Sequence[int]],
    encoders: Mapping[str, str] | None = None,
    unadapted: Mapping[str, str] | None = None,
    front_end: str | None = None,
    rules_of: int = 2025,
    published_set: str | None = None,
    synthetic: bool = False,
    folders: Mapping[str, Mapping[str, Any]] | None = None,
) -> DatasetFiles:
    """The files of data set `name` below `results`, where docs/architecture.md puts them.

    `systems`: system -> seeds; `encoders`, `unadapted`: system -> encoder (see `SystemFiles`); `front_end`: whose features
    serve for pictures (None: the first one there is); `folders`: system -> {labels: folder, tuned: {seed: folder}}, where
    what it shares with other systems lies (relative to the data set's; None: all in the system's own).
    """
    root = Path(results) / name
    fronts = [root / "features" / front_end] if front_end else sorted((root / "features").glob("*"))
    features = tuple(sorted(fronts[0].glob("*.h5"))) if fronts else ()
    encoders, unadapted = dict(encoders or {}), dict(unadapted or {})
    embedded = sorted({*encoders.values(), *unadapted.values()})
    return DatasetFiles(
        name=name,
        clips=root / "clips.parquet",
        metrics=root / "metrics.csv",
        official_scores=root / "official_scores.csv",
        systems=tuple(
            _system_files(root, s, seeds, encoders.get(s), unadapted.get(s), (folders or {}).get(s, {}))
            for s, seeds in systems.items()
        ),
        embeddings={e: root / "embeddings" / f"{e}.h5" for e in embedded},
        features=features,
        rules_of=rules_of,
        published_set=published_set,
        synthetic=synthetic,
    )


def _system_files(
    root: Path,
    name: str,
    seeds: Sequence[int],
    encoder: str | None,
    unadapted: str | None,
    folders: Mapping[str, Any],
) -> SystemFiles:
    tuned = {seed: root / folders.get("tuned", {}).get(str(seed), f"{name}/seed_{seed}") for seed in seeds}
    runs = tuple(
        RunFiles(
            seed=seed,
            scores=root / name / f"seed_{seed}" / "scores.parquet",
            history=tuned[seed] / "history.parquet",
            embeddings=tuned[seed] / "embeddings.h5",
            detector=root / name / f"seed_{seed}" / "detector" / "detector.json",
        )
        for seed in seeds
    )
    labels = root / folders.get("labels", name)
    return SystemFiles(name, runs, encoder, unadapted, labels / "labels.parquet", labels / "clusters.npz")
