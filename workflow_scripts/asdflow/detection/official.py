"""Official metrics and scores of DCASE Challenge Task 2, 2020-2026, computed on ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from asdflow.errors import InputError

YEARS = range(2020, 2027)
MAX_FALSE_POSITIVE_RATE = 0.1
DOMAINS = ("source", "target")
COLUMNS = ("machine", "section", "label", "anomaly_score")

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """One AUC or pAUC of a section: which normal clips are ranked against which anomalies."""

    metric: str
    partial: bool
    normals: Mask
    anomalies: Mask

    @property
    def missing(self) -> list[str]:
        """The classes of which the section holds no clip, in words."""
        sides = (("normal", self.normals), ("anomaly", self.anomalies))
        return [name for name, mask in sides if not mask.any()]


def comparisons(year: int, domain: npt.NDArray[np.object_], label: npt.NDArray[np.int64]) -> list[Comparison]:
    """List the AUC and pAUC values a section has by the rules of `year`.

    2020 ranks within the machine ID, 2021 within each domain; from 2022 on a domain's normal clips stand against **all**
    anomalies of the section, and one pAUC takes all clips (the challenge's own evaluators).
    """
    normal, anomaly = label == 0, label == 1
    if year == 2020:
        return [Comparison("auc", False, normal, anomaly), Comparison("pauc", True, normal, anomaly)]
    found = []
    for name in DOMAINS:
        here = domain == name
        if year == 2021:
            found += [
                Comparison(f"{kind}_{name}", kind == "pauc", normal & here, anomaly & here)
                for kind in ("auc", "pauc")
            ]
        else:
            found.append(Comparison(f"auc_{name}", False, normal & here, anomaly))
    if year >= 2022:
        found.append(Comparison("pauc", True, normal, anomaly))
    return found


def computable(
    year: int, domain: npt.NDArray[np.object_], label: npt.NDArray[np.int64]
) -> tuple[list[Comparison], list[str]]:
    """The comparisons of a section that have both classes, and what is missing for the others, in words.

    A section that states no domain at all gets 2020's `auc` and `pauc` over all its clips, which are not the year's.
    """
    wanted = comparisons(year, domain, label)
    missing = [f"{c.metric} has no {' and no '.join(c.missing)} clip" for c in wanted if c.missing]
    if year > 2020 and not np.isin(domain, DOMAINS).any():
        missing = ["its clips state no domain: auc and pauc are over all of them", *missing]
        wanted = comparisons(2020, domain, label)
    return [c for c in wanted if not c.missing], missing


def rank_counts(scores: Floats, weights: Floats) -> Floats:
    """Sum the clips' weights at each distinct score, from the highest score down: [replicates, n] -> [replicates, distinct].

    Equal scores fall into one column, so that ties count one half in what follows.
    """
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    starts = np.flatnonzero(np.r_[True, descending[1:] != descending[:-1]])
    return np.asarray(np.add.reduceat(weights[:, order], starts, axis=1), dtype=np.float64)


def area(normals: Floats, anomalies: Floats, max_fpr: float = 1.0) -> Floats:
    """Area under the ROC curve up to `max_fpr`, of each row of clip counts.

    Parameters
    ----------
    normals, anomalies : [replicates, distinct scores] weighted numbers of clips at each score, highest score first
        (`rank_counts`).
    max_fpr : below 1 the area is McClish-standardised (chance is 0.5), as `sklearn.metrics.roc_auc_score(max_fpr=...)`.

    Source: D. McClish, Analyzing a portion of the ROC curve, Medical Decision Making 1989.
    """
    n_normal = normals.sum(axis=1, keepdims=True)
    n_anomaly = anomalies.sum(axis=1, keepdims=True)
    limit = max_fpr * n_normal
    before = np.cumsum(normals, axis=1) - normals
    hits_before = np.cumsum(anomalies, axis=1) - anomalies
    width = np.clip(limit - before, 0.0, normals)
    share = np.divide(width, normals, out=np.zeros_like(width), where=normals > 0)
    total = (width * (hits_before + 0.5 * share * anomalies)).sum(axis=1) / (n_normal * n_anomaly)[:, 0]
    if max_fpr >= 1.0:
        return np.asarray(total, dtype=np.float64)
    smallest, largest = 0.5 * max_fpr**2, max_fpr
    return np.asarray(0.5 * (1.0 + (total - smallest) / (largest - smallest)), dtype=np.float64)


def compare(comparison: Comparison, scores: Floats, weights: Floats) -> Floats:
    """Value of one comparison for each row of clip weights [replicates, n] (all ones: the metric itself)."""
    counts = rank_counts(
        scores, np.concatenate([weights * comparison.normals, weights * comparison.anomalies])
    )
    replicates = len(weights)
    return area(
        counts[:replicates], counts[replicates:], MAX_FALSE_POSITIVE_RATE if comparison.partial else 1.0
    )


def harmonic_mean(values: Floats) -> Floats:
    """Harmonic mean over the first axis, values clamped from below at the smallest normal step, as the challenge does."""
    return np.asarray(
        1.0 / np.mean(1.0 / np.maximum(values, sys.float_info.epsilon), axis=0), dtype=np.float64
    )


def combine(year: int, values: Mapping[tuple[str, str, str], Floats]) -> Floats:
    """Official score of each replicate from all values keyed by (machine, section, metric).

    2021 on: harmonic mean of all values. 2020 has two official numbers, mean AUC and mean pAUC (`mean_2020`); their
    arithmetic mean stands for them where one number is wanted (ours).
    """
    if year == 2020:
        return np.asarray((mean_2020(values, "auc") + mean_2020(values, "pauc")) / 2, dtype=np.float64)
    return harmonic_mean(np.stack([values[key] for key in sorted(values)]))


def mean_2020(
    values: Mapping[tuple[str, str, str], Floats], metric: str, machine: str | None = None
) -> Floats:
    """Arithmetic mean of a 2020 metric over the IDs of each machine, then over machines (or of one machine)."""
    machines = sorted({key[0] for key in values}) if machine is None else [machine]
    per_machine = [
        np.mean([values[key] for key in sorted(values) if key[0] == name and key[2] == metric], axis=0)
        for name in machines
    ]
    return np.asarray(np.mean(per_machine, axis=0), dtype=np.float64)


def sections(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (machine, section, its rows) in the order of their names."""
    for (machine, section), rows in table.groupby(["machine", "section"], sort=True):
        yield str(machine), str(section), rows


def section_arrays(rows: pd.DataFrame) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64], Floats]:
    """Return domain (object, empty text where not stated), label (0 normal, 1 anomaly) and anomaly score of a section."""
    if "domain" in rows:
        domain = rows["domain"].astype(object).where(rows["domain"].notna(), "").to_numpy()
    else:
        domain = np.full(len(rows), "", dtype=object)
    return domain, rows["label"].to_numpy(np.int64), rows["anomaly_score"].to_numpy(np.float64)


