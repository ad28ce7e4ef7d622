"""Bootstrap confidence intervals over clips, vectorised over replicates and paired between systems."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from asdflow.detection.official import Floats, combine, compare, computable, section_arrays, sections

REPLICATES = 1000
LEVEL = 0.95

Run = TypeVar("Run", bound=Hashable)
Samples = dict[tuple[str, str, str], Floats]


def draw_weights(
    domain: npt.NDArray[np.object_], label: npt.NDArray[np.int64], replicates: int, rng: np.random.Generator
) -> Floats:
    """How often each clip is drawn in each replicate [replicates, n]: with replacement, within domain and condition."""
    weights = np.zeros((replicates, len(label)))
    strata = pd.DataFrame({"domain": domain, "label": label}).groupby(["domain", "label"]).indices
    for rows in strata.values():
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=replicates)
    return weights


def bootstrap(
    tables: Mapping[Run, pd.DataFrame], year: int, replicates: int = REPLICATES, seed: int = 0
) -> dict[Run, Samples]:
    """Bootstrap every metric that can be computed, with the same draws of clips for all runs.

    Parameters
    ----------
    tables : run -> table as in `official_metrics`, with clip_id; all runs hold the same clips.
    year : whose rules hold.
    replicates, seed : number of resamples, and their randomness; a section's draws depend on its name and its clips only.

    Returns
    -------
    run -> {(machine, section, metric): float64 [replicates]}. Differences between two runs' samples are paired.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals, stratified).
    """
    found: dict[Run, Samples] = {run: {} for run in tables}
    ordered = {run: dict(_sections_of(table)) for run, table in tables.items()}
    for machine, section in sorted({key for parts in ordered.values() for key in parts}):
        name = zlib.crc32(f"{machine}|{section}".encode())
        weights: Floats | None = None
        for run, parts in ordered.items():
            domain, label, scores = section_arrays(parts[machine, section])
            if weights is None:
                weights = draw_weights(domain, label, replicates, np.random.default_rng([seed, name]))
            for comparison in computable(year, domain, label)[0]:
                found[run][machine, section, comparison.metric] = compare(comparison, scores, weights)
    return found


def _sections_of(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Sections with their clips in the order of their ids, so that weights mean the same clip in every run."""
    return [((m, s), rows.sort_values("clip_id")) for m, s, rows in sections(table)]


def interval(samples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of samples [replicates]."""
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def official_samples(samples: Samples, year: int) -> Floats:
    """The official score of each replicate [replicates]."""
    return combine(year, samples)
