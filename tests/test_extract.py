"""Feature extraction: reproducible, streaming, and plain about recordings that cannot be used."""

import hashlib
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from asdflow.data.audio import read_audio
from asdflow.errors import InputError
from asdflow.features.extract import extract_features
from asdflow.features.front_end import build_front_end
from asdflow.features.store import FeatureStore

AUDIO = {"sample_rate": 16000, "resample": True, "channel": "mean"}


def record(folder, name, samples, rate=16000, subtype="PCM_16"):
    """Write a recording and return its catalogue row."""
    path = folder / name
    soundfile.write(path, samples, rate, subtype=subtype)
    return {
        "clip_id": f"fan/train/{path.stem}",
        "path": str(path),
        "n_samples": len(samples),
        "sample_rate": rate,
    }


def noise(seconds=0.5, seed=0, rate=16000):
    return np.random.default_rng(seed).normal(scale=0.1, size=int(seconds * rate))


@pytest.fixture
def clips(tmp_path):
    rows = [record(tmp_path, f"{k}.wav", noise(0.3 + 0.1 * (k % 3), seed=k)) for k in range(7)]
    rows.append(record(tmp_path, "7.flac", noise(seed=7)))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("front_end", ["eat_logmel", "stft"])
def test_every_clip_has_the_frames_of_its_front_end_in_half_precision(clips, tmp_path, front_end):
    extract_features(clips, front_end, AUDIO, tmp_path / "fan.h5", workers=1)
    store = FeatureStore({"a": [tmp_path / "fan.h5"]})
    assert store.front_end == front_end
    assert store.index["clip_id"].tolist() == clips["clip_id"].tolist()
    for item, path in enumerate(clips["path"]):
        samples = torch.from_numpy(read_audio(path, AUDIO))
        expected = build_front_end(front_end)(samples[None])[0].half().numpy()
        assert np.array_equal(store.frames(item), expected)


def test_the_bytes_do_not_depend_on_the_number_of_workers(clips, tmp_path):
    digests = set()
    for workers in (1, 2, 3, 20):
        extract_features(clips, "eat_logmel", AUDIO, tmp_path / "fan.h5", workers)
        digests.add(hashlib.sha256((tmp_path / "fan.h5").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_number_of_torch_threads_is_given_back(clips, tmp_path):
    before = torch.get_num_threads()
    extract_features(clips, "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=2)
    assert torch.get_num_threads() == before


def test_equal_recordings_have_equal_content_hashes_whatever_their_format(tmp_path):
    samples, other = ((noise(seed=seed) * 32768).astype(np.int16) for seed in (0, 1))
    rows = [record(tmp_path, name, samples) for name in ("a.wav", "b.flac")] + [
        record(tmp_path, "c.wav", other)
    ]
    extract_features(pd.DataFrame(rows), "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=1)
    a, b, c = FeatureStore({"a": [tmp_path / "fan.h5"]}).index["content_hash"]
    assert a == b == hashlib.sha256(read_audio(rows[0]["path"], AUDIO).tobytes()).hexdigest()
    assert c != a


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_sample_rates_fill_the_frames_that_their_length_promises(tmp_path, rate):
    rows = [record(tmp_path, f"{k}.wav", noise(0.5 + 0.0037 * k, seed=k, rate=rate), rate) for k in range(5)]
    extract_features(pd.DataFrame(rows), "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=1)
    store = FeatureStore({"a": [tmp_path / "fan.h5"]})
    for item, row in enumerate(rows):
        expected = 1 + (round(row["n_samples"] * 16000 / rate) - 400) // 160
        assert store.index["n_frames"].iloc[item] == expected
        assert np.isfinite(store.frames(item)).all()


def test_all_unusable_recordings_are_listed_and_no_file_is_left(clips, tmp_path):
    broken = noise()
    broken[1234] = np.nan
    rows = [record(tmp_path, "nan.wav", broken, subtype="FLOAT"), record(tmp_path, "long.wav", noise())]
    broken[1234] = np.inf
    rows += [record(tmp_path, "inf.wav", broken, subtype="FLOAT"), record(tmp_path, "text.wav", noise())]
    (tmp_path / "text.wav").write_text("no sound")
    rows[1]["n_samples"] -= 1000  # the file was replaced after the catalogue was made
    output = tmp_path / "out" / "fan.h5"
    with pytest.raises(InputError) as caught:
        extract_features(pd.concat([clips, pd.DataFrame(rows)]), "eat_logmel", AUDIO, output, workers=2)
    problems = caught.value.problems
    assert [
        name in problem for name, problem in zip(["nan", "long", "inf", "text"], problems, strict=True)
    ] == [True] * 4
    assert "sample 1234" in problems[0] and "sample 1234" in problems[2]
    assert "8000 samples" in problems[1] and "7000" in problems[1]
    assert list(output.parent.iterdir()) == []


def test_clips_shorter_than_a_window_are_listed(clips, tmp_path):
    rows = pd.concat([clips, pd.DataFrame([record(tmp_path, "tiny.wav", noise(0.02))])])
    with pytest.raises(InputError) as caught:
        extract_features(rows, "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=1)
    assert len(caught.value.problems) == 1 and "tiny.wav: 320 samples" in caught.value.problems[0]
    with pytest.raises(InputError, match="no clips"):
        extract_features(clips.head(0), "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=1)


def test_an_old_file_stays_when_extraction_fails(clips, tmp_path):
    extract_features(clips, "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=1)
    before = (tmp_path / "fan.h5").read_bytes()
    (tmp_path / "3.wav").unlink()
    with pytest.raises(InputError, match="recordings cannot be used"):
        extract_features(clips, "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=2)
    assert (tmp_path / "fan.h5").read_bytes() == before


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    row = record(tmp_path, "a.wav", noise(1.0))
    peaks = []
    for copies in (6, 6, 60):  # the first run pays for what is made once
        rows = pd.DataFrame([row | {"clip_id": f"fan/train/{k:03d}"} for k in range(copies)])
        tracemalloc.start()
        extract_features(rows, "eat_logmel", AUDIO, tmp_path / "fan.h5", workers=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1] + 54 * 500  # an index row of at most 500 bytes per clip