def check_table(table: pd.DataFrame, year: int) -> None:
    """Raise InputError naming everything that keeps `table` from being scored by the rules of `year`."""
    if year not in YEARS:
        raise InputError(
            f"year {year} has no official score", remedy=f"give a year from {YEARS[0]} to {YEARS[-1]}"
        )
    needed = [*COLUMNS, *(["domain"] if year > 2020 else [])]
    if absent := [name for name in needed if name not in table]:
        raise InputError(
            "the table of scores lacks columns",
            [f"{name}: missing" for name in absent],
            f"give the columns {', '.join(needed)}",
        )
    problems = []
    if table.empty:
        problems.append("there is no clip at all")
    labels = pd.to_numeric(table["label"], errors="coerce")
    if not labels.isin([0, 1]).all():
        problems.append(
            f"label: {int((~labels.isin([0, 1])).sum())} value(s) other than 0 (normal) and 1 (anomaly)"
        )
    scores = pd.to_numeric(table["anomaly_score"], errors="coerce")
    for machine, section, rows in sections(table[~np.isfinite(scores)]):
        problems.append(
            f"machine {machine}, section {section}: {len(rows)} anomaly score(s) are NaN, infinite or no number"
        )
    if problems:
        raise InputError(
            f"the scores cannot be evaluated by the rules of {year}", problems, "mend the clips named"
        )


def missing_classes(table: pd.DataFrame, year: int) -> list[str]:
    """One line for each section in which a metric of `year` has no normal clip or no anomaly to rank."""
    problems = []
    for machine, section, rows in sections(table):
        domain, label, _ = section_arrays(rows)
        problems += [f"machine {machine}, section {section}: {m}" for m in computable(year, domain, label)[1]]
    return problems


