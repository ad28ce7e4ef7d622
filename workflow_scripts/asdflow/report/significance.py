"""Is a difference between two systems more than chance? A paired bootstrap of the official score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asdflow.detection.bootstrap import bootstrap
from asdflow.detection.official import combine, compare, computable, section_arrays, sections

COLUMNS = ["system", "low", "high", "difference", "difference_low", "difference_high", "p"]
Scores = Mapping[str, Mapping[int, pd.Series]]


def compare_systems(
    clips: pd.DataFrame,
    scores: Scores,
    year: int,
    baseline: str | None,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """95 % intervals of each system's official score (percent) and of its difference to `baseline`.

    Parameters
    ----------
    clips : test clips (clip_id, machine, section, domain, condition); those of unknown condition are left out.
    scores : system -> seed -> anomaly scores indexed by clip_id; a system that lacks a clip is left out.
    year : whose rules make the official score.
    baseline : the system to compare with; None leaves the differences empty.

    Returns
    -------
    DataFrame: system, low, high, difference, difference_low, difference_high, p.

    Each replicate draws clips with replacement within machine, section, domain and condition - the same draw for every
    system, which makes it paired - and seeds with replacement within a system. p is two-sided,
    `2 min(P(d <= 0), P(d >= 0))`, Holm-adjusted over the systems. Intervals are percentiles (Efron & Tibshirani 1993); that
    this test is used is ours, the challenge names none.
    """
    known = clips[clips["condition"].isin(["normal", "anomaly"])]
    known = known.assign(label=(known["condition"] == "anomaly").astype(np.int64)).reset_index(drop=True)
    tables = {
        (system, number): known.assign(anomaly_score=run.reindex(known["clip_id"]).to_numpy(dtype=np.float64))
        for system, runs in scores.items()
        if all(known["clip_id"].isin(run.index).all() for run in runs.values())
        for number, run in runs.items()
    }
    drawn = bootstrap(tables, year, replicates, seed) if len(known) else {}
    if not any(drawn.values()):
        return pd.DataFrame(columns=COLUMNS)
    rng = np.random.default_rng(seed)
    means = {}
    for system in dict.fromkeys(system for system, _ in tables):
        runs = [run for run in tables if run[0] == system]
        official = np.stack([np.append(_observed(tables[r], year), combine(year, drawn[r])) for r in runs])
        means[system] = _draw_seeds(100 * official, rng)
    return _summary(means, baseline)


def _observed(table: pd.DataFrame, year: int) -> np.ndarray:
    """The official score of the clips as they are, [1], a fraction."""
    values = {}
    for machine, section, rows in sections(table):
        domain, label, scores = section_arrays(rows)
        for comparison in computable(year, domain, label)[0]:
            values[machine, section, comparison.metric] = compare(comparison, scores, np.ones((1, len(rows))))
    return combine(year, values)


def _draw_seeds(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mean over seeds drawn with replacement, [seeds, 1 + replicates] -> [1 + replicates]; element 0 over all seeds."""
    picked = rng.integers(0, len(values), size=(len(values), values.shape[1] - 1))
    means = np.take_along_axis(values[:, 1:], picked, axis=0).mean(axis=0)
    return np.concatenate([[values[:, 0].mean()], means])


def _summary(means: Mapping[str, np.ndarray], baseline: str | None) -> pd.DataFrame:
    rows = []
    for system, values in means.items():
        low, high = np.quantile(values[1:], [0.025, 0.975])
        row = {"system": system, "low": low, "high": high}
        if baseline is not None and baseline in means and system != baseline:
            difference = values - means[baseline]
            drawn = difference[1:]
            row["difference"] = difference[0]
            row["difference_low"], row["difference_high"] = np.quantile(drawn, [0.025, 0.975])
            tail = 1 + min(np.sum(drawn <= 0), np.sum(drawn >= 0))
            row["p"] = min(1.0, 2 * tail / (len(drawn) + 1))
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["p"] = _holm(table["p"].to_numpy(dtype=float))
    return table


def _holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment (1979); NaN stays NaN."""
    adjusted = p.copy()
    known = np.flatnonzero(~np.isnan(p))
    highest = 0.0
    for rank, index in enumerate(known[np.argsort(p[known], kind="stable")]):
        highest = max(highest, min(1.0, p[index] * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted
