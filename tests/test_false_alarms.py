"""The promise of the decision threshold: on made-up machines, new normal clips are called anomalous about as often as stated."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from asdflow.data.audio import read_audio
from asdflow.data.catalogue import build_catalogue, write_catalogue
from asdflow.data.synthetic import synthesize
from asdflow.detection.score import score
from asdflow.features.embeddings import write_embeddings
from asdflow.features.front_end import build_front_end
from scipy.stats import binom

RATE, PER_MACHINE = 0.1, 20
OPTIONS = {"snr_db": 0.0, "fault_db": [-9.0, 3.0], "hide_attributes": False}
SETTINGS = {
    "clip_seconds": 1.5,
    "counts": {"train_source": 60, "train_target": 10, "test": PER_MACHINE, "supplemental_clean": 0, "supplemental_noise": 0},
    "machines": {name: OPTIONS for name in ("bearing", "fan", "gearbox", "pump", "valve")},
}  # fmt: skip


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of five machines and their log-mel statistics."""
    folder = tmp_path_factory.mktemp("machines")
    synthesize(folder / "data", folder / "hidden.csv", SETTINGS, 2025, 1)
    clips, _ = build_catalogue(folder / "data", {"rules_of": 2025})
    clips = clips[(clips["split"] == "train") | (clips["condition"] == "normal")]
    write_catalogue(clips, folder / "clips.parquet")
    front_end = build_front_end("eat_logmel")
    frames = [front_end(torch.from_numpy(read_audio(path, {}))[None])[0] for path in clips["path"]]
    vectors = torch.stack([torch.cat([clip.mean(0), clip.std(0)]) for clip in frames])
    write_embeddings(folder / "embeddings.h5", clips["clip_id"].tolist(), vectors.numpy())
    return folder


@pytest.mark.parametrize("method", ["gamma", "quantile"])
def test_observed_false_alarms_of_the_source_domain_are_within_their_binomial_interval(
    machines: Path, method: str
) -> None:
    settings = {"backend": {"name": "knn"}, "decision": {"method": method, "false_alarm_rate": RATE}}
    score(machines / "clips.parquet", machines / "embeddings.h5", settings, 0, machines / method)
    scores = pd.read_parquet(machines / method / "scores.parquet")
    scored = scores.merge(pd.read_parquet(machines / "clips.parquet"), on="clip_id").query(
        "domain == 'source'"
    )
    alarms = scored.groupby("machine")["decision"].sum()
    low, high = binom.interval(0.95, PER_MACHINE, RATE)
    assert scored.groupby("machine").size().tolist() == [PER_MACHINE] * 5
    assert int(((alarms >= low) & (alarms <= high)).sum()) >= 4, alarms.to_dict()
    total_low, total_high = np.array(binom.interval(0.99, 5 * PER_MACHINE, RATE))
    assert total_low <= alarms.sum() <= total_high