def official_values(table: pd.DataFrame, year: int) -> dict[tuple[str, str, str], Floats]:
    """All AUC and pAUC values of `year`, keyed by (machine, section, metric), each an array of one.

    Parameters and errors as in `official_metrics`.
    """
    check_table(table, year)
    if problems := missing_classes(table, year):
        raise InputError(
            f"a section lacks a class that the metrics of {year} compare",
            problems,
            "complete the labels, or leave the machine out of the table",
        )
    values = {}
    for machine, section, rows in sections(table):
        domain, label, scores = section_arrays(rows)
        ones = np.ones((1, len(rows)))
        for comparison in comparisons(year, domain, label):
            values[machine, section, comparison.metric] = compare(comparison, scores, ones)
    return values


def official_metrics(table: pd.DataFrame, year: int) -> pd.DataFrame:
    """Compute every official metric of a year.

    Parameters
    ----------
    table : one row a test clip, in any order, with the columns machine, section, domain (`source`/`target`; not needed
        for 2020), label (0 normal, 1 anomaly) and anomaly_score (finite; higher is more anomalous).
    year : 2020 to 2026, whose rules hold.

    Returns
    -------
    DataFrame with columns machine, section, metric, value (a fraction). Per section the year's AUC and pAUC values; for
    2020 also `mean_auc` and `mean_pauc` per machine (section empty) and over machines (machine and section empty);
    `official_score` with machine and section empty.

    Raises
    ------
    InputError : missing columns, labels other than 0 and 1, scores that are not finite, a section without one class.

    Source: the task descriptions and evaluators of DCASE Challenge Task 2 of each year.
    """
    return metric_rows(official_values(table, year), year)


def metric_rows(
    values: Mapping[tuple[str, str, str], Floats], year: int, complete: bool = True
) -> pd.DataFrame:
    """Long table (machine, section, metric, value) of a year's values and, where they are complete, what is combined from them."""
    columns = ["machine", "section", "metric", "value"]
    rows = [(*key, float(value[0])) for key, value in values.items()]
    if not complete:
        return pd.DataFrame(rows, columns=columns)
    if year == 2020:
        for metric in ("auc", "pauc"):
            rows += [
                (machine, "", f"mean_{metric}", float(mean_2020(values, metric, machine)[0]))
                for machine in sorted({key[0] for key in values})
            ]
            rows.append(("", "", f"mean_{metric}", float(mean_2020(values, metric)[0])))
    rows.append(("", "", "official_score", float(combine(year, values)[0])))
    return pd.DataFrame(rows, columns=columns)


def official_score(table: pd.DataFrame, year: int) -> float:
    """Official score of a year as a fraction (0.6256 is the challenge's 62.56 %).

    Parameters, errors and source as in `official_metrics`. From 2021 on it is the harmonic mean of all AUC and pAUC values
    of the year. 2020 publishes mean AUC and mean pAUC (`official_metrics` has both); this is their arithmetic mean (ours).

    """
    return float(combine(year, official_values(table, year))[0])


def decision_metrics(rows: pd.DataFrame, year: int) -> dict[str, float]:
    """Precision, recall, F1 and observed false-alarm rate of a section's decisions (column decision, 0 or 1).

    From 2021 on for each domain over the domain's **own** clips, 2020 over the section; a denominator of zero gives 0, as in
    the challenge's evaluators. A domain without clips has no entry.
    """
    domain, label, _ = section_arrays(rows)
    decision = rows["decision"].to_numpy(np.int64)
    parts = {"": np.ones(len(rows), dtype=bool)} if year == 2020 else {f"_{d}": domain == d for d in DOMAINS}
    found: dict[str, float] = {}
    for suffix, here in parts.items():
        if not here.any():
            continue
        hits = int(np.sum(here & (label == 1) & (decision == 1)))
        raised, anomalies = int(np.sum(here & (decision == 1))), int(np.sum(here & (label == 1)))
        precision, recall = hits / max(raised, 1), hits / max(anomalies, 1)
        normals, false_alarms = int(np.sum(here & (label == 0))), raised - hits
        found |= {f"false_alarm_rate{suffix}": false_alarms / normals} if normals else {}
        found[f"precision{suffix}"] = precision
        found[f"recall{suffix}"] = recall
        found[f"f1{suffix}"] = 2 * precision * recall / max(precision + recall, sys.float_info.epsilon)
    return found
