"""EAT: published weights give the reference's features, positions are EAT's, damage and misfits are named."""

import json

import numpy as np
import pytest
import torch
import torchaudio
from asdflow.errors import InputError
from asdflow.models.eat import EAT, sincos_positions
from asdflow.models.encoder import build_encoder
from safetensors.torch import load_file

from tests.conftest import SHARED, needs_shared

GOLDEN = SHARED / "golden" / "eat"


def small_eat(**sizes):
    architecture = {"name": "eat", "width": 16, "depth": 3, "heads": 2, "max_frames": 2048, **sizes}
    return build_encoder({"front_end": "eat_logmel", "architecture": architecture}, seed=3).eval()


def golden_files() -> tuple[dict, dict]:
    config = json.loads((GOLDEN / "config.json").read_text())
    return config, load_file(GOLDEN / "model.safetensors")


def published_layout(encoder: EAT, times: int = 128) -> tuple[dict, dict]:
    """An encoder of ours written the way the published files are."""
    config = {
        "embed_dim": encoder.width, "depth": encoder.depth, "num_heads": encoder.heads, "mlp_ratio": 4.0,
        "patch_size": 16, "mel_bins": 128, "max_length": times,
    }  # fmt: skip
    names = {"cls_token": "extra_tokens", "patch_embed.proj.bias": "local_encoder.proj.bias"}
    weights = {f"model.{names.get(key, key)}": value for key, value in encoder.state_dict().items()}
    convolution = weights.pop("model.patch_embed.proj.weight").view(encoder.width, 1, 16, 16)
    weights["model.local_encoder.proj.weight"] = convolution
    positions = sincos_positions(times, 8, encoder.width)
    weights["model.fixed_positional_encoder.positions"] = positions[None]
    return config, weights


@needs_shared
def test_published_weights_give_the_reference_features_from_the_waveform():
    encoder = EAT.from_published(*golden_files()).eval()
    expected = np.load(GOLDEN / "expected.npz")
    waveform = torch.from_numpy(expected["waveform"].astype(np.float32) / 32768)
    with torch.no_grad():
        features = encoder(encoder.front_end(waveform))
    assert features.shape == (2, 513, 48)
    assert np.abs(features.numpy() - expected["features"]).max() < 1e-4


@needs_shared
def test_published_weights_give_the_reference_features_from_the_reference_log_mel():
    encoder = EAT.from_published(*golden_files()).eval()
    expected = np.load(GOLDEN / "expected.npz")
    log_mel = torch.from_numpy(np.stack([reference_log_mel(clip) for clip in expected["waveform"]]))
    assert np.abs(log_mel.numpy() - expected["fbank"]).max() < 1e-3  # the file holds it rounded to float16
    with torch.no_grad():
        features = encoder(log_mel)
    assert np.abs(features.numpy() - expected["features"]).max() < 1e-5


