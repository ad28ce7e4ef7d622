"""Labels for fine-tuning: true attributes where given, clusters of embeddings (pseudo attributes) where hidden."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture

from asdflow.errors import InputError
from asdflow.features.embeddings import read_embeddings
from asdflow.files import atomic_path
from asdflow.tables import read_parquet, write_parquet

log = logging.getLogger(__name__)

HIERARCHICAL = ("ward", "average", "complete")
NEEDS_EMBEDDINGS = ("pseudo_attributes", "clusters")
LABEL_COLUMNS = ["dataset", "clip_id", "label", "label_name", "origin", "machine", "section", "domain"]


@dataclass
class Clustering:
    """The clusters of one group of clips and what a dendrogram of them needs."""

    labels: np.ndarray  # int64 [n], 0 ... clusters-1 in order of first appearance
    linkage: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 4))
    )  # as scipy's; empty if not hierarchical
    cut: float = float("nan")  # height at which the tree was cut
    candidates: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 2))
    )  # [k, (clusters, silhouette or BIC)]


def make_labels(
    clips: Mapping[str, Path],
    embeddings: Mapping[str, Path],
    settings: Mapping[str, Any],
    labels_path: Path,
    clusters_path: Path,
    seed: int,
    hidden_attributes: Path | None = None,
) -> None:
    """Write `labels.parquet` and `clusters.npz` (formats: docs/architecture.md) for the clips that fine-tuning sees.

    Parameters
    ----------
    clips : data set -> its clips.parquet. The first is the scored data set; the others' clips become further classes.
    embeddings : data set -> its embeddings.h5; a data set's hidden machines are clustered only where its embeddings
        are given, else they fall back to one class per machine, section and domain.
    settings : the `labels` part of a system.
    seed : for k-means and the Gaussian mixture; hierarchical clustering has no randomness.
    hidden_attributes : the truth about hidden attributes; only for kind `hidden_attributes`, which is an upper bound
        and not permitted for a challenge submission.

    Raises InputError for missing embeddings, missing truth, and machines without training clips.

    Clustering per machine with Ward linkage is the paper's (arXiv 2509.12845); per domain, and the choice of the
    number of clusters, are ours.
    """
    scored = next(iter(clips))
    tables = [_training_clips(path, name, name == scored, settings) for name, path in clips.items()]
    table = pd.concat(tables, ignore_index=True)
    table["origin"], table["part"] = _known_labels(table, settings["kind"], hidden_attributes)
    groups: dict[str, tuple[list[str], Clustering]] = {}
    if settings["kind"] in NEEDS_EMBEDDINGS:
        if scored not in embeddings:
            raise InputError(
                f"labels.kind {settings['kind']} clusters embeddings, but data set {scored} has none",
                remedy="run the embed stage for it, or choose labels.kind attributes, domain or machine",
            )
        for name, path in embeddings.items():
            groups |= _cluster_data_set(
                table, name, path, settings, seed, prefix="" if name == scored else name + ":"
            )
    _write_labels(table, labels_path, scored)
    _write_clusters(groups, clusters_path)


def _training_clips(path: Path, dataset: str, scored: bool, settings: Mapping[str, Any]) -> pd.DataFrame:
    """The normal clips of a data set that may be learnt from: train, clean supplemental, and by choice more."""
    table = read_parquet(path)
    normal = table["condition"].fillna("normal") == "normal"
    keep = (table["split"] == "train") & normal
    if settings["supplemental"]:
        keep |= (table["split"] == "supplemental") & (table["supplement"] == "clean")
    if not scored and settings["additional_clips"] == "normal":
        keep |= (table["split"] == "test") & (table["condition"] == "normal")
    chosen = table.loc[keep].assign(dataset=dataset, scored=scored)
    if scored:
        empty = sorted(set(table["machine"]) - set(chosen.loc[chosen["split"] == "train", "machine"]))
        if empty:
            raise InputError(
                f"{path}: machines without a training clip",
                [f"machine {machine}" for machine in empty],
                "add normal recordings under <machine>/train, or leave these machines out of the data set",
            )
    return chosen.sort_values(["machine", "section", "clip_id"], kind="stable")


def _known_labels(
    table: pd.DataFrame, kind: str, hidden_attributes: Path | None
) -> tuple[pd.Series, pd.Series]:
    """Origin and name part of each clip's label before any clustering; clips to be clustered get domain labels."""
    attribute = table["attribute_label"]
    if kind == "hidden_attributes":
        if hidden_attributes is None:
            raise InputError(
                "labels.kind hidden_attributes needs the data set's hidden_attributes.csv",
                remedy="choose another kind, or a data set whose hidden attributes were revealed",
            )
        log.warning(
            "True hidden attributes are used as labels: an upper bound, not permitted for a scoring run"
        )
        truth = pd.read_csv(hidden_attributes, dtype=str).set_index("clip_id")["attribute_label"]
        attribute = attribute.where(attribute.notna(), table["clip_id"].map(truth))
    use_attributes = kind in ("attributes", "pseudo_attributes", "hidden_attributes")
    given = attribute.notna() & (use_attributes | ~table["scored"])
    fallback = "machine" if kind == "machine" else "domain"
    origin = pd.Series(np.where(given, "attributes", fallback), index=table.index)
    part = attribute.where(given, "")
    if kind == "machine":
        part = part.where(~table["scored"], "*")
    return origin, part


