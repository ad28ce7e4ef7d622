"""What the pages show beyond metrics: ROC curves, thresholds, confusion, attributes, maps, clusters, histories."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_curve

from asdflow.detection.official import Comparison, compare
from asdflow.errors import InputError
from asdflow.features.embeddings import read_embeddings
from asdflow.files import read_json
from asdflow.report.figures import CURVE_GRID
from asdflow.report.findings import Thresholds
from asdflow.report.inputs import RunFiles, SystemFiles
from asdflow.report.tables import Table, number, text
from asdflow.tables import REMEDY, read_parquet

log = logging.getLogger(__name__)
HISTORY_POINTS = 300


def read_scores(system: SystemFiles, clips: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Seed -> scored test clips: clip_id, anomaly_score, decision (or NaN), machine, section, domain ("" if none),
    condition, attribute_label. Seeds without a scores file are left out."""
    columns = ["clip_id", "machine", "section", "domain", "condition", "attribute_label"]
    known = clips.loc[clips["split"] == "test", columns]
    found = {}
    for run in system.runs:
        if run.scores.is_file():
            scores = read_parquet(run.scores)
            if "decision" not in scores:
                scores["decision"] = np.nan
            merged = known.merge(
                scores[["clip_id", "anomaly_score", "decision"]], on="clip_id", validate="one_to_one"
            )
            found[run.seed] = merged.assign(domain=merged["domain"].fillna(""))
    return found


def roc_panels(machine_clips: pd.DataFrame) -> dict[str, str | None]:
    """Panel name -> domain whose normals are taken (None: all clips), after what the clips know."""
    domains = [d for d in ("source", "target") if (machine_clips["domain"] == d).any()]
    if len(domains) < 2:
        return {"all clips (pAUC shaded)": None}
    return {**{f"{d} normals, all anomalies": d for d in domains}, "all clips (pAUC shaded)": None}


def roc_curves(scores: dict[str, list[pd.DataFrame]], panels: dict[str, str | None]) -> pd.DataFrame:
    """Mean ROC over seeds (averaged at equal false-positive rate): panel, system, fpr, tpr. Sections are pooled."""
    parts = []
    for system, runs in scores.items():
        for panel, domain in panels.items():
            curves = [c for c in (_curve(run, domain) for run in runs) if c is not None]
            if curves:
                mean = np.mean(curves, axis=0)
                parts.append(pd.DataFrame({"panel": panel, "system": system, "fpr": CURVE_GRID, "tpr": mean}))
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["panel", "system", "fpr", "tpr"])
    )


def _curve(run: pd.DataFrame, domain: str | None) -> np.ndarray | None:
    anomaly = (run["condition"] == "anomaly").to_numpy()
    keep = anomaly | (run["condition"] == "normal").to_numpy() & (
        True if domain is None else (run["domain"] == domain).to_numpy()
    )
    if len(np.unique(anomaly[keep])) < 2:
        return None
    fpr, tpr, _ = roc_curve(anomaly[keep], run["anomaly_score"].to_numpy()[keep], drop_intermediate=False)
    position = np.searchsorted(fpr, CURVE_GRID, side="right") - 1
    after = np.minimum(position + 1, len(fpr) - 1)
    gap = np.maximum(fpr[after] - fpr[position], 1e-12)
    return np.asarray(
        tpr[position] + (tpr[after] - tpr[position]) * np.clip((CURVE_GRID - fpr[position]) / gap, 0, 1)
    )


def threshold(scores: pd.DataFrame, known: Thresholds | None = None) -> float | None:
    """The one threshold of these clips: as the detector has it, else midway between the decisions; None if there is no one."""
    machines = set(scores["machine"]) if known else set()
    limits = {limit for (machine, _), (limit, _) in (known or {}).items() if machine in machines}
    if len(limits) == 1:
        return limits.pop()
    below = scores.loc[scores["decision"] == 0, "anomaly_score"]
    above = scores.loc[scores["decision"] == 1, "anomaly_score"]
    if not len(below) or not len(above) or below.max() > above.min():
        return None
    return float((below.max() + above.min()) / 2)


def histogram_table(scores: pd.DataFrame) -> Table:
    """Quartiles of the anomaly scores by domain and condition."""
    rows = []
    for (domain, condition), group in scores.groupby(["domain", "condition"]):
        quantiles = group["anomaly_score"].quantile([0, 0.25, 0.5, 0.75, 1])
        rows.append(
            [text(domain), text(condition), number(len(group), 0), *(number(q, 4) for q in quantiles)]
        )
    headers = ["Domain", "Condition", "Clips", "Minimum", "1st quartile", "Median", "3rd quartile", "Maximum"]
    return Table("Anomaly scores", headers, rows, list(range(2, 8)))


def confusion_table(scores: pd.DataFrame, stated: float | None = None) -> Table | None:
    """Decisions against conditions by domain, and the share of false alarms beside the stated one; None without decisions."""
    known = scores[scores["condition"].isin(["normal", "anomaly"]) & scores["decision"].notna()]
    if not len(known):
        return None
    parts = [(d or "all", g) for d, g in known.groupby("domain")]
    if len(parts) > 1:
        parts.append(("all", known))
    rows = []
    for name, group in parts:
        anomaly, flagged = group["condition"] == "anomaly", group["decision"] == 1
        hit, miss = int((anomaly & flagged).sum()), int((anomaly & ~flagged).sum())
        alarm, quiet = int((~anomaly & flagged).sum()), int((~anomaly & ~flagged).sum())
        precision = hit / (hit + alarm) if hit + alarm else None
        recall = hit / (hit + miss) if hit + miss else None
        f1 = 2 * hit / (2 * hit + alarm + miss) if hit + alarm + miss else None
        counts = [number(v, 0) for v in (hit, miss, alarm, quiet)]
        rate = alarm / (alarm + quiet) if alarm + quiet else None
        rows.append([text(name), *counts, *(number(v, 3) for v in (precision, recall, f1, rate, stated))])
    headers = [
        "Domain",
        "Anomalies found",
        "Anomalies missed",
        "False alarms",
        "Normals passed",
        "Precision",
        "Recall",
        "F1",
        "False-alarm rate",
        "Stated rate",
    ]
    return Table("Decisions at the threshold", headers, rows, list(range(1, 10)))


