"""The evaluate stage: metrics of every run, official scores over seeds, intervals, and what pseudo labels are worth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, homogeneity_score, normalized_mutual_info_score

from asdflow.detection.bootstrap import REPLICATES, bootstrap, interval, official_samples
from asdflow.detection.official import (
    Floats,
    check_table,
    compare,
    computable,
    decision_metrics,
    metric_rows,
    section_arrays,
    sections,
)
from asdflow.errors import InputError
from asdflow.files import atomic_path
from asdflow.tables import read_parquet

log = logging.getLogger(__name__)

METRIC_COLUMNS = ["system", "seed", "machine", "section", "metric", "value"]
INTERVAL_COLUMNS = ["system", "seed", "machine", "section", "metric", "low", "high"]
COMPARISON_COLUMNS = ["system", "reference", "difference", "low", "high", "n"]
Run = tuple[str, int]


def evaluate(
    clips: Path,
    runs: Sequence[tuple[str, int, Path]],
    year: int,
    metrics_out: Path,
    official_out: Path,
    hidden_attributes: Path | None = None,
    labels: Mapping[str, Path] | None = None,
    labels_unadapted: Mapping[str, Path] | None = None,
    intervals_out: Path | None = None,
    comparisons_out: Path | None = None,
    references: Sequence[str] = (),
    replicates: int = REPLICATES,
) -> None:
    """Write metrics.csv and official_scores.csv, and on request intervals and paired comparisons.

    Parameters
    ----------
    clips : clips.parquet of the data set.
    runs : (system, seed, its scores.parquet).
    year : whose metrics and official score apply.
    hidden_attributes : clip_id, attribute_label; the truth that pseudo labels are compared with.
    labels, labels_unadapted : system -> labels.parquet, of the encoder as it is and of the encoder without its pre-training.
    intervals_out : CSV system, seed, machine, section, metric, low, high: 95 % bootstrap over clips (fractions).
    comparisons_out : CSV system, reference, difference, low, high, n: difference of the official scores in percent points
        (mean over each one's seeds) with its paired bootstrap interval; n replicates.
    references : systems that the others are compared with.

    Clips of unknown condition and sections that lack a class or a domain give the metrics that can be computed; a warning
    names them, and where a section lacks one of the year's metrics there is no official score. Raises InputError for test
    clips without a score or with one that is no number.
    """
    test = labelled_clips(read_parquet(clips))
    tables = {(system, seed): scored_clips(test, path) for system, seed, path in runs}
    rows = [
        measured.assign(system=system, seed=seed)
        for (system, seed), table in tables.items()
        for measured in [measure(table, year, warn=(system, seed) == next(iter(tables)))]
    ]
    agreements = _agreements(labels or {}, "", hidden_attributes)
    agreements += _agreements(labels_unadapted or {}, "_unadapted", hidden_attributes)
    rows += [
        part.assign(seed=seed)
        for part in agreements
        for system, seed in tables
        if system == part["system"].iloc[0]
    ]
    metrics = (
        pd.concat(rows, ignore_index=True)[METRIC_COLUMNS] if rows else pd.DataFrame(columns=METRIC_COLUMNS)
    )
    _write(metrics, metrics_out)
    _write(official_table(metrics, list(dict.fromkeys(system for system, _, _ in runs))), official_out)
    if intervals_out or comparisons_out:
        _write_intervals(tables, year, replicates, references, intervals_out, comparisons_out)


def labelled_clips(clips: pd.DataFrame) -> pd.DataFrame:
    """Test clips of known condition with the column label (0 normal, 1 anomaly); a warning counts the others."""
    test = clips[clips["split"] == "test"]
    known = test["condition"].isin(["normal", "anomaly"])
    for machine, group in test[~known].groupby("machine"):
        log.warning(
            "Machine %s: %d test clips of unknown condition are left out of the metrics", machine, len(group)
        )
    label = (test.loc[known, "condition"] == "anomaly").astype("int64")
    return test.loc[known, ["clip_id", "machine", "section", "domain"]].assign(label=label)


def scored_clips(test: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Labelled test clips with anomaly_score and decision; raises InputError for clips without a finite score."""
    scores = read_parquet(path)
    merged = test.merge(scores, on="clip_id", how="left", validate="one_to_one")
    bad = merged.loc[~np.isfinite(merged["anomaly_score"].astype(float)), "clip_id"]
    if len(bad):
        more = [f"and {len(bad) - 20} more"] if len(bad) > 20 else []
        raise InputError(
            f"{path}: {len(bad)} test clips have no finite score",
            [*bad[:20], *more],
            "run the score stage again",
        )
    return merged


def measure(table: pd.DataFrame, year: int, warn: bool = True) -> pd.DataFrame:
    """Every metric of one run that can be computed: columns machine, section, metric, value (fractions).

    Parameters
    ----------
    table : labelled clips: machine, section, domain, label, anomaly_score, and decision where there is one.
    year : whose rules hold. warn : log what cannot be computed.
    """
    if table.empty:
        return pd.DataFrame(columns=["machine", "section", "metric", "value"])
    check_table(table, year)
    values: dict[tuple[str, str, str], Floats] = {}
    further, incomplete = [], False
    for machine, section, rows in sections(table):
        domain, label, scores = section_arrays(rows)
        found, missing = computable(year, domain, label)
        incomplete |= bool(missing)
        if missing and warn:
            log.warning("Machine %s, section %s: %s", machine, section, "; ".join(missing))
        for comparison in found:
            values[machine, section, comparison.metric] = compare(comparison, scores, np.ones((1, len(rows))))
        if "decision" in rows:
            further += [
                (machine, section, name, value) for name, value in _decisions(rows, year, domain).items()
            ]
    if incomplete and warn:
        log.warning("No official score of %d: it needs all metrics of every section", year)
    computed = metric_rows(values, year, complete=not incomplete)
    parts = [computed, pd.DataFrame(further, columns=computed.columns)]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _decisions(rows: pd.DataFrame, year: int, domain: np.ndarray) -> dict[str, float]:
    stated = year > 2020 and np.isin(domain, ["source", "target"]).any()
    return decision_metrics(rows, year if stated else 2020)


def official_table(metrics: pd.DataFrame, systems: Sequence[str]) -> pd.DataFrame:
    """Columns system, mean, std, n: official score in percent over seeds (std with n-1; n 0 where there is no score)."""
    official = metrics[metrics["metric"] == "official_score"]
    rows = []
    for system in systems:
        values = official.loc[official["system"] == system, "value"].astype(float) * 100
        rows.append((system, values.mean(), values.std(ddof=1), len(values)))
    return pd.DataFrame(rows, columns=["system", "mean", "std", "n"])


def _agreements(
    labels: Mapping[str, Path], suffix: str, hidden_attributes: Path | None
) -> list[pd.DataFrame]:
    """One table per system: NMI, ARI and homogeneity of each machine's pseudo labels with its hidden attributes."""
    if hidden_attributes is None:
        return []
    truth = pd.read_csv(hidden_attributes, dtype=str).dropna()
    tables = []
    for system, path in labels.items():
        rows = [
            (machine, "", f"{name}{suffix}", value)
            for machine, values in agreement(read_parquet(path), truth).items()
            for name, value in values.items()
        ]
        if rows:
            tables.append(
                pd.DataFrame(rows, columns=["machine", "section", "metric", "value"]).assign(system=system)
            )
    return tables


def agreement(labels: pd.DataFrame, truth: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Machine -> nmi, ari, homogeneity of its pseudo labels with the true attributes of the same clips.

    Parameters
    ----------
    labels : labels.parquet; rows of origin `pseudo` that belong to the scored data set count.
    truth : clip_id, attribute_label.

    Sources: Strehl and Ghosh 2002 (NMI, arithmetic), Hubert and Arabie 1985 (ARI), Rosenberg and Hirschberg 2007.
    """
    pseudo = labels[labels["origin"] == "pseudo"]
    if "dataset" in pseudo and len(pseudo):  # classes of further data sets carry their name in front
        own = [
            not str(n).startswith(f"{d}:")
            for n, d in zip(pseudo["label_name"], pseudo["dataset"], strict=True)
        ]
        pseudo = pseudo[own]
    both = pseudo.merge(truth, on="clip_id")
    return {
        str(machine): {
            "nmi": float(normalized_mutual_info_score(group["attribute_label"], group["label"])),
            "ari": float(adjusted_rand_score(group["attribute_label"], group["label"])),
            "homogeneity": float(homogeneity_score(group["attribute_label"], group["label"])),
        }
        for machine, group in both.groupby("machine")
    }


def _write_intervals(
    tables: Mapping[Run, pd.DataFrame],
    year: int,
    replicates: int,
    references: Sequence[str],
    intervals_out: Path | None,
    comparisons_out: Path | None,
) -> None:
    samples = bootstrap({run: table for run, table in tables.items() if len(table)}, year, replicates)
    complete = {
        run
        for run in samples
        if not measure(tables[run], year, warn=False).query("metric == 'official_score'").empty
    }
    official = {run: official_samples(samples[run], year) for run in complete}
    if intervals_out:
        rows = [
            (*run, *key, *interval(values)) for run, found in samples.items() for key, values in found.items()
        ]
        rows += [(*run, "", "", "official_score", *interval(values)) for run, values in official.items()]
        _write(pd.DataFrame(rows, columns=INTERVAL_COLUMNS), intervals_out)
    if comparisons_out:
        points = {run: _point(tables[run], year) for run in complete}
        _write(paired_table(official, points, references), comparisons_out)


def _point(table: pd.DataFrame, year: int) -> float:
    found = measure(table, year, warn=False)
    return float(found.loc[found["metric"] == "official_score", "value"].item())


def paired_table(
    samples: Mapping[Run, Floats], points: Mapping[Run, float], references: Sequence[str]
) -> pd.DataFrame:
    """Difference of each system to each reference in percent points, with the interval of its paired bootstrap samples.

    Parameters
    ----------
    samples : (system, seed) -> official score of each replicate [replicates]; the draws are the same for all.
    points : (system, seed) -> official score.
    references : systems to compare with; a system is not compared with itself.
    """
    systems = list(dict.fromkeys(system for system, _ in samples))
    mean = {s: np.mean([v for (name, _), v in samples.items() if name == s], axis=0) for s in systems}
    point = {s: float(np.mean([v for (name, _), v in points.items() if name == s])) for s in systems}
    rows = []
    for reference in [name for name in references if name in mean]:
        for system in [name for name in systems if name != reference]:
            low, high = interval(mean[system] - mean[reference])
            difference = point[system] - point[reference]
            rows.append((system, reference, 100 * difference, 100 * low, 100 * high, len(mean[system])))
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
