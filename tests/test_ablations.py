"""Ablation tables: every row becomes a system, mistakes are refused, and a grid shares every stage that its cells agree in."""

import copy

import pytest
from asdflow.configuration import load_configuration, merge, read_yaml
from asdflow.errors import InputError

from tests.conftest import REPOSITORY
from tests.workflow import planned, snakemake

CONFIG = read_yaml(REPOSITORY / "config.yaml")
TABLE = {
    "base": "attribute_aware",
    "parts": [
        {"part": "labels", "options": {"ward": {}, "average": {"labels": {"method": "average"}}}},
        {"part": "back end", "options": {"near": {}, "far": {"backend": {"name": "mahalanobis"}}}},
    ],
}
GRID = """
run: {systems: [attribute_aware], seeds: [0, 1]}
encoders: {eat_small_random: {pooling: {kind: mean_deviation}}}
ensembles: {}
ablations:
  grid:
    base: attribute_aware
    parts:
      - part: adaptation
        options: {with: {}, without: {encoder: eat_small_random}}
      - part: pseudo labels
        options: {with: {}, without: {labels: {kind: attributes}}}
      - part: back end
        options:
          nearest: {}
          density: {backend: {normalisation: local_density}}
          memory: {backend: {per_domain: false}}
          smote: {backend: {smote: {ratio: 0.2}}}
          k-means: {backend: {name: kmeans, metric: euclidean}}
          mahalanobis: {backend: {name: mahalanobis}}
"""


def resolved(table=TABLE, **further):
    return load_configuration(merge(CONFIG, {"ablations": {"T": table}, **further}), REPOSITORY)


def test_every_row_is_the_base_with_its_options_laid_over_it():
    config = resolved()
    rows = ["T_ward_near", "T_ward_far", "T_average_near", "T_average_far"]
    assert config["run"]["systems"] == [*CONFIG["run"]["systems"], *rows]
    base, far = config["systems"]["attribute_aware"], config["systems"]["T_average_far"]
    assert far["labels"] == {**base["labels"], "method": "average"}
    assert far["backend"] == {
        "name": "mahalanobis",
        "shrinkage": "ledoit_wolf",
        "per_domain": True,
        "standardise": False,
    }
    assert far["tuning"] == base["tuning"]
    assert {**config["systems"]["T_ward_near"], "title": ""} == {**base, "title": ""}


def test_a_table_may_name_its_rows_and_leaves_the_baseline_alone():
    config = resolved({**TABLE, "rows": [["average", "near"]]})
    assert config["run"]["baseline"] == CONFIG["run"]["systems"][-1]
    assert config["run"]["systems"][len(CONFIG["run"]["systems"]) :] == ["T_average_near"]


def test_the_record_of_a_run_makes_the_same_run_again():
    once = resolved()
    assert load_configuration(copy.deepcopy(once), REPOSITORY) == once


@pytest.mark.parametrize(("change", "said"), [
    ({"rows": [["average"]]}, "1 options for 2 parts"),
    ({"rows": [["near", "ward"]]}, "labels has no option 'near'; it has ward, average"),
    ({"parts": [{"part": "x", "options": {"a/b": {}}}]}, "'a/b' becomes part of a folder's name"),
    ({"base": "attribute_awar"}, "did you mean 'attribute_aware'"),
    ({"parts": [{"part": "x", "options": {"a": {"tuning": {"stepz": 1}}}}]}, "unknown key 'stepz'; did you mean 'steps'"),
])  # fmt: skip
def test_a_table_that_does_not_hold_together_is_refused(change, said):
    with pytest.raises(InputError) as caught:
        resolved({**TABLE, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(("ensembles", "said"), [
    ({"frozen": {"systems": ["attribute_aware", "logmel_knn"]}}, "ensembles.frozen: is also the name of a system"),
    ({"two": {"systems": ["attribute_aware", "winner_2025"]}}, "'winner_2025' is not in run.systems"),
])  # fmt: skip
def test_an_ensemble_of_what_the_run_has_not_is_refused(ensembles, said):
    with pytest.raises(InputError) as caught:
        load_configuration(merge(CONFIG, {"ensembles": ensembles}), REPOSITORY)
    assert said in str(caught.value)


def test_a_grid_of_24_cells_plans_each_shared_stage_once(tmp_path):
    overlay = tmp_path / "grid.yaml"
    overlay.write_text(GRID)
    done = snakemake(tmp_path, "--dry-run", overlays=[overlay])
    assert done.returncode == 0, done.stdout[-3000:]
    jobs = planned(done.stdout)
    assert jobs["pretrain"] == 1
    assert jobs["extract_features"] == 6  # one front end, six machines
    assert jobs["label"] == 4  # two encoders, with and without pseudo labels
    assert jobs["finetune"] == 4 * 2  # those four, two seeds; the six back ends share them
    assert jobs["score"] == 25 * 2  # 24 cells and the base, two seeds


def test_two_systems_train_apart_as_soon_as_one_key_of_the_training_differs(tmp_path):
    overlay = tmp_path / "two.yaml"
    overlay.write_text(
        "run: {systems: [attribute_aware, other], seeds: [0, 1]}\n"
        "systems: {other: {like: attribute_aware, objective: {arcface: {margin: 0.25}}}}\n"
    )
    jobs = planned(snakemake(tmp_path, "--dry-run", overlays=[overlay]).stdout)
    assert (jobs["finetune"], jobs["label"]) == (4, 1)


def test_both_scores_of_the_official_autoencoder_come_from_one_training(tmp_path):
    overlay = tmp_path / "two.yaml"
    overlay.write_text("run: {systems: [autoencoder_mse, autoencoder_mahalanobis], seeds: [0, 1]}\n")
    jobs = planned(snakemake(tmp_path, "--dry-run", overlays=[overlay]).stdout)
    assert (jobs["finetune"], jobs["score"]) == (2, 4)
