"""Embedding clips: every clip once, in order, and the same alone as in company."""

import numpy as np
import pytest
import torch
from asdflow.errors import InputError
from asdflow.features.embeddings import read_embeddings
from asdflow.features.front_end import FRONT_ENDS, build_front_end
from asdflow.features.store import write_features
from asdflow.models.embed import Embedder, batches_by_length, embed
from asdflow.models.encoder import build_encoder, save_encoder

EAT = {
    "front_end": "eat_logmel",
    "architecture": {"name": "eat", "width": 32, "depth": 3, "heads": 2, "pad_multiple": 16},
}
ENCODERS = {
    "eat": EAT,
    "beats": {
        "front_end": "beats_logmel",
        "architecture": {
            "name": "beats", "width": 32, "depth": 2, "heads": 2, "feed_forward": 48, "patch_width": 24,
            "position_kernel": 8, "position_groups": 4,
        },
    },
    "stft_cnn": {"front_end": "stft", "architecture": {"name": "stft_cnn", "width": 16, "channels": [4, 4, 4, 4]}},
    "logmel_statistics": {"front_end": "eat_logmel", "architecture": {"name": "logmel_statistics"}},
}  # fmt: skip
SECONDS = [1.3, 3.0, 2.0, 1.3, 1.31, 2.0, 3.2, 1.2]


def waveforms():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, int(seconds * 16000), generator=generator) * 0.1 for seconds in SECONDS]


def cache(path, front_end, clips, first=0):
    module = build_front_end(front_end)
    frames = [module(clip)[0].half().numpy() for clip in clips]
    names = [f"{path.stem}/test/{first + k}" for k in range(len(clips))]
    write_features(
        path, names, frames, [f"{first + k:064d}" for k in range(len(clips))], FRONT_ENDS[front_end]
    )
    return path


