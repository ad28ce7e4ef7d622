"""The score stage: its files, its thresholds, its memory, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from asdflow.detection.detector import Detector
from asdflow.detection.ensemble import ensemble
from asdflow.detection.score import score
from asdflow.errors import InputError
from asdflow.features.embeddings import write_embeddings
from asdflow.training.material import held_out_clips
from scipy.stats import binom

SETTINGS: dict[str, Any] = {
    "backend": {"name": "knn", "neighbours": 1},
    "decision": {"method": "quantile", "false_alarm_rate": 0.1},
}


def catalogue(
    rng: np.random.Generator, machines: dict[str, list[str]], target: int = 10
) -> tuple[pd.DataFrame, np.ndarray]:
    """Clips of machines -> sections, and embeddings in which anomalies lie off the normal clips."""
    rows, vectors = [], []
    for machine, sections in machines.items():
        centre = rng.normal(size=8) * 3
        for section in sections:
            for split, condition, domain, count in [
                ("train", "normal", "source", 60), ("train", "normal", "target", target),
                ("test", "normal", "source", 30), ("test", "normal", "target", 30),
                ("test", "anomaly", "source", 15), ("test", "anomaly", "target", 15),
            ]:  # fmt: skip
                for number in range(count):
                    stem = f"section_{section}_{domain}_{split}_{condition}_{number:04d}"
                    rows.append(
                        (
                            f"{machine}/{split}/{stem}",
                            machine,
                            section,
                            domain,
                            split,
                            condition,
                            '{"vel": "8"}',
                        )
                    )
                    shift = (domain == "target") * 2.0 + (condition == "anomaly") * np.r_[np.zeros(7), 4.0]
                    vectors.append(centre + shift + rng.normal(size=8) * 0.5)
    columns = ["clip_id", "machine", "section", "domain", "split", "condition", "attributes"]
    return pd.DataFrame(rows, columns=columns), np.array(vectors, dtype=np.float32)


def run_score(
    folder: Path, clips: pd.DataFrame, vectors: np.ndarray, settings: dict[str, Any] = SETTINGS
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    clips.to_parquet(folder / "clips.parquet")
    write_embeddings(folder / "embeddings.h5", clips["clip_id"].tolist(), vectors)
    score(folder / "clips.parquet", folder / "embeddings.h5", settings, 0, folder / "out")
    return folder / "out"


@pytest.fixture
def scored(tmp_path: Path) -> tuple[pd.DataFrame, np.ndarray, Path]:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"], "valve": ["00"]})
    return clips, vectors, run_score(tmp_path, clips, vectors)


def test_every_test_clip_and_every_training_clip_gets_one_score(
    scored: tuple[pd.DataFrame, np.ndarray, Path],
) -> None:
    clips, _, out = scored
    scores, train = pd.read_parquet(out / "scores.parquet"), pd.read_parquet(out / "train_scores.parquet")
    assert list(scores.columns) == ["clip_id", "anomaly_score", "decision"]
    assert list(train.columns) == ["clip_id", "anomaly_score"]
    assert scores["clip_id"].tolist() == clips.loc[clips.split == "test", "clip_id"].tolist()
    assert train["clip_id"].tolist() == clips.loc[clips.split == "train", "clip_id"].tolist()
    assert np.isfinite(scores["anomaly_score"]).all() and set(scores["decision"]) == {0, 1}


def test_anomalies_score_higher_and_the_observed_false_alarm_rate_is_near_the_expected(
    scored: tuple[pd.DataFrame, np.ndarray, Path],
) -> None:
    clips, _, out = scored
    table = pd.read_parquet(out / "scores.parquet").merge(clips, on="clip_id")
    medians = table.groupby("condition")["anomaly_score"].median()
    assert medians["anomaly"] > 1.5 * medians["normal"]
    false_alarms = table.loc[(table.condition == "normal") & (table.domain == "source"), "decision"].mean()
    assert false_alarms < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 60)


def test_a_threshold_from_held_out_clips_keeps_its_rate_where_training_clips_lie_closer_than_new_ones(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(4)
    clips, vectors = catalogue(rng, {f"machine_{k}": ["00"] for k in range(8)}, target=3)
    training = clips["split"] == "train"
    learnt = training & ~clips["clip_id"].isin(held_out_clips(clips[training], 0.3))
    # what a classifier does to the clips that it has learnt: each is pulled halfway to its domain's centre
    for _, rows in clips[training].groupby(["machine", "domain"]).groups.items():
        own = rows[learnt[rows]]
        vectors[own] = 0.5 * vectors[own] + 0.5 * vectors[own].mean(0)
    settings = {**SETTINGS, "decision": {"method": "gamma", "false_alarm_rate": 0.1}}
    observed = {}
    for share in (0.0, 0.3):
        out = run_score(tmp_path / str(share), clips, vectors, {**settings, "held_out": share})
        table = pd.read_parquet(out / "scores.parquet").merge(clips, on="clip_id")
        observed[share] = table.loc[
            (table.condition == "normal") & (table.domain == "source"), "decision"
        ].mean()
    low, high = np.array(binom.interval(0.99, 8 * 30, 0.1)) / (8 * 30)
    assert observed[0.0] > 1.5 * high
    assert low <= observed[0.3] <= high


def test_too_few_held_out_clips_leave_the_threshold_to_all_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"]})
    out = run_score(tmp_path / "few", clips, vectors, {**SETTINGS, "held_out": 0.1})
    assert "6 clips held out" not in caplog.text  # 6 of the source and 1 of the target domain
    assert "7 clips held out of tuning are too few" in caplog.text
    whole = run_score(tmp_path / "all", clips, vectors)
    assert (out / "detector" / "memory.safetensors").read_bytes() == (
        whole / "detector" / "memory.safetensors"
    ).read_bytes()
    thresholds = [
        json.loads((folder / "detector" / "detector.json").read_text())["units"][0]["threshold"]
        for folder in (out, whole)
    ]
    assert thresholds[0] == thresholds[1]


def test_a_loaded_detector_gives_the_scores_of_the_stage_and_knows_its_clips(
    scored: tuple[pd.DataFrame, np.ndarray, Path],
) -> None:
    clips, vectors, out = scored
    detector = Detector.load(out / "detector")
    scores = pd.read_parquet(out / "scores.parquet").set_index("clip_id")["anomaly_score"]
    chosen = ((clips.split == "test") & (clips.machine == "valve")).to_numpy()
    unit = detector.unit("valve")
    found = unit.score(torch.from_numpy(vectors[chosen]))
    assert found.anomaly_score.tolist() == pytest.approx(
        scores[clips.loc[chosen, "clip_id"]].tolist(), abs=1e-5
    )
    assert all(unit.clip_ids[i].startswith("valve/train/") for i in found.nearest.tolist())
    assert json.loads(unit.attributes[0]) == {"vel": "8"}
    assert {path.suffix for path in (out / "detector").iterdir()} == {".json", ".safetensors"}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"]})
    settings = {"backend": {"name": "knn", "smote": {"ratio": 0.5, "neighbours": 3}}}
    first, second = (run_score(tmp_path / n, clips, vectors, settings) for n in ("a", "b"))
    for name in (
        "scores.parquet",
        "train_scores.parquet",
        "detector/memory.safetensors",
        "detector/detector.json",
    ):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_sections_have_their_own_memory_and_a_section_without_training_clips_gets_the_machines(
    tmp_path: Path,
) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["id_00", "id_02", "id_04"]})
    kept = ~((clips.section == "id_04") & (clips.split == "train")).to_numpy()
    out = run_score(tmp_path, clips[kept], vectors[kept])
    detector = Detector.load(out / "detector")
    assert detector.sections("fan") == ["id_00", "id_02"]
    assert len(detector.unit("fan", "id_00").clip_ids) == 70
    assert len(detector.unit("fan", "id_04").clip_ids) == 140
    with pytest.raises(InputError, match="2 sections"):
        detector.unit("fan")
    with pytest.raises(InputError, match="'pump' is unknown"):
        detector.unit("pump")


def test_clips_without_a_domain_are_one_memory(tmp_path: Path) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"]})
    out = run_score(tmp_path, clips.assign(domain=None), vectors)
    assert len(pd.read_parquet(out / "scores.parquet")) == 90


def test_everything_that_is_missing_is_named(tmp_path: Path) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"], "valve": ["00"]})
    clips.to_parquet(tmp_path / "clips.parquet")
    write_embeddings(tmp_path / "embeddings.h5", clips["clip_id"].tolist()[1:], vectors[1:])
    with pytest.raises(InputError) as caught:
        score(tmp_path / "clips.parquet", tmp_path / "embeddings.h5", SETTINGS, 0, tmp_path / "out")
    assert clips["clip_id"].iloc[0] in str(caught.value)
    few = ~((clips.machine == "valve") & (clips.split == "train")).to_numpy()
    with pytest.raises(InputError) as caught:
        run_score(tmp_path / "few", clips[few], vectors[few])
    assert "machine valve: no normal training clip" in caught.value.problems
    assert not (tmp_path / "out").exists()


def test_an_embedding_that_is_no_number_is_named(tmp_path: Path) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"]})
    vectors[5, 2] = np.nan
    with pytest.raises(InputError) as caught:
        run_score(tmp_path, clips, vectors)
    assert clips["clip_id"].iloc[5] in caught.value.problems[0]


def test_an_ensemble_is_the_mean_of_scores_standardised_by_training_scores(tmp_path: Path) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"], "valve": ["00"]})
    first = run_score(tmp_path / "a", clips, vectors)
    second = run_score(tmp_path / "b", clips, vectors, {"backend": {"name": "mahalanobis"}})
    ensemble(tmp_path / "a" / "clips.parquet", [first, second], {"method": "quantile"}, tmp_path / "out")
    found = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert found["clip_id"].tolist() == pd.read_parquet(first / "scores.parquet")["clip_id"].tolist()
    expected = np.zeros(90)
    for run in (first, second):
        train = pd.read_parquet(run / "train_scores.parquet").query("clip_id.str.startswith('fan')")[
            "anomaly_score"
        ]
        test = pd.read_parquet(run / "scores.parquet").query("clip_id.str.startswith('fan')")["anomaly_score"]
        expected = expected + (test.to_numpy() - train.mean()) / train.std(ddof=0) / 2
    fan = found[found["clip_id"].str.startswith("fan")]
    assert fan["anomaly_score"].to_numpy() == pytest.approx(expected)
    assert set(fan["decision"]) == {0, 1}
    assert len(pd.read_parquet(tmp_path / "out" / "train_scores.parquet")) == 140


def test_an_ensemble_of_runs_on_other_clips_is_refused(tmp_path: Path) -> None:
    clips, vectors = catalogue(np.random.default_rng(0), {"fan": ["00"]})
    first = run_score(tmp_path / "a", clips, vectors)
    second = run_score(tmp_path / "b", clips.iloc[:-1], vectors[:-1])
    with pytest.raises(InputError, match="the same clips"):
        ensemble(tmp_path / "a" / "clips.parquet", [first, second], {}, tmp_path / "out")
