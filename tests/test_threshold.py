"""Decision thresholds: what they promise of normal clips, on scores whose law is known."""

import numpy as np
import pytest
from asdflow.detection.threshold import DecisionThreshold, fit_gamma, fit_threshold
from asdflow.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats


@pytest.mark.parametrize("method", ["gamma", "quantile"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_the_expected_false_alarm_rate_is_what_new_normal_clips_show(method: str, rate: float) -> None:
    rng = np.random.default_rng(3)
    fitted = fit_threshold(rng.gamma(6.0, 0.1, 990), {"method": method, "false_alarm_rate": rate})
    observed = float(np.mean(rng.gamma(6.0, 0.1, 100_000) > fitted.threshold))
    assert fitted.expected_false_alarm_rate == pytest.approx(rate, abs=1 / 990)
    assert observed == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 990))


def test_the_gamma_fit_has_the_greatest_likelihood() -> None:
    scores = np.random.default_rng(0).gamma(3.0, 0.2, 500)
    shape, scale = fit_gamma(scores)
    reference, _, reference_scale = stats.gamma.fit(scores, floc=0)
    assert (shape, scale) == (pytest.approx(reference, rel=1e-5), pytest.approx(reference_scale, rel=1e-5))


def test_a_quantile_of_few_clips_says_what_it_cannot_promise() -> None:
    fitted = fit_threshold([0.1, 0.2, 0.4, 0.3], {"method": "quantile", "false_alarm_rate": 0.1})
    assert fitted.threshold == 0.4
    assert fitted.expected_false_alarm_rate == pytest.approx(1 / 5)
    assert fitted.at_rate(0.01) >= 0.4


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(0.0, 5.0), min_size=3, max_size=60),
    method=st.sampled_from(["gamma", "quantile"]),
    rate=st.floats(0.02, 0.5),
)
def test_higher_scores_never_mean_more_false_alarms(scores: list[float], method: str, rate: float) -> None:
    fitted = fit_threshold(scores, {"method": method, "false_alarm_rate": rate})
    grid = np.linspace(0.0, 6.0, 50)
    alarms = fitted.false_alarms_at(grid)
    assert (np.diff(alarms) <= 1e-12).all()
    assert ((alarms >= 0) & (alarms <= 1)).all()
    assert np.isfinite(fitted.threshold)


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.floats(0.01, 5.0), min_size=10, max_size=60, unique=True), rate=st.floats(0.1, 0.5))
def test_deciding_by_threshold_and_by_expected_rate_agree_for_quantiles(
    scores: list[float], rate: float
) -> None:
    fitted = fit_threshold(scores, {"method": "quantile", "false_alarm_rate": rate})
    for score in [*scores, 5.5]:
        if score > fitted.threshold:
            assert fitted.false_alarms_at([score])[0] <= rate + 1e-9


def test_a_threshold_survives_json() -> None:
    fitted = fit_threshold([0.1, 0.2, 0.4, 0.3], {"method": "quantile", "false_alarm_rate": 0.2})
    assert DecisionThreshold.from_dict(fitted.to_dict()) == fitted


def test_equal_scores_give_a_threshold_just_above_them() -> None:
    fitted = fit_threshold([0.5] * 20, {})
    assert 0.5 < fitted.threshold < 0.51


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(InputError) as caught:
        fit_threshold([0.1, 0.2, 0.3], {"method": "normal", "false_alarm_rate": 1.5})
    assert len(caught.value.problems) == 2
