"""The official metrics: the shared values of every year, and what must hold for any scores."""

import json

import numpy as np
import pandas as pd
import pytest
from asdflow.detection import official_score
from asdflow.detection.official import combine, decision_metrics, harmonic_mean, official_metrics
from asdflow.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tests.conftest import SHARED, needs_shared

YEARS = ("2020", "2021", "2022", "2025")


def shared_table(year: str) -> pd.DataFrame:
    return pd.read_csv(SHARED / "scoring" / f"scores_{year}.csv", dtype={"section": str})


def lookup(metrics: pd.DataFrame, machine: str, section: str, metric: str) -> float:
    here = (metrics.machine == machine) & (metrics.section == section) & (metrics.metric == metric)
    return float(metrics.loc[here, "value"].item())


@needs_shared
@pytest.mark.parametrize("year", YEARS)
def test_every_shared_value_is_reproduced(year: str) -> None:
    expected = json.loads((SHARED / "scoring" / "expected.json").read_text())[year]
    metrics = official_metrics(shared_table(year), int(year))
    checked = 0
    for unit in expected["units"]:
        for metric in set(unit) - {"machine", "section"}:
            assert lookup(metrics, unit["machine"], unit["section"], metric) == pytest.approx(
                unit[metric], abs=1e-12
            )
            checked += 1
    assert checked == int(metrics.section.ne("").sum())
    for machine, means in expected.get("per_machine", {}).items():
        for metric, value in means.items():
            assert lookup(metrics, machine, "", f"mean_{metric}") == pytest.approx(value, abs=1e-12)
    for metric in ("mean_auc", "mean_pauc", "official_score"):
        if metric in expected:
            assert lookup(metrics, "", "", metric) == pytest.approx(expected[metric], abs=1e-12)
    if year != "2020":
        assert official_score(shared_table(year), int(year)) == pytest.approx(
            expected["official_score"], abs=1e-12
        )


@needs_shared
def test_the_official_score_of_2020_is_the_mean_of_its_two_published_numbers() -> None:
    expected = json.loads((SHARED / "scoring" / "expected.json").read_text())["2020"]
    mean = (expected["mean_auc"] + expected["mean_pauc"]) / 2
    assert official_score(shared_table("2020"), 2020) == pytest.approx(mean, abs=1e-12)