@pytest.fixture
def encoder_dir(tmp_path):
    save_encoder(build_encoder(EAT, 0), tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.parametrize("name", ENCODERS)
def test_a_clip_has_the_same_embedding_alone_and_with_longer_clips(tmp_path, name):
    front_end = ENCODERS[name]["front_end"]
    save_encoder(build_encoder(ENCODERS[name], 0), tmp_path / "encoder")
    together = cache(tmp_path / "fan.h5", front_end, waveforms())
    pooling = {"kind": "mean_deviation"}
    embed(tmp_path / "encoder", [together], tmp_path / "all.h5", pooling, "cpu", batch_size=4)
    names, found = read_embeddings(tmp_path / "all.h5")
    assert names == [f"fan/test/{k}" for k in range(len(SECONDS))]
    for k, clip in enumerate(waveforms()):
        alone = cache(tmp_path / "one.h5", front_end, [clip])
        embed(tmp_path / "encoder", [alone], tmp_path / "alone.h5", pooling, "cpu", batch_size=4)
        np.testing.assert_allclose(read_embeddings(tmp_path / "alone.h5")[1][0], found[k], rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 1e-3  # other clips do have other embeddings


def test_clips_of_several_files_come_in_the_order_of_the_files(tmp_path, encoder_dir):
    clips = waveforms()
    paths = [
        cache(tmp_path / "pump.h5", "eat_logmel", clips[:3]),
        cache(tmp_path / "fan.h5", "eat_logmel", clips[3:], 3),
    ]
    embed(encoder_dir, paths, tmp_path / "e.h5", {"kind": "mean"}, "cpu", batch_size=2)
    names, found = read_embeddings(tmp_path / "e.h5")
    assert names == [f"pump/test/{k}" for k in range(3)] + [f"fan/test/{k}" for k in range(3, 8)]
    encoder = build_encoder(EAT, 0).eval()
    for k, clip in enumerate(clips):
        with torch.no_grad():
            expected = encoder(encoder.front_end(clip))[0, 1:].mean(0)
        np.testing.assert_allclose(
            found[k], expected.numpy(), rtol=0, atol=2e-3
        )  # the cache is half precision


def test_the_size_of_a_batch_does_not_matter(tmp_path, encoder_dir):
    path = cache(tmp_path / "fan.h5", "eat_logmel", waveforms())
    matrices = []
    for batch_size in (1, 3, 100):
        embed(encoder_dir, [path], tmp_path / "e.h5", {"kind": "mean"}, "cpu", batch_size)
        matrices.append(read_embeddings(tmp_path / "e.h5")[1])
    np.testing.assert_allclose(matrices[1], matrices[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(matrices[2], matrices[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "width"),
    [
        ({"kind": "mean"}, 32),
        ({"kind": "cls"}, 32),
        ({"kind": "mean_deviation"}, 64),
        ({"kind": "generalised_mean", "power": 2.0}, 32),
        ({"kind": "mean", "layers": [0, -1]}, 64),
        ({"kind": "mean_deviation", "layers": [0, 1, 2]}, 192),
    ],
)
def test_poolings_and_layers_decide_the_width(tmp_path, encoder_dir, pooling, width):
    path = cache(tmp_path / "fan.h5", "eat_logmel", waveforms()[:2])
    embed(encoder_dir, [path], tmp_path / "e.h5", pooling, "cpu", batch_size=4)
    assert read_embeddings(tmp_path / "e.h5")[1].shape == (2, width)


def test_mean_pooling_leaves_the_cls_token_out_and_cls_pooling_takes_it():
    encoder = build_encoder(EAT, 0).eval()
    log_mel = encoder.front_end(waveforms()[0])
    with torch.no_grad():
        tokens = encoder(log_mel)
        torch.testing.assert_close(Embedder(encoder, {"kind": "mean"})(log_mel), tokens[:, 1:].mean(1))
        torch.testing.assert_close(Embedder(encoder, {"kind": "cls"})(log_mel), tokens[:, 0])


def test_several_layers_stand_side_by_side():
    encoder = build_encoder(EAT, 0).eval()
    log_mel = encoder.front_end(waveforms()[0])
    with torch.no_grad():
        first, last = encoder(log_mel, layers=[0, 2])
        expected = torch.cat([first[:, 1:].mean(1), last[:, 1:].mean(1)], dim=1)
        torch.testing.assert_close(Embedder(encoder, {"kind": "mean", "layers": [0, 2]})(log_mel), expected)


def test_statistics_of_the_log_mel_are_its_mean_and_deviation_per_bin(tmp_path):
    save_encoder(build_encoder(ENCODERS["logmel_statistics"], 0), tmp_path / "encoder")
    path = cache(tmp_path / "fan.h5", "eat_logmel", waveforms()[:1])
    embed(tmp_path / "encoder", [path], tmp_path / "e.h5", {"kind": "mean_deviation"}, "cpu", batch_size=4)
    frames = build_front_end("eat_logmel")(waveforms()[0])[0].half().double().numpy()
    expected = np.concatenate([frames.mean(0), frames.std(0)])
    np.testing.assert_allclose(read_embeddings(tmp_path / "e.h5")[1][0], expected, atol=2e-4)


def test_batches_hold_every_clip_once_and_only_equal_padded_lengths():
    n_frames = np.random.default_rng(0).integers(90, 200, size=57)
    batches = list(batches_by_length(n_frames, pad_multiple=16, batch_size=5))
    assert sorted(np.concatenate(batches).tolist()) == list(range(57))
    assert max(map(len, batches)) == 5
    for batch in batches:
        assert len(set(-(-n_frames[batch] // 16))) == 1


def test_features_of_another_front_end_are_refused(tmp_path, encoder_dir):
    path = cache(tmp_path / "fan.h5", "beats_logmel", waveforms()[:2])
    with pytest.raises(InputError) as caught:
        embed(encoder_dir, [path], tmp_path / "e.h5", {"kind": "mean"}, "cpu", batch_size=4)
    assert "beats_logmel" in caught.value.problems[0] and "eat_logmel" in caught.value.problems[1]
    assert not (tmp_path / "e.h5").exists()


@pytest.mark.parametrize("pooling", [{"kind": "attentive_statistics"}, {"kind": "mean", "projection": 8}])
def test_poolings_that_need_training_are_refused(pooling):
    with pytest.raises(InputError, match="must be trained"):
        Embedder(build_encoder(EAT, 0), pooling)


def test_cls_pooling_is_refused_for_encoders_without_a_cls_token():
    with pytest.raises(InputError, match="does not fit the beats encoder"):
        Embedder(build_encoder(ENCODERS["beats"], 0), {"kind": "cls"})


def test_embeddings_that_are_not_finite_are_named(tmp_path):
    encoder = build_encoder(EAT, 0)
    with torch.no_grad():
        encoder.get_parameter("blocks.0.mlp.fc1.bias").fill_(float("inf"))
    save_encoder(encoder, tmp_path / "encoder")
    path = cache(tmp_path / "fan.h5", "eat_logmel", waveforms()[:2])
    with pytest.raises(InputError) as caught:
        embed(tmp_path / "encoder", [path], tmp_path / "e.h5", {"kind": "mean"}, "cpu", batch_size=4)
    assert caught.value.problems == ["fan/test/0"]
    assert not (tmp_path / "e.h5").exists()