def _cluster_data_set(
    table: pd.DataFrame, dataset: str, path: Path, settings: Mapping[str, Any], seed: int, prefix: str
) -> dict[str, tuple[list[str], Clustering]]:
    """Cluster one data set's unlabelled training clips per group; writes origin and part into `table`."""
    clip_ids, vectors = read_embeddings(path)
    row_of = {clip_id: row for row, clip_id in enumerate(clip_ids)}
    chosen = (table["dataset"] == dataset) & (table["split"] == "train") & (table["origin"] == "domain")
    missing = sorted(set(table.loc[chosen, "clip_id"]) - set(row_of))
    if missing:
        raise InputError(
            f"{path}: no embedding for {len(missing)} training clips", missing[:20], "run embed again"
        )
    groups = {}
    for name, rows in _groups(table.loc[chosen], settings["per_domain"]).items():
        ids = table.loc[rows, "clip_id"].tolist()
        group = cluster(vectors[[row_of[clip_id] for clip_id in ids]], settings, seed)
        table.loc[rows, "origin"] = "pseudo"
        table.loc[rows, "part"] = [f"cluster={number:02d}" for number in group.labels]
        groups[prefix + name] = (ids, group)
        log.info("%s%s: %d clips in %d clusters", prefix, name, len(ids), group.labels.max() + 1)
    return groups


def _groups(table: pd.DataFrame, per_domain: bool) -> dict[str, pd.Index]:
    """Rows of each clustered group: `<machine>|<domain>`, with the section between where a machine has several."""
    sections = table.groupby("machine")["section"].nunique().to_dict()
    groups: dict[str, list[int]] = {}
    columns = (table[name].tolist() for name in ("machine", "section", "domain"))
    for row, machine, section, domain in zip(table.index, *columns, strict=True):
        side = domain if per_domain and isinstance(domain, str) else "all"
        between = [section] if sections[machine] > 1 else []
        groups.setdefault("|".join([machine, *between, side]), []).append(row)
    return {name: pd.Index(groups[name]) for name in sorted(groups)}


def cluster(embeddings: np.ndarray, settings: Mapping[str, Any], seed: int) -> Clustering:
    """Cluster `embeddings` [n, d]; keys used: standardise, method, count, and that count's own.

    `standardise`: each dimension is z-scored over the group; then each embedding is scaled to unit length. `method`: ward,
    average, complete (scipy), kmeans, gaussian_mixture. `count`: silhouette (best mean silhouette among min_clusters ...
    max_clusters, one cluster where none reaches min_silhouette), threshold (cut the tree at height `threshold`), fixed
    (`clusters`), bic (Gaussian mixture only).
    """
    n = len(embeddings)
    unit = embeddings.astype(np.float64)
    if settings["standardise"]:
        unit = (unit - unit.mean(0)) / np.maximum(unit.std(0), 1e-12)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    if n < 3:
        return Clustering(np.zeros(n, dtype=np.int64), linkage(unit, "ward") if n == 2 else np.zeros((0, 4)))
    if settings["method"] in HIERARCHICAL:
        return _cut_tree(unit, settings)
    return _best_partition(unit, settings, seed)


def _cut_tree(unit: np.ndarray, settings: Mapping[str, Any]) -> Clustering:
    """Hierarchical clustering of unit vectors [n, d], cut by the settings' rule."""
    tree = linkage(unit, settings["method"])
    candidates = np.zeros((0, 2))
    if settings["count"] == "threshold":
        labels = fcluster(tree, settings["threshold"], "distance")
    elif settings["count"] == "fixed":
        labels = fcluster(tree, min(settings["clusters"], len(unit)), "maxclust")
    else:
        partitions = {k: fcluster(tree, k, "maxclust") for k in _cluster_numbers(len(unit), settings)}
        labels, candidates = _by_silhouette(unit, partitions, settings["min_silhouette"])
    return Clustering(_in_order(labels), tree, _cut_height(tree, len(set(labels))), candidates)


