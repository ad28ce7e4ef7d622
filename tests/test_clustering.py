"""Labels: clusters are scipy's, classes follow the settings, and everything is deterministic."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from asdflow.clustering import cluster, make_labels
from asdflow.errors import InputError
from asdflow.features.embeddings import write_embeddings
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

SETTINGS = {
    "kind": "pseudo_attributes",
    "method": "ward",
    "count": "silhouette",
    "clusters": 3,
    "threshold": 1.0,
    "standardise": False,
    "min_clusters": 2,
    "max_clusters": 8,
    "min_silhouette": 0.05,
    "per_domain": True,
    "supplemental": True,
    "additional_clips": "train",
}


def blobs(counts, width=12, spread=0.02, seed=0):
    """Well separated directions with `counts` vectors each, and the truth."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(counts)), counts)
    return (np.eye(width)[truth] + spread * rng.normal(size=(len(truth), width))).astype(np.float32), truth


def clips_table(machines, hidden=("fan",)):
    """Twelve source and four target training clips per machine, two test clips, one clean and one noise supplement."""
    rows: list[tuple] = []
    for machine in machines:
        kinds: list[tuple] = [("train", "source", "normal", None)] * 12 + [
            ("train", "target", "normal", None)
        ] * 4
        kinds += [("test", "source", "normal", None), ("test", "target", "anomaly", None)]
        kinds += [("supplemental", "source", "normal", "clean"), ("supplemental", None, "normal", "noise")]
        for number, (split, domain, condition, supplement) in enumerate(kinds):
            label = None if machine in hidden else f"vel={number % 2}"
            rows.append(
                (
                    f"{machine}/{split}/{number:02d}",
                    machine,
                    "00",
                    domain,
                    split,
                    condition,
                    label,
                    supplement,
                )
            )
    names = ["clip_id", "machine", "section", "domain", "split", "condition", "attribute_label", "supplement"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def data_set(tmp_path):
    table = clips_table(["fan", "valve"])
    table.to_parquet(tmp_path / "clips.parquet")
    rng = np.random.default_rng(1)
    truth = np.arange(len(table)) % 3
    vectors = np.eye(10)[truth] + 0.02 * rng.normal(size=(len(table), 10))
    write_embeddings(tmp_path / "embeddings.h5", table["clip_id"].tolist(), vectors.astype(np.float32))
    return table, truth


def run(folder: Path, clips=None, embeddings=None, hidden=None, **changes):
    make_labels(
        clips or {"demo": folder / "clips.parquet"},
        {"demo": folder / "embeddings.h5"} if embeddings is None else embeddings,
        {**SETTINGS, **changes},
        folder / "labels.parquet",
        folder / "clusters.npz",
        seed=0,
        hidden_attributes=hidden,
    )
    return pd.read_parquet(folder / "labels.parquet"), np.load(folder / "clusters.npz")


@pytest.mark.parametrize("method", ["ward", "average", "complete"])
def test_a_tree_and_its_cut_equal_scipys_and_scikit_learns(method):
    vectors = np.random.default_rng(3).normal(size=(40, 7)).astype(np.float32)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    found = cluster(vectors, {**SETTINGS, "method": method, "count": "fixed", "clusters": 5}, seed=0)
    np.testing.assert_allclose(found.linkage, linkage(unit, method))
    other = AgglomerativeClustering(5, linkage=method).fit_predict(unit)
    assert adjusted_rand_score(found.labels, other) == 1.0
    heights = found.linkage[:, 2]
    assert (heights > found.cut).sum() == 4


@pytest.mark.parametrize("method", ["ward", "average", "complete", "kmeans", "gaussian_mixture"])
def test_every_method_finds_separated_clusters_and_their_number(method):
    vectors, truth = blobs([9, 14, 11, 6])
    count = "bic" if method == "gaussian_mixture" else "silhouette"
    found = cluster(vectors, {**SETTINGS, "method": method, "count": count}, seed=0)
    assert adjusted_rand_score(truth, found.labels) == 1.0
    assert found.candidates[:, 0].tolist() == ([1] if count == "bic" else []) + list(range(2, 9))


def test_a_group_without_structure_stays_one_cluster():
    vectors = np.random.default_rng(0).normal(size=(30, 50)).astype(np.float32)
    assert set(cluster(vectors, {**SETTINGS, "min_silhouette": 0.3}, seed=0).labels) == {0}


@pytest.mark.parametrize(
    ("clips", "tried"), [(40, range(6, 9)), (20, range(4, 9)), (8, range(2, 5)), (4, range(2, 3))]
)
def test_the_fewest_clusters_tried_hold_five_clips_each_where_more_are_wanted(clips, tried):
    vectors = np.random.default_rng(0).normal(size=(clips, 5)).astype(np.float32)
    found = cluster(vectors, {**SETTINGS, "min_clusters": 6}, seed=0)
    assert found.candidates[:, 0].tolist() == list(tried)


def test_standardised_embeddings_show_groups_that_loud_dimensions_hide():
    """Two groups told apart by small dimensions only, beside two of a hundred times their size that say nothing."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 20)
    small = np.outer(truth, np.ones(8)) + 0.1 * rng.normal(size=(40, 8))
    vectors = np.hstack([100 * rng.normal(size=(40, 2)), small]).astype(np.float32)
    fixed = {**SETTINGS, "count": "fixed", "clusters": 2}
    assert adjusted_rand_score(truth, cluster(vectors, fixed, 0).labels) < 0.5
    found = cluster(vectors, {**fixed, "standardise": True}, 0)
    assert adjusted_rand_score(truth, found.labels) == 1.0
    z = (vectors - vectors.mean(0, dtype=np.float64)) / vectors.std(0, dtype=np.float64)
    np.testing.assert_allclose(found.linkage, linkage(z / np.linalg.norm(z, axis=1, keepdims=True), "ward"))


def test_a_threshold_cuts_at_that_height():
    vectors, truth = blobs([8, 8])
    merged = cluster(vectors, {**SETTINGS, "count": "threshold", "threshold": 100.0}, seed=0)
    apart = cluster(vectors, {**SETTINGS, "count": "threshold", "threshold": 1.0}, seed=0)
    assert len(set(merged.labels)) == 1
    assert adjusted_rand_score(truth, apart.labels) == 1.0


def test_length_of_an_embedding_does_not_matter():
    vectors, _ = blobs([7, 8, 9])
    scaled = vectors * np.random.default_rng(0).uniform(0.1, 10, (len(vectors), 1)).astype(np.float32)
    np.testing.assert_array_equal(cluster(vectors, SETTINGS, 0).labels, cluster(scaled, SETTINGS, 0).labels)


def test_true_attributes_where_given_and_clusters_where_hidden(tmp_path, data_set):
    table, truth = data_set
    labels, clusters = run(tmp_path)
    assert set(labels.loc[labels["machine"] == "valve", "origin"]) == {"attributes"}
    fan = labels[(labels["machine"] == "fan") & (labels["origin"] == "pseudo")]
    assert set(fan["domain"]) == {"source", "target"} and len(fan) == 16
    of_clip = dict(zip(table["clip_id"], truth, strict=True))
    source = fan[fan["domain"] == "source"]
    assert adjusted_rand_score(source["clip_id"].map(of_clip), source["label"]) == 1.0
    assert set(source["label"]).isdisjoint(fan.loc[fan["domain"] == "target", "label"])
    assert clusters["linkage/fan|source"].shape == (11, 4) and clusters["linkage/fan|target"].shape == (3, 4)
    assert clusters["clip_ids/fan|target"].tolist() == fan.loc[fan["domain"] == "target", "clip_id"].tolist()


def test_labels_are_dense_and_cover_training_and_clean_clips_only(tmp_path, data_set):
    labels, _ = run(tmp_path)
    assert sorted(set(labels["label"])) == list(range(labels["label"].nunique()))
    assert labels.groupby("label")["label_name"].nunique().max() == 1
    assert len(labels) == 2 * (16 + 1)
    assert not labels["clip_id"].str.contains("/test/").any()
    without, _ = run(tmp_path, supplemental=False)
    assert len(without) == 2 * 16


@pytest.mark.parametrize(("kind", "fan", "valve"), [
    ("attributes", 2, 4), ("domain", 2, 2), ("machine", 1, 1), ("clusters", 5, 5),
])  # fmt: skip
def test_the_kind_decides_the_classes_of_a_machine(tmp_path, data_set, kind, fan, valve):
    labels, _ = run(
        tmp_path, kind=kind, supplemental=False, count="fixed", clusters=3 if kind != "clusters" else 2
    )
    number = labels.groupby("machine")["label"].nunique()
    assert (number["fan"], number["valve"]) == ((fan, valve) if kind != "clusters" else (4, 4))


def test_one_tree_for_both_domains_when_asked(tmp_path, data_set):
    labels, clusters = run(tmp_path, per_domain=False)
    assert clusters["linkage/fan|all"].shape == (15, 4)
    assert set(labels["domain"].dropna()) == {"source", "target"}


def test_true_hidden_attributes_need_the_truth(tmp_path, data_set):
    with pytest.raises(InputError, match=r"hidden_attributes\.csv"):
        run(tmp_path, kind="hidden_attributes")
    table, _ = data_set
    truth = table.loc[table["machine"] == "fan", ["clip_id"]].assign(attribute_label="spd=9")
    truth.to_csv(tmp_path / "hidden.csv", index=False)
    labels, _ = run(tmp_path, kind="hidden_attributes", hidden=tmp_path / "hidden.csv")
    assert set(labels["origin"]) == {"attributes"}
    assert labels.loc[labels["machine"] == "fan", "label_name"].str.contains("spd=9").all()


def test_clips_of_further_data_sets_are_classes_of_their_own(tmp_path, data_set):
    clips_table(["valve", "pump"], hidden=("pump",)).to_parquet(tmp_path / "more.parquet")
    both = {"demo": tmp_path / "clips.parquet", "more": tmp_path / "more.parquet"}
    labels, _ = run(tmp_path, clips=both)
    own = set(labels.loc[labels["dataset"] == "demo", "label"])
    assert own.isdisjoint(labels.loc[labels["dataset"] == "more", "label"])
    pump = labels[labels["machine"] == "pump"]
    assert set(pump["origin"]) == {"domain"}
    more, _ = run(tmp_path, clips=both, additional_clips="normal")
    assert len(more) == len(labels) + 2


def test_sections_are_clustered_apart(tmp_path, data_set):
    table, _ = data_set
    table["section"] = np.where(np.arange(len(table)) % 2, "01", "00")
    table.to_parquet(tmp_path / "clips.parquet")
    _, clusters = run(tmp_path)
    groups = {name.removeprefix("linkage/") for name in clusters.files if name.startswith("linkage/")}
    assert groups == {
        f"fan|{section}|{domain}" for section in ("00", "01") for domain in ("source", "target")
    }


def test_the_same_input_gives_the_same_bytes(tmp_path, data_set):
    run(tmp_path, method="kmeans")
    first = (tmp_path / "labels.parquet").read_bytes()
    run(tmp_path, method="kmeans")
    assert (tmp_path / "labels.parquet").read_bytes() == first


def test_missing_embeddings_and_machines_without_clips_are_refused(tmp_path, data_set):
    with pytest.raises(InputError, match="has none"):
        run(tmp_path, embeddings={})
    write_embeddings(tmp_path / "few.h5", ["valve/train/00"], np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match="no embedding for 16 training clips"):
        run(tmp_path, embeddings={"demo": tmp_path / "few.h5"})
    table, _ = data_set
    table[(table["machine"] != "fan") | (table["split"] != "train")].to_parquet(tmp_path / "clips.parquet")
    with pytest.raises(InputError) as caught:
        run(tmp_path)
    assert caught.value.problems == ["machine fan"]
