"""Decision thresholds from normal training scores alone: a gamma fit or a quantile, and the false-alarm rate they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from asdflow.errors import InputError

Floats = npt.NDArray[np.float64]
METHODS = ("gamma", "quantile")
DEFAULTS = {"method": "gamma", "false_alarm_rate": 0.1}


@dataclass(frozen=True)
class DecisionThreshold:
    """What a score is worth against the scores of normal training clips.

    Attributes
    ----------
    method : `gamma` (maximum likelihood at location 0, as the official baseline fits its scores) or `quantile` (order
        statistic of the training scores: the conformal rank (Vovk et al., 2005)).
    false_alarm_rate : the share of normal clips that may be called anomalous, as configured.
    threshold : a score above it is decided to be an anomaly.
    expected_false_alarm_rate : what the threshold really promises; with few clips a quantile cannot promise less than
        1 / (n + 1).
    shape, scale : of the gamma distribution.
    training_scores : ascending leave-one-out scores of the normal training clips.
    """

    method: str
    false_alarm_rate: float
    threshold: float
    expected_false_alarm_rate: float
    shape: float
    scale: float
    training_scores: tuple[float, ...]

    def false_alarms_at(self, scores: npt.ArrayLike) -> Floats:
        """Share of normal clips expected to score as high as each of `scores` or higher, float64 [m].

        By the gamma fit, or by rank: (1 + number of training scores as high) / (n + 1). Above the highest training score,
        where every rank is the same, a quantile takes the gamma fit's tail if that is smaller (ours).
        """
        values = np.asarray(scores, dtype=np.float64)
        if self.method == "gamma":
            return gamma_above(values, self.shape, self.scale)
        training = np.asarray(self.training_scores)
        as_high = len(training) - np.searchsorted(training, values, side="left")
        by_rank = (1 + as_high) / (len(training) + 1)
        tail = gamma_above(values, self.shape, self.scale)
        return np.asarray(np.where(as_high == 0, np.minimum(by_rank, tail), by_rank), dtype=np.float64)

    def at_rate(self, rate: float) -> float:
        """The threshold for another false-alarm rate.

        Rates below 1 / (n + 1), which no rank can promise, are read from the tail of the gamma fit, but never give less than
        the highest training score (ours).
        """
        training = np.asarray(self.training_scores)
        if self.method == "gamma":
            return gamma_limit(rate, self.shape, self.scale)
        if rate >= 1 / (len(training) + 1):
            return float(training[conformal_rank(len(training), rate) - 1])
        return max(float(training[-1]), gamma_limit(rate, self.shape, self.scale))

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return {**asdict(self), "training_scores": list(self.training_scores)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The threshold that `to_dict` gave."""
        return cls(**{**values, "training_scores": tuple(values["training_scores"])})


def percent(share: float) -> str:
    """A share of normal recordings as people read it; training clips are too few to tell very small ones apart."""
    return "less than 0.1%" if share < 0.001 else f"{share:.1%}"


def conformal_rank(n: int, rate: float) -> int:
    """The rank k in 1 ... n so that a new normal score exceeds the k-th of n with probability at most `rate`, if any does."""
    return min(n, int(np.ceil((n + 1) * (1 - rate) - 1e-9)))


def fit_gamma(scores: Floats) -> tuple[float, float]:
    """Shape and scale of the gamma distribution of greatest likelihood at location 0.

    Scores at or below zero (doubled clips) count as a millionth of the mean. Equal scores, whose likelihood grows without
    bound, give the shape 1e6.
    """
    mean = max(float(np.mean(scores)), 1e-12)
    positive = np.maximum(scores, mean * 1e-6)
    mean = float(np.mean(positive))
    gap = np.log(mean) - float(np.mean(np.log(positive)))
    if gap <= 5e-7:
        return 1e6, mean / 1e6
    from scipy.optimize import brentq

    shape = float(brentq(lambda k: np.log(k) - special.digamma(k) - gap, 1e-3, 1e7))
    return shape, mean / shape


def gamma_above(values: Floats, shape: float, scale: float) -> Floats:
    """Probability that a gamma distributed score exceeds each of `values` [m]."""
    return np.asarray(special.gammaincc(shape, np.maximum(values, 0.0) / scale), dtype=np.float64)


def gamma_limit(rate: float, shape: float, scale: float) -> float:
    """The score that a gamma distributed score exceeds with probability `rate`."""
    return float(special.gammainccinv(shape, rate)) * scale


def fit_threshold(
    training_scores: Sequence[float] | Floats, settings: Mapping[str, Any]
) -> DecisionThreshold:
    """Fit the decision threshold of one machine on its normal training clips' leave-one-out scores.

    Parameters
    ----------
    training_scores : float [n].
    settings : `method` (gamma, quantile) and `false_alarm_rate` in (0, 1); defaults gamma and 0.1.

    Raises InputError for an unknown method or a rate out of range.
    """
    chosen = {**DEFAULTS, **settings}
    rate = float(chosen["false_alarm_rate"])
    problems = (
        []
        if chosen["method"] in METHODS
        else [f"method: {chosen['method']!r} is none of {', '.join(METHODS)}"]
    )
    problems += [] if 0 < rate < 1 else [f"false_alarm_rate: {rate} is not between 0 and 1"]
    if problems:
        raise InputError("the decision settings are wrong", problems, "see configs/systems/ for examples")
    scores = np.sort(np.asarray(training_scores, dtype=np.float64))
    shape, scale = fit_gamma(scores)
    expected, threshold = rate, gamma_limit(rate, shape, scale)
    if chosen["method"] == "quantile":
        rank = conformal_rank(len(scores), rate)
        expected, threshold = (len(scores) - rank + 1) / (len(scores) + 1), float(scores[rank - 1])
    return DecisionThreshold(
        chosen["method"], rate, threshold, expected, shape, scale, tuple(scores.tolist())
    )
