"""Is a difference between two systems more than chance? A paired bootstrap of the official score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asdflow.detection.official import combine, compare, comparisons, section_arrays, sections

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
    rng = np.random.default_rng(seed)
    known = clips[clips["condition"].isin(["normal", "anomaly"])]
    known = known.assign(label=(known["condition"] == "anomaly").astype(np.int64)).reset_index(drop=True)
    complete = {
        system: runs
        for system, runs in scores.items()
        if runs and all(known["clip_id"].isin(run.index).all() for run in runs.values())
    }
    if not complete or not len(known):
        return pd.DataFrame(columns=COLUMNS)
    drawn = _official_scores(known, complete, year, replicates, rng)
    means = {system: _draw_seeds(drawn[system], rng) for system in drawn}
    return _summary(means, baseline)


def _official_scores(
    clips: pd.DataFrame, scores: Scores, year: int, replicates: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """System -> official score [seeds, 1 + replicates] in percent; element 0 is of the clips as they are."""
    runs = [(system, number) for system, of_system in scores.items() for number in of_system]
    values: dict[tuple[str, int], dict[tuple[str, str, str], np.ndarray]] = {run: {} for run in runs}
    for machine, section, rows in sections(clips.assign(anomaly_score=0.0)):
        domain, label, _ = section_arrays(rows)
        weights = _draw(domain, label, replicates, rng)
        usable = [c for c in comparisons(year, domain, label) if not c.missing]
        for system, number in runs:
            found = scores[system][number].reindex(rows["clip_id"]).to_numpy(dtype=np.float64)
            for comparison in usable:
                values[system, number][machine, section, comparison.metric] = compare(
                    comparison, found, weights
                )
    if not values[runs[0]]:
        return {}
    return {
        s: np.stack([100 * combine(year, values[s, n]) for n in of_system]) for s, of_system in scores.items()
    }


def _draw(domain: np.ndarray, label: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """How often each clip of a section is drawn, [1 + replicates, clips]; row 0 is all ones."""
    weights = np.ones((replicates + 1, len(label)))
    for stratum in sorted(set(zip(domain, label, strict=True))):
        where = np.flatnonzero((domain == stratum[0]) & (label == stratum[1]))
        weights[1:, where] = rng.multinomial(len(where), np.full(len(where), 1 / len(where)), size=replicates)
    return weights


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