def attribute_table(scores: pd.DataFrame) -> Table | None:
    """Per attribute value of the test clips: false alarms, found anomalies, AUC of its normals against all anomalies."""
    known = scores[scores["attribute_label"].notna() & scores["condition"].isin(["normal", "anomaly"])]
    if not len(known):
        return None
    anomalies = scores[scores["condition"] == "anomaly"]
    rows = []
    for (label, domain), group in known.groupby(["attribute_label", "domain"]):
        normals, own = group[group["condition"] == "normal"], group[group["condition"] == "anomaly"]
        area = None
        if len(normals) and len(anomalies):
            values = np.r_[normals["anomaly_score"], anomalies["anomaly_score"]].astype(np.float64)
            first = np.arange(len(values)) < len(normals)
            area = float(
                compare(Comparison("auc", False, first, ~first), values, np.ones((1, len(values))))[0]
            )
        decided = group["decision"].notna().all()
        alarms = number((normals["decision"] == 1).sum(), 0) if decided else text(None)
        hits = number((own["decision"] == 1).sum(), 0) if decided else text(None)
        rows.append(
            [
                text(label),
                text(domain),
                number(len(normals), 0),
                alarms,
                number(len(own), 0),
                hits,
                number(area, 3),
            ]
        )
    headers = ["Attributes", "Domain", "Normal clips", "False alarms", "Anomalies", "Found", "AUC"]
    return Table("By attributes of the test clips", headers, rows, list(range(2, 7)))


def embedding_points(
    path: Path, clips: pd.DataFrame, labels: pd.DataFrame | None, most: int, seed: int
) -> pd.DataFrame | None:
    """A 2-D map (t-SNE of the first 30 principal components of unit-length embeddings) of at most `most` clips.

    Clips are drawn with equal shares for the machines, half of them test clips where there are any. Returns x, y,
    clip_id and the categories, or None where there are fewer than 5 clips.
    """
    clip_ids, matrix = read_embeddings(path)
    where = pd.Series(np.arange(len(clip_ids)), index=clip_ids)
    rng = np.random.default_rng(seed)
    known = clips[clips["clip_id"].isin(where.index) & clips["split"].isin(["train", "test"])]
    if not len(known):
        return None
    share = max(2, most // max(known["machine"].nunique(), 1) // 2)
    drawn = [g.iloc[np.sort(rng.permutation(len(g))[:share])] for _, g in known.groupby(["machine", "split"])]
    points = pd.concat(drawn, ignore_index=True)
    if len(points) < 5:
        return None
    vectors = matrix[where[points["clip_id"]].to_numpy()].astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    reduced = PCA(min(30, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(points) - 1) / 3)
    flat = TSNE(
        2, perplexity=perplexity, init="pca", random_state=seed, max_iter=500, n_jobs=1
    ).fit_transform(reduced)
    points = points.assign(x=flat[:, 0], y=flat[:, 1])
    names = labels.set_index("clip_id")["label_name"] if labels is not None else pd.Series(dtype=object)
    points["label"] = points["clip_id"].map(names)
    return points


def cluster_groups(path: Path) -> dict[str, dict[str, Any]]:
    """clusters.npz as group -> {linkage, labels, cut, silhouette}; `{}` where the system clustered nothing."""
    groups: dict[str, dict[str, Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, group = key.partition("/")
                groups.setdefault(group, {})[kind] = arrays[key]
    except Exception as error:  # what a damaged archive's headers happen to say has no common class
        raise InputError(f"{path} is damaged or missing", [str(error)], REMEDY) from error
    return {name: parts for name, parts in sorted(groups.items()) if "linkage" in parts and "labels" in parts}


def read_labels(path: Path, dataset: str) -> pd.DataFrame:
    """labels.parquet without the clips of additional data sets."""
    labels = read_parquet(path)
    return labels[labels["dataset"] == dataset] if "dataset" in labels else labels


def cut_height(parts: dict[str, Any]) -> float:
    """Where the tree of a clustered group was cut; the top where the file does not say."""
    return float(np.asarray(parts.get("cut", parts["linkage"][-1, 2])).reshape(-1)[0])


def read_history(path: Path, run: str) -> pd.DataFrame:
    """history.parquet with a column `run`, each metric thinned evenly to at most 300 steps, the last one kept."""
    table = read_parquet(path)
    parts = []
    for _, group in table.groupby("metric", sort=False):
        group = group.sort_values("step", kind="stable")
        picked = np.unique(
            np.linspace(0, len(group) - 1, min(len(group), HISTORY_POINTS)).round().astype(int)
        )
        parts.append(group.iloc[picked])
    thinned = pd.concat(parts, ignore_index=True) if parts else table
    return thinned.assign(run=run)


def read_metric(path: Path | None) -> str:
    """The distance in which a back end compares embeddings, `cosine` or `euclidean`; cosine where no detector.json tells."""
    if path is None or not path.is_file():
        return "cosine"
    backend = read_json(path, "run the score step again")["settings"]["backend"]
    return str(backend.get("metric", "cosine"))


def first_run(system: SystemFiles) -> RunFiles | None:
    """The run with the lowest seed, whose clips and maps are shown."""
    return min(system.runs, key=lambda r: r.seed) if system.runs else None