def _cut_height(tree: np.ndarray, clusters: int) -> float:
    """A height between the merges that give `clusters` clusters: where a dendrogram's cutting line is drawn."""
    heights = np.concatenate([[0.0], tree[:, 2], [tree[-1, 2] * 1.1]])
    merges = len(tree) + 1 - clusters
    return float((heights[merges] + heights[merges + 1]) / 2)


def _best_partition(unit: np.ndarray, settings: Mapping[str, Any], seed: int) -> Clustering:
    """k-means or a Gaussian mixture with the number of clusters by the settings' rule."""
    by_count = settings["count"]
    fixed = [min(settings["clusters"], len(unit))]
    numbers = fixed if by_count == "fixed" else _cluster_numbers(len(unit), settings)
    if settings["method"] == "kmeans":
        partitions = {k: KMeans(k, n_init=10, random_state=seed).fit_predict(unit) for k in numbers}
    else:
        low = PCA(min(16, len(unit) - 1, unit.shape[1]), random_state=seed).fit_transform(unit)
        numbers = [1, *numbers] if by_count == "bic" else numbers
        mixtures = {
            k: GaussianMixture(k, covariance_type="diag", n_init=3, random_state=seed).fit(low)
            for k in numbers
        }
        partitions = {k: mixture.predict(low) for k, mixture in mixtures.items()}
        if by_count == "bic":
            candidates = np.array([[k, mixture.bic(low)] for k, mixture in mixtures.items()])
            best = int(candidates[candidates[:, 1].argmin(), 0])
            return Clustering(_in_order(partitions[best]), candidates=candidates)
    if by_count == "fixed":
        return Clustering(_in_order(partitions[fixed[0]]))
    labels, candidates = _by_silhouette(unit, partitions, settings["min_silhouette"])
    return Clustering(_in_order(labels), candidates=candidates)


def _cluster_numbers(n: int, settings: Mapping[str, Any]) -> list[int]:
    """Candidates for the number of clusters: the fewest hold five clips each on average, the most two, if settings ask for so many."""
    most = min(settings["max_clusters"], max(2, n // 2))
    fewest = max(2, min(settings["min_clusters"], n // 5, most))
    return list(range(fewest, most + 1))


def _by_silhouette(
    unit: np.ndarray, partitions: Mapping[int, np.ndarray], least: float
) -> tuple[np.ndarray, np.ndarray]:
    """The partition of the highest mean silhouette (Rousseeuw 1987), or one cluster where none reaches `least`."""
    distances = squareform(pdist(unit))
    rows = []
    for k, labels in partitions.items():
        proper = 1 < len(set(labels)) < len(unit)
        rows.append((k, silhouette_score(distances, labels, metric="precomputed") if proper else -1.0))
    candidates = np.array(rows, dtype=np.float64)
    best = int(candidates[:, 1].argmax())
    if candidates[best, 1] < least:
        return np.zeros(len(unit), dtype=np.int64), candidates
    return partitions[int(candidates[best, 0])], candidates


def _in_order(labels: np.ndarray) -> np.ndarray:
    """The same partition with clusters numbered from 0 in order of first appearance."""
    return np.asarray(pd.factorize(np.asarray(labels))[0], dtype=np.int64)


def _write_labels(table: pd.DataFrame, path: Path, scored: str) -> None:
    """Name and number the classes (machine x section x attributes x domain) and write labels.parquet."""
    prefix = np.where(table["dataset"] == scored, "", table["dataset"] + ":")
    domain = table["domain"].fillna("-").where(table["split"] != "supplemental", "clean")
    domain = domain.where(table["origin"] != "machine", "*")
    name = prefix + table["machine"] + "|" + table["section"] + "|" + table["part"] + "|" + domain
    known = table["origin"] == "domain"
    name = name.where(~known, prefix + table["machine"] + "|" + table["section"] + "||" + domain)
    labels = table.assign(label_name=name.astype(str))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(labels["label_name"]))}
    labels["label"] = labels["label_name"].map(numbers).astype("int64")
    write_parquet(labels[LABEL_COLUMNS], path)
    log.info(
        "%d clips in %d classes (%s)",
        len(labels),
        len(numbers),
        ", ".join(f"{origin} {count}" for origin, count in labels["origin"].value_counts().items()),
    )


def _write_clusters(groups: Mapping[str, tuple[list[str], Clustering]], path: Path) -> None:
    """Write clusters.npz: linkage, labels, clip_ids, cut and silhouette (or BIC) candidates of every group."""
    arrays: dict[str, np.ndarray] = {}
    for name, (ids, group) in groups.items():
        arrays[f"linkage/{name}"] = group.linkage
        arrays[f"labels/{name}"] = group.labels
        arrays[f"clip_ids/{name}"] = np.array(ids, dtype=str)
        arrays[f"cut/{name}"] = np.array(group.cut)
        arrays[f"silhouette/{name}"] = group.candidates
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]
