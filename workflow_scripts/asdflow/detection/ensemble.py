"""Ensembles of systems: the mean of their standardised scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asdflow.detection.threshold import fit_threshold
from asdflow.errors import InputError
from asdflow.tables import read_parquet, write_parquet

UNIT = ["machine", "section"]


def ensemble(clips: Path, members: Sequence[Path], decision: Mapping[str, Any], output: Path) -> None:
    """Write scores.parquet and train_scores.parquet of an ensemble into `output`, in the form of the score stage.

    Parameters
    ----------
    clips : clips.parquet of the data set.
    members : folders of runs, each with scores.parquet and train_scores.parquet of the same clips.
    decision : the settings of the decision threshold.

    Per machine and section each member's scores are standardised by mean and deviation of its own leave-one-out training
    scores, so that no test clip takes part; then their mean is taken. Raises InputError for members of other clips and for
    fewer than two members.
    """
    if len(members) < 2:
        raise InputError(f"an ensemble of {len(members)} member(s)", remedy="name at least two systems")
    table = read_parquet(clips)[["clip_id", *UNIT]]
    train = _joined(table, [Path(member) / "train_scores.parquet" for member in members])
    test = _joined(table, [Path(member) / "scores.parquet" for member in members])
    train_means, test_means = [], []
    for key, rows in test.groupby(UNIT):
        own = train[(train["machine"] == key[0]) & (train["section"] == key[1])]
        own = own if len(own) > 1 else train[train["machine"] == key[0]]
        names = list(range(len(members)))
        centre, spread = own[names].mean(), own[names].std(ddof=0).clip(lower=1e-12)
        train_mean = ((own[names] - centre) / spread).mean(axis=1)
        mean = ((rows[names] - centre) / spread).mean(axis=1)
        limit = _limit(train_mean.to_numpy(), decision)
        test_means.append(
            pd.DataFrame(
                {
                    "clip_id": rows["clip_id"],
                    "anomaly_score": mean,
                    "decision": (mean > limit).astype("int64"),
                }
            )
        )
        train_means.append(pd.DataFrame({"clip_id": own["clip_id"], "anomaly_score": train_mean}))
    for name, parts, order in (("scores", test_means, test), ("train_scores", train_means, train)):
        whole = pd.concat(parts).drop_duplicates("clip_id").set_index("clip_id")
        kept = [clip_id for clip_id in order["clip_id"] if clip_id in whole.index]
        write_parquet(whole.loc[kept].reset_index(), Path(output) / f"{name}.parquet")


def _limit(training: np.ndarray, decision: Mapping[str, Any]) -> float:
    """The decision threshold of standardised scores; they are made positive for the gamma fit and shifted back."""
    shift = 1.0 - float(training.min())
    return fit_threshold(training + shift, decision).threshold - shift


def _joined(table: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """Clips with one column of scores a member, numbered; raises InputError when members scored other clips."""
    scores = [read_parquet(path).set_index("clip_id")["anomaly_score"] for path in paths]
    first = set(scores[0].index)
    differing = [
        f"{path}: other clips than {paths[0]}"
        for path, one in zip(paths, scores, strict=True)
        if set(one.index) != first
    ]
    if differing:
        raise InputError(
            "members of an ensemble must score the same clips",
            differing,
            "run the score stage of all members again",
        )
    joined = pd.concat(scores, axis=1, keys=range(len(scores))).reset_index()
    return table.merge(joined, on="clip_id", how="inner", validate="one_to_one")