def reference_log_mel(clip: np.ndarray) -> np.ndarray:
    waveform = torch.from_numpy(clip.astype(np.float32) / 32768)[None]
    mel = torchaudio.compliance.kaldi.fbank(
        waveform - waveform.mean(), htk_compat=True, sample_frequency=16000, use_energy=False,
        window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    return ((torch.nn.functional.pad(mel, (0, 0, 0, 1024 - len(mel))) + 4.268) / (2 * 4.569)).numpy()


def test_an_encoder_survives_the_way_through_the_published_layout():
    encoder = small_eat()
    again = EAT.from_published(*published_layout(encoder)).eval()
    log_mel = torch.randn(2, 64, 128)
    assert torch.equal(again(log_mel), encoder(log_mel))


def test_positions_follow_the_definition():
    table = sincos_positions(5, 8, 12).view(5, 8, 12).double()
    rates = 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    for time, frequency in [(0, 0), (4, 0), (0, 7), (3, 5)]:
        halves = [torch.cat([(index * rates).sin(), (index * rates).cos()]) for index in (frequency, time)]
        torch.testing.assert_close(table[time, frequency], torch.cat(halves), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seconds", [6, 10, 12, 18])
def test_clips_of_six_to_eighteen_seconds_have_their_own_positions(seconds):
    encoder = small_eat(max_frames=2048)
    frames = encoder.front_end(torch.zeros(1, seconds * 16000)).shape[1]
    tokens = encoder(torch.zeros(1, frames, 128))[0]
    assert frames % 64 == 0 and len(tokens) == 1 + frames // 16 * 8
    assert torch.pdist(encoder.positions[: len(tokens) - 1]).min() > 1e-3


def test_ten_seconds_become_1024_frames_and_a_constant_clip_still_tells_its_patches_apart():
    encoder = small_eat()
    assert encoder.front_end(torch.zeros(1, 160000)).shape == (1, 1024, 128)
    tokens = encoder(torch.zeros(1, 64, 128))
    assert not torch.allclose(tokens[0, 1], tokens[0, 2])


def test_intermediate_layers_are_the_blocks_outputs():
    encoder, log_mel = small_eat(), torch.randn(2, 32, 128)
    first, last = encoder(log_mel, layers=[0, -1])
    assert torch.equal(last, encoder(log_mel))
    assert torch.equal(first, encoder.blocks[0](encoder.with_cls(encoder.patches(log_mel))))
    with pytest.raises(InputError, match="3 layers"):
        encoder(log_mel, layers=[3])


def test_attention_is_the_softmax_of_scaled_products():
    attention, x = small_eat().blocks[0].attn, torch.randn(2, 5, 16)
    q, k, v = attention.qkv(x).view(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_a_damaged_checkpoint_is_described_key_by_key():
    config, weights = published_layout(small_eat())
    del weights["model.blocks.1.mlp.fc1.bias"], weights["model.extra_tokens"]
    weights["model.blocks.0.attn.qkv.weight"] = torch.zeros(16, 16)
    weights["model.blocks.9.norm1.bias"] = torch.zeros(16)
    weights["model.blocks.2.norm1.bias"] = torch.full((16,), float("nan"))
    with pytest.raises(InputError) as caught:
        EAT.from_published(config, weights)
    text = str(caught.value)
    assert "missing key: model.blocks.1.mlp.fc1.bias" in text and "missing key: model.extra_tokens" in text
    assert "model.blocks.0.attn.qkv.weight has shape [16, 16], which does not fit [48, 16]" in text
    assert "unknown key: model.blocks.9.norm1.bias" in text
    assert "model.blocks.2.norm1.bias holds values that are not finite" in text


def test_positions_other_than_the_fixed_ones_are_refused():
    config, weights = published_layout(small_eat())
    weights["model.fixed_positional_encoder.positions"][0, 7] += 0.01
    with pytest.raises(InputError, match=r"fixed_positional_encoder\.positions differs"):
        EAT.from_published(config, weights)


def test_a_variant_that_this_eat_is_not_is_refused_by_name():
    config, weights = published_layout(small_eat())
    with pytest.raises(InputError) as caught:
        EAT.from_published({**config, "layer_norm_first": True, "stride": 10}, weights)
    assert "layer_norm_first is True" in str(caught.value) and "stride is 10" in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [({"width": 18}, "multiple of 4"), ({"heads": 3}, "heads 3"), ({"patch": 24}, "bins 128")],
)
def test_sizes_that_do_not_fit_are_named(sizes, problem):
    with pytest.raises(InputError, match=problem):
        small_eat(**sizes)


@pytest.mark.parametrize("shape", [(1, 30, 128), (1, 64, 64), (1, 4096, 128)])
def test_a_log_mel_of_another_shape_is_refused(shape):
    with pytest.raises(InputError, match=f"{shape[1]} frames x {shape[2]} bins"):
        small_eat()(torch.zeros(shape))


def test_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    one = small_eat().state_dict()
    torch.manual_seed(2)
    two = small_eat().state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