# AUC (source), AUC (target) and pAUC of bandsaw, grinder, shaker, ToyDrone, ToyNscale, ToyTank and Vacuum, and the official score:
# the official autoencoder on the 2023 evaluation data, as the challenge's evaluator publishes them.
PUBLISHED_2023 = {
    "MSE": (
        [0.6667348190554078, 0.706837186424004, 0.69428983714698, 0.7968000000000001, 0.77, 0.7212000000000001, 0.8816],
        [0.48287671232876717, 0.5516569200779727, 0.5604118104118104, 0.561, 0.4716, 0.6468, 0.45320000000000005],
        [0.5091087658743451, 0.5846166760294185, 0.5491654428600755, 0.5368421052631579, 0.5178947368421053, 0.5826315789473684,
         0.5947368421052631],
        0.5925469043549957,
    ),
    "Mahalanobis": (
        [0.836434267021059, 0.7409411378914575, 0.8476602762317048, 0.8130000000000001, 0.6678000000000002, 0.8011999999999999,
         0.8383999999999999],
        [0.5885844748858448, 0.50682261208577, 0.6299533799533801, 0.4622, 0.409, 0.4532, 0.9006],
        [0.5753594967896497, 0.5955291246149972, 0.6233307541280444, 0.5142105263157895, 0.5089473684210526, 0.5384210526315789,
         0.653157894736842],
        0.6105082186925268,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_2023)
def test_published_values_of_the_official_autoencoder_give_its_published_official_score(name: str) -> None:
    *lists, score = PUBLISHED_2023[name]
    values = {
        (f"machine_{number}", "00", metric): np.array([value])
        for metric, listed in zip(("auc_source", "auc_target", "pauc"), lists, strict=True)
        for number, value in enumerate(listed)
    }
    assert len(values) == 21
    assert combine(2023, values)[0] == pytest.approx(score, abs=1e-15)


def test_harmonic_mean_clamps_at_epsilon() -> None:
    epsilon = float(np.finfo(float).eps)
    assert harmonic_mean(np.array([0.5, 0.25, 0.0])) == pytest.approx(3 / (2 + 4 + 1 / epsilon), rel=1e-12)


SCORE = st.integers(-4, 4).map(float)  # few distinct values: ties everywhere


@st.composite
def section_tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = []
    for domain in ("source", "target"):
        for label in (0, 1):
            count = draw(st.integers(1, 12))
            rows += [("fan", "00", domain, label, draw(SCORE)) for _ in range(count)]
    return pd.DataFrame(rows, columns=["machine", "section", "domain", "label", "anomaly_score"])


@settings(max_examples=60, deadline=None)
@given(table=section_tables(), year=st.sampled_from([2020, 2021, 2022, 2026]))
def test_values_equal_scikit_learn_with_ties_counting_one_half(table: pd.DataFrame, year: int) -> None:
    metrics = official_metrics(table, year)
    for metric, value in metrics.loc[metrics.section == "00", ["metric", "value"]].itertuples(index=False):
        kind, _, domain = metric.partition("_")
        own = (table.domain == domain) if domain else pd.Series(True, index=table.index)
        here = own if year == 2021 else own | (table.label == 1)
        max_fpr = 0.1 if kind == "pauc" else None
        reference = roc_auc_score(table.label[here], table.anomaly_score[here], max_fpr=max_fpr)
        assert value == pytest.approx(reference, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(table=section_tables(), year=st.sampled_from([2020, 2021, 2025]), seed=st.integers(0, 2**32 - 1))
def test_order_of_rows_is_irrelevant(table: pd.DataFrame, year: int, seed: int) -> None:
    shuffled = table.sample(frac=1.0, random_state=seed)
    pd.testing.assert_frame_equal(
        official_metrics(table, year), official_metrics(shuffled, year), check_exact=True
    )


@settings(max_examples=40, deadline=None)
@given(table=section_tables(), year=st.sampled_from([2020, 2021, 2025]), scale=st.floats(1e-3, 1e3))
def test_a_strictly_increasing_map_of_the_scores_changes_nothing(
    table: pd.DataFrame, year: int, scale: float
) -> None:
    mapped = table.assign(anomaly_score=np.exp(scale**0.1 * table.anomaly_score) * scale - 7.0)
    pd.testing.assert_frame_equal(
        official_metrics(table, year), official_metrics(mapped, year), check_exact=True
    )


@settings(max_examples=20, deadline=None)
@given(table=section_tables(), year=st.sampled_from([2020, 2021, 2025]))
def test_equal_scores_everywhere_are_chance(table: pd.DataFrame, year: int) -> None:
    assert official_score(table.assign(anomaly_score=0.25), year) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("year", "gone", "words"),
    [
        (2020, "label == 1", "auc has no anomaly clip"),
        (2021, "label == 0 and domain == 'target'", "pauc_target has no normal clip"),
        (2025, "label == 0 and domain == 'source'", "auc_source has no normal clip"),
        (2025, "label == 1", "pauc has no anomaly clip"),
    ],
)
def test_a_section_without_one_class_is_an_error_that_names_it(year: int, gone: str, words: str) -> None:
    rng = np.random.default_rng(1)
    rows = [
        (machine, "03", domain, label, rng.normal())
        for machine in ("fan", "valve")
        for domain in ("source", "target")
        for label in (0, 1)
        for _ in range(4)
    ]
    table = pd.DataFrame(rows, columns=["machine", "section", "domain", "label", "anomaly_score"])
    broken = table.drop(table.query(f"({gone}) and machine == 'valve'").index)
    with pytest.raises(InputError) as caught:
        official_score(broken, year)
    assert f"machine valve, section 03: {words}" in str(caught.value)
    assert "machine fan" not in str(caught.value)
    assert 0 < official_score(table, year) < 1


def test_scores_that_are_no_numbers_are_named_all_at_once() -> None:
    table = pd.DataFrame(
        {
            "machine": ["fan", "fan", "valve", "valve"],
            "section": "00",
            "domain": "source",
            "label": [0, 1, 0, 2],
            "anomaly_score": [np.nan, 1.0, np.inf, 0.0],
        }
    )
    with pytest.raises(InputError) as caught:
        official_score(table, 2025)
    assert {line.split(":")[0] for line in caught.value.problems} == {
        "label",
        "machine fan, section 00",
        "machine valve, section 00",
    }


def test_decisions_are_judged_on_the_domains_own_clips() -> None:
    table = pd.DataFrame(
        {
            "domain": ["source"] * 4 + ["target"] * 4,
            "label": [0, 0, 1, 1, 0, 0, 1, 1],
            "decision": [0, 1, 1, 1, 0, 0, 0, 0],
            "anomaly_score": 0.0,
        }
    )
    found = decision_metrics(table, 2025)
    assert found["precision_source"] == pytest.approx(2 / 3)
    assert found["recall_source"] == 1.0
    assert found["f1_source"] == pytest.approx(0.8)
    assert found["precision_target"] == found["recall_target"] == found["f1_target"] == 0.0
    assert decision_metrics(table, 2020)["recall"] == 0.5
