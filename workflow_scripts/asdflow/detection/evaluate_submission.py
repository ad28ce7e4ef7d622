"""What `asdflow evaluate` prints: the metrics of a submission folder, their intervals, and a paired comparison."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from asdflow.detection.bootstrap import bootstrap, interval, official_samples
from asdflow.detection.evaluate import measure
from asdflow.detection.official import check_table, official_values
from asdflow.detection.submission import read_labels, read_submission
from asdflow.errors import InputError

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a submission as fractions; `intervals` maps (machine, section, metric) to (low, high)."""

    year: int
    submission: str
    metrics: pd.DataFrame
    intervals: dict[Key, tuple[float, float]]
    comparison: dict[str, Any] | None

    def as_json(self) -> str:
        """One JSON object: year, submission, official_score, metrics (with low and high), comparison."""
        rows = []
        for row in self.metrics.to_dict("records"):
            low, high = self.intervals.get((row["machine"], row["section"], row["metric"]), (None, None))
            rows.append({**row, "low": low, "high": high})
        content = {
            "year": self.year,
            "submission": self.submission,
            "official_score": self.value("official_score"),
            "metrics": rows,
            "comparison": self.comparison,
        }
        return json.dumps(content, indent=1)

    def value(self, metric: str) -> float:
        """A value over all machines."""
        found = self.metrics[(self.metrics["metric"] == metric) & (self.metrics["machine"] == "")]
        return float(found["value"].item())

    def as_text(self) -> str:
        """The table as people read it, in percent."""
        per_section = self.metrics[self.metrics["section"] != ""]
        wide = per_section.pivot(index=["machine", "section"], columns="metric", values="value")
        order = [name for name in dict.fromkeys(per_section["metric"]) if name in wide]
        table = Table(title=f"{self.submission}, by the rules of {self.year} (percent)")
        for name in ("machine", "section", *order):
            table.add_column(name, justify="left" if name in ("machine", "section") else "right")
        for key, values in zip(wide.index, wide[order].to_numpy(dtype=float), strict=True):
            table.add_row(*key, *("-" if np.isnan(v) else f"{100 * v:.2f}" for v in values))
        buffer = io.StringIO()
        width = (
            24
            + max((len(str(m)) for m in per_section["machine"]), default=0)
            + sum(len(n) + 3 for n in order)
        )
        Console(file=buffer, width=max(80, width)).print(table)
        return buffer.getvalue() + "\n".join(self._summary())

    def _summary(self) -> list[str]:
        lines = [
            f"{name}: {100 * self.value(name):.2f}" for name in ("mean_auc", "mean_pauc") if self.year == 2020
        ]
        official = f"official score: {100 * self.value('official_score'):.2f}"
        if ("", "", "official_score") in self.intervals:
            low, high = self.intervals["", "", "official_score"]
            official += f"   (95 % interval over clips: {100 * low:.2f} to {100 * high:.2f})"
        lines.append(official)
        if self.comparison:
            c = self.comparison
            lines.append(
                f"difference to {c['reference']}: {100 * c['difference']:+.2f} points"
                f"   (95 % interval, paired: {100 * c['low']:+.2f} to {100 * c['high']:+.2f})"
            )
        return lines


def evaluate_submission(
    year: int, submission: Path, labels: Path, against: Path | None = None, replicates: int = 1000
) -> Evaluation:
    """Evaluate a submission folder.

    Parameters
    ----------
    year : whose rules and file names hold. submission : folder of the challenge's CSV files.
    labels : CSV file_name, machine, section, domain, label; or clips.parquet.
    against : a second submission folder to compare with. replicates : bootstrap resamples; 0 leaves intervals out.

    Raises InputError listing every problem of labels and submission, and sections that lack a class.
    """
    if against is not None and replicates < 1:
        raise InputError("a comparison needs bootstrap resamples", remedy="leave out --replicates 0")
    truth = read_labels(labels, year)
    tables = {"submission": _table(submission, truth, year)}
    if against is not None:
        tables["against"] = _table(against, truth, year)
    metrics = measure(tables["submission"], year)
    intervals: dict[Key, tuple[float, float]] = {}
    comparison = None
    if replicates:
        samples = bootstrap(tables, year, replicates)
        official = {name: official_samples(found, year) for name, found in samples.items()}
        intervals = {key: interval(values) for key, values in samples["submission"].items()}
        intervals["", "", "official_score"] = interval(official["submission"])
        if against is not None:
            comparison = _comparison(against, metrics, measure(tables["against"], year), official)
    return Evaluation(year, submission.resolve().name, metrics, intervals, comparison)


def _table(folder: Path, truth: pd.DataFrame, year: int) -> pd.DataFrame:
    """The labelled clips of a submission, fit for scoring by the rules of the year."""
    table = read_submission(folder, truth, year)
    table = table[table["label"].notna()].astype({"label": "int64"})
    table["clip_id"] = (
        table["machine"] + "/" + table["section"] + "/" + table["domain"] + "/" + table["file_name"]
    )
    check_table(table, year)
    official_values(table, year)
    return table


def _comparison(
    against: Path, own: pd.DataFrame, other: pd.DataFrame, official: dict[str, Any]
) -> dict[str, Any]:
    scores = [float(m.loc[m["metric"] == "official_score", "value"].item()) for m in (own, other)]
    low, high = interval(official["submission"] - official["against"])
    return {
        "reference": against.resolve().name,
        "difference": scores[0] - scores[1],
        "low": low,
        "high": high,
    }
