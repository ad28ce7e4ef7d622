"""One data set as the report sees it: its tables, scores and intervals, read once, with what is absent left empty."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd

from asdflow.report import evidence
from asdflow.report.findings import Thresholds, read_thresholds
from asdflow.report.inputs import DatasetFiles, ReportInputs, SystemFiles
from asdflow.report.significance import compare_systems
from asdflow.report.tables import read_metrics
from asdflow.tables import read_parquet


@dataclass
class Dataset:
    """What the pages of one data set share, read once. Parts that are not there are None or empty."""

    files: DatasetFiles
    clips: pd.DataFrame | None
    metrics: pd.DataFrame | None
    official: pd.DataFrame | None
    scores: dict[str, dict[int, pd.DataFrame]]
    thresholds: dict[str, dict[int, Thresholds]]
    significance: pd.DataFrame | None
    baseline: str | None
    featured: SystemFiles | None

    @property
    def systems(self) -> list[str]:
        return [s.name for s in self.files.systems]

    @property
    def machines(self) -> list[str]:
        if self.clips is not None:
            return sorted(self.clips["machine"].unique())
        return [] if self.metrics is None else sorted(set(self.metrics["machine"]) - {""})

    def runs_of(self, machine: str) -> dict[str, dict[int, pd.DataFrame]]:
        """System -> seed -> scored clips of one machine, without empty ones."""
        found = {
            s: {n: r[r["machine"] == machine] for n, r in runs.items()} for s, runs in self.scores.items()
        }
        found = {s: {n: r for n, r in runs.items() if len(r)} for s, runs in found.items()}
        return {s: runs for s, runs in found.items() if runs}

    def test_clips(self, machine: str) -> pd.DataFrame:
        """Rows of clips.parquet; the data set must have one."""
        assert self.clips is not None
        return self.clips[(self.clips["machine"] == machine) & (self.clips["split"] == "test")]

    def key(self, *parts: str) -> str:
        return "/".join(quote(p, safe="") for p in (self.files.name, *parts))


def read_dataset(files: DatasetFiles, inputs: ReportInputs) -> Dataset:
    """Read the tables of a data set that are on disk and compute the intervals."""
    clips = read_parquet(files.clips) if files.clips.is_file() else None
    metrics = read_metrics(files.metrics) if files.metrics.is_file() else None
    official = (
        pd.read_csv(files.official_scores, dtype={"system": str}) if files.official_scores.is_file() else None
    )
    scores = {} if clips is None else {s.name: evidence.read_scores(s, clips) for s in files.systems}
    significance = None
    if clips is not None:
        plain = {
            s: {n: r.set_index("clip_id")["anomaly_score"] for n, r in runs.items()}
            for s, runs in scores.items()
        }
        significance = compare_systems(
            clips[clips["split"] == "test"],
            plain,
            files.rules_of,
            inputs.baseline,
            inputs.replicates,
            inputs.seed,
        )
    featured = _featured(files, official, inputs.featured)
    thresholds: dict[str, dict[int, Thresholds]] = {
        s.name: {run.seed: read_thresholds(run.detector) for run in s.runs} for s in files.systems
    }
    return Dataset(
        files, clips, metrics, official, scores, thresholds, significance, inputs.baseline, featured
    )


def _featured(files: DatasetFiles, official: pd.DataFrame | None, wanted: str | None) -> SystemFiles | None:
    by_name = {s.name: s for s in files.systems}
    if wanted in by_name:
        return by_name[str(wanted)]
    if official is not None:
        for name in official.sort_values("mean", ascending=False, kind="stable")["system"]:
            if name in by_name:
                return by_name[name]
    return files.systems[0] if files.systems else None
