"""One contract for every encoder, and the doors through which encoders come in: files, checkpoints, configuration."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from asdflow.configuration import read_yaml
from asdflow.errors import InputError
from asdflow.features.front_end import FRONT_ENDS
from asdflow.files import file_digest, read_json, write_json
from asdflow.models import load_encoder
from asdflow.models.beats import BEATs, relative_buckets
from asdflow.models.encoder import ARCHITECTURES, architecture_class, build_encoder, save_encoder
from asdflow.models.fetching import fetch_encoder
from safetensors.torch import load_file, save_file

from tests.conftest import REPOSITORY, SHARED, needs_shared

CONFIGS: dict[str, dict[str, Any]] = {
    "eat": {
        "front_end": "eat_logmel",
        "architecture": {"name": "eat", "width": 32, "depth": 2, "heads": 2, "pad_multiple": 16},
    },
    "beats": {
        "front_end": "beats_logmel",
        "architecture": {
            "name": "beats", "width": 32, "depth": 3, "heads": 2, "feed_forward": 48, "patch_width": 24,
            "position_kernel": 8, "position_groups": 4,
        },
    },
    "stft_cnn": {"front_end": "stft_spectrum", "architecture": {"name": "stft_cnn", "width": 16, "channels": [4, 8, 8, 8]}},
    "logmel_statistics": {"front_end": "eat_logmel", "architecture": {"name": "logmel_statistics"}},
}  # fmt: skip
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def build(name, seed=0):
    return build_encoder(CONFIGS[name], seed).eval()


def waveform(seconds, batch=2, seed=0):
    return torch.randn(batch, int(seconds * 16000), generator=torch.Generator().manual_seed(seed)) * 0.1


def test_the_contract_covers_every_registered_architecture():
    assert set(CONFIGS) == set(ARCHITECTURES)


@every_architecture
def test_tokens_have_the_announced_width_for_clips_of_6_to_18_seconds(name):
    encoder = build(name)
    previous = 0
    for seconds in (6, 10, 11.3, 18):
        log_mel = encoder.front_end(waveform(seconds, batch=1))
        assert log_mel.shape[1] % encoder.pad_multiple == 0
        with torch.no_grad():
            tokens = encoder(log_mel)
        assert tokens.shape[0] == 1 and tokens.shape[2] == encoder.width
        assert tokens.shape[1] > previous
        assert torch.isfinite(tokens).all()
        previous = tokens.shape[1]


@every_architecture
def test_padding_follows_the_announced_multiple_and_value(name):
    encoder = build(name)
    config = FRONT_ENDS[CONFIGS[name]["front_end"]]
    log_mel = encoder.front_end(waveform(1.3))
    n_frames = config.n_frames(int(1.3 * 16000))
    assert log_mel.shape == (2, -(-n_frames // encoder.pad_multiple) * encoder.pad_multiple, config.bins)
    assert (log_mel[:, n_frames:] == encoder.pad_value).all()


@every_architecture
def test_gradients_reach_every_weight_and_the_input(name):
    encoder = build_encoder(CONFIGS[name], 0).train()
    log_mel = encoder.front_end(waveform(2.0)).requires_grad_()
    tokens = encoder(log_mel)
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert log_mel.grad is not None and log_mel.grad.abs().sum() > 0
    without = [
        key for key, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert without == []


@every_architecture
def test_the_seed_alone_decides_the_weights_and_the_global_random_state_stays(name):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    one, same, other = build(name, 5), build(name, 5), build(name, 6)
    assert torch.equal(torch.rand(3), expected)
    states = [encoder.state_dict() for encoder in (one, same, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if states[0]:
        assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@every_architecture
def test_saved_and_loaded_gives_the_same_output(name, tmp_path):
    encoder = build(name)
    save_encoder(encoder, tmp_path, weights="random")
    log_mel = encoder.front_end(waveform(2.0))
    with torch.no_grad():
        for path in (tmp_path, tmp_path / "encoder.safetensors"):
            loaded = load_encoder(path)
            assert not loaded.training
            assert torch.equal(loaded(log_mel), encoder(log_mel))
            assert torch.equal(loaded.front_end(waveform(2.0)), log_mel)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["weights"] == "random"
    assert {key: saved[key] for key in ("front_end", "architecture")} == encoder.config()


@every_architecture
def test_saving_twice_gives_the_same_bytes(name, tmp_path):
    for folder in ("one", "two"):
        save_encoder(build(name), tmp_path / folder)
    for file in ("encoder.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@every_architecture
def test_intermediate_layers_can_be_asked_for(name):
    encoder = build(name)
    log_mel = encoder.front_end(waveform(2.0))
    with torch.no_grad():
        tokens = encoder(log_mel)
        layers = encoder(log_mel, layers=list(range(encoder.n_layers)))
        assert len(layers) == encoder.n_layers >= 1
        assert {layer.shape for layer in layers} == {tokens.shape}
        assert torch.equal(layers[-1], tokens)
        assert torch.equal(encoder(log_mel, layers=[-1])[0], tokens)
        if encoder.n_layers > 1:
            assert not torch.equal(layers[0], tokens)
        with pytest.raises(InputError, match=f"{encoder.n_layers} layers"):
            encoder(log_mel, layers=[encoder.n_layers])


@every_architecture
def test_a_clip_has_the_same_tokens_alone_and_in_a_batch(name):
    encoder = build(name)
    log_mel = encoder.front_end(waveform(3.0, batch=3))
    with torch.no_grad():
        together = encoder(log_mel)
        for row in range(3):
            torch.testing.assert_close(encoder(log_mel[row : row + 1])[0], together[row], rtol=0, atol=1e-5)


@every_architecture
def test_wrong_sizes_are_named(name):
    config = {**CONFIGS[name], "architecture": {**CONFIGS[name]["architecture"], "storeys": 3}}
    with pytest.raises(InputError) as caught:
        build_encoder(config, 0)
    assert caught.value.problems == ["unknown key: architecture.storeys"]


def test_missing_sizes_and_unknown_architectures_are_named():
    with pytest.raises(InputError) as caught:
        build_encoder({"front_end": "eat_logmel", "architecture": {"name": "eat", "depth": 2}}, 0)
    assert caught.value.problems == ["missing key: architecture.width", "missing key: architecture.heads"]
    with pytest.raises(InputError, match="'resnet' is unknown"):
        architecture_class("resnet")


# ------------------------------------------------------------------------------------------- our own files, damaged


@pytest.fixture
def saved(tmp_path):
    save_encoder(build("eat"), tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Change the weights of a saved encoder, with a checksum that fits again."""
    weights = load_file(folder / "encoder.safetensors")
    change(weights)
    save_file(weights, folder / "encoder.safetensors")
    config = read_json(folder / "config.json", "")
    config["sha256"] = file_digest(folder / "encoder.safetensors")
    write_json(folder / "config.json", config)


def test_missing_unknown_and_misshapen_weights_are_named_together(saved):
    def change(weights):
        weights["blocks.7.new"] = weights.pop("blocks.0.norm1.weight")
        weights["blocks.1.mlp.fc1.bias"] = torch.zeros(3)

    rewrite(saved, change)
    with pytest.raises(InputError) as caught:
        load_encoder(saved)
    assert caught.value.problems == [
        "missing key: blocks.0.norm1.weight",
        "unknown key: blocks.7.new",
        "blocks.1.mlp.fc1.bias has shape [3], [128] is wanted",
    ]


def test_a_flipped_bit_in_the_weights_is_found(saved):
    content = bytearray((saved / "encoder.safetensors").read_bytes())
    content[-100] ^= 1
    (saved / "encoder.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        try:
            load_encoder(saved)
        except InputError as error:
            raise InputError(str(error)) from error


def test_cut_off_weights_and_spoilt_json_are_named(saved):
    content = (saved / "encoder.safetensors").read_bytes()
    for size in (0, 50, len(content) - 1):
        (saved / "encoder.safetensors").write_bytes(content[:size])
        with pytest.raises(InputError, match=r"encoder\.safetensors is damaged"):
            load_encoder(saved)
    (saved / "encoder.safetensors").write_bytes(content)
    (saved / "config.json").write_text('{"architecture": ')
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load_encoder(saved)


def test_a_config_of_another_architecture_is_named(saved):
    (saved / "config.json").write_text('{"architecture": {"name": "perceptron"}, "front_end": "eat_logmel"}')
    with pytest.raises(InputError, match="'perceptron' is unknown"):
        load_encoder(saved)
    (saved / "config.json").write_text('{"architecture": {}}')
    with pytest.raises(InputError) as caught:
        load_encoder(saved)
    assert caught.value.problems == ["config.json lacks front_end", "config.json lacks architecture.name"]


def test_what_is_no_encoder_is_refused_with_what_is_expected(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(InputError, match="not the folder of one encoder"):
        load_encoder(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="not a checkpoint that asdflow knows"):
        load_encoder(tmp_path / "model.onnx")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path / "other.safetensors")
    assert "its keys begin with ['a']" in str(caught.value)


# ------------------------------------------------------------------------------------------- published checkpoints


@needs_shared
@pytest.mark.parametrize("layout", ["eat", "eat/model.safetensors", "beats", "beats/checkpoint.pt"])
def test_published_layouts_give_the_reference_features_from_the_waveform(layout):
    golden = SHARED / "golden" / layout.split("/")[0]
    expected = np.load(golden / "expected.npz")
    encoder = load_encoder(SHARED / "golden" / layout)
    with torch.no_grad():
        features = encoder(encoder.front_end(torch.from_numpy(expected["waveform"]).float() / 32768))
    torch.testing.assert_close(features, torch.from_numpy(expected["features"]), rtol=0, atol=1e-4)


@needs_shared
def test_a_published_encoder_survives_our_own_layout(tmp_path):
    encoder = load_encoder(SHARED / "golden/beats/checkpoint.pt")
    save_encoder(encoder, tmp_path)
    again = load_encoder(tmp_path)
    log_mel = encoder.front_end(waveform(2.0))
    with torch.no_grad():
        assert torch.equal(again(log_mel), encoder(log_mel))


@pytest.fixture
def beats_checkpoint():
    """A checkpoint in BEATs's published layout, told from our own names: {'cfg', 'model'} with random weights."""
    generator = torch.Generator().manual_seed(0)
    cfg = {
        "encoder_embed_dim": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_embed_dim": 24,
        "embed_dim": 8, "conv_pos": 4, "conv_pos_groups": 2, "num_buckets": 16, "max_distance": 40, "deep_norm": True,
    }  # fmt: skip
    shapes = {
        "post_extract_proj.weight": (16, 8), "post_extract_proj.bias": (16,), "patch_embedding.weight": (8, 1, 16, 16),
        "encoder.pos_conv.0.bias": (16,), "encoder.pos_conv.0.weight_g": (1, 1, 4), "encoder.pos_conv.0.weight_v": (16, 8, 4),
        "encoder.layer_norm.weight": (16,), "encoder.layer_norm.bias": (16,), "layer_norm.weight": (8,), "layer_norm.bias": (8,),
    }  # fmt: skip
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            shapes |= {f"{layer}.{part}.weight": (16, 16), f"{layer}.{part}.bias": (16,)}
        shapes |= {
            f"{layer}.self_attn.grep_linear.weight": (8, 8),
            f"{layer}.self_attn.grep_linear.bias": (8,),
        }
        shapes |= {
            f"{layer}.self_attn.grep_a": (1, 2, 1, 1),
            f"{layer}.fc1.weight": (24, 16),
            f"{layer}.fc1.bias": (24,),
        }
        shapes |= {f"{layer}.fc2.weight": (16, 24), f"{layer}.fc2.bias": (16,)}
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}.{norm}.weight": (16,), f"{layer}.{norm}.bias": (16,)}
    model = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        model[f"{layer}.self_attn.relative_attention_bias.weight"] = torch.arange(32.0).view(16, 2)
    return {"cfg": cfg, "model": model}


def test_a_beats_checkpoint_loads_and_its_classifier_is_dropped(beats_checkpoint, tmp_path):
    beats_checkpoint["model"]["predictor.weight"] = torch.zeros(527, 16)
    torch.save(beats_checkpoint, tmp_path / "BEATs.pt")
    encoder = load_encoder(tmp_path / "BEATs.pt")
    assert isinstance(encoder, BEATs)
    assert (encoder.width, encoder.depth, len(encoder.blocks)) == (16, 2, 2)
    direction = beats_checkpoint["model"]["encoder.pos_conv.0.weight_v"]
    length = beats_checkpoint["model"]["encoder.pos_conv.0.weight_g"][0, 0]
    expected = torch.stack(
        [length[k] * direction[:, :, k] / direction[:, :, k].norm() for k in range(4)], dim=2
    )
    torch.testing.assert_close(encoder.position_convolution.weight.detach(), expected)


def test_every_wrong_key_of_a_beats_checkpoint_is_named(beats_checkpoint, tmp_path):
    model = beats_checkpoint["model"]
    del model["encoder.layers.1.fc1.bias"]
    model["encoder.layers.2.fc1.bias"] = torch.zeros(24)
    model["layer_norm.weight"] = torch.zeros(5)
    model["encoder.layers.0.fc2.bias"][3] = float("nan")
    model["encoder.layers.1.self_attn.relative_attention_bias.weight"] = torch.ones(16, 2)
    torch.save(beats_checkpoint, tmp_path / "BEATs.pt")
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path / "BEATs.pt")
    assert str(tmp_path / "BEATs.pt") in str(caught.value)
    assert set(caught.value.problems) == {
        "missing key: encoder.layers.1.fc1.bias",
        "unknown key: encoder.layers.2.fc1.bias",
        "layer_norm.weight has shape [5], which does not fit [8]",
        "encoder.layers.0.fc2.bias holds values that are not finite",
        "encoder.layers.1.self_attn.relative_attention_bias.weight differs from "
        "encoder.layers.0.self_attn.relative_attention_bias.weight, with which it is shared",
    }


def test_beats_variants_that_are_not_supported_are_named(beats_checkpoint, tmp_path):
    beats_checkpoint["cfg"] |= {"deep_norm": False, "gru_rel_pos": False}
    del beats_checkpoint["cfg"]["conv_pos"]
    torch.save(beats_checkpoint, tmp_path / "BEATs.pt")
    with pytest.raises(InputError) as caught:
        load_encoder(tmp_path / "BEATs.pt")
    assert caught.value.problems == [
        "cfg lacks conv_pos",
        "cfg: deep_norm is False, only True is supported",
        "cfg: gru_rel_pos is False, only True is supported",
    ]


class Harmful:
    """Something that a checkpoint must not be able to bring to life."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"cfg": Harmful(), "model": {}}, tmp_path / "BEATs.pt")
    with pytest.raises(InputError, match="damaged, or holds more than weights"):
        load_encoder(tmp_path / "BEATs.pt")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04broken"])
def test_damaged_torch_files_are_named(tmp_path, content):
    (tmp_path / "BEATs.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"BEATs\.pt is damaged"):
        load_encoder(tmp_path / "BEATs.pt")


def test_torch_files_of_other_kinds_are_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a BEATs checkpoint"):
        load_encoder(tmp_path / "other.pt")


def test_relative_positions_are_exact_near_by_and_logarithmic_far_away():
    buckets = relative_buckets(torch.arange(-2000, 2001), 320, 800)
    near = buckets[2000 - 79 : 2000 + 80]
    assert near[:80].tolist() == list(range(79, -1, -1))  # keys before the query: their distance
    assert near[80:].tolist() == list(range(161, 240))  # keys after it: half the buckets further
    assert buckets[0] == 159 and buckets[-1] == 319
    assert (buckets[2001:].diff() >= 0).all() and len(buckets[2001:].unique()) == 159


# ------------------------------------------------------------------------------------------- fetch_encoder


def entry(name, **init):
    return {**CONFIGS[name], "seed": 4, "init": init or "none"}


def test_init_none_gives_random_weights_by_seed(tmp_path):
    fetch_encoder(entry("eat"), tmp_path / "one")
    fetch_encoder(entry("eat"), tmp_path / "two")
    assert (tmp_path / "one/encoder.safetensors").read_bytes() == (
        tmp_path / "two/encoder.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "one/config.json").read_text())["weights"] == "random"
    state, expected = load_encoder(tmp_path / "one").state_dict(), build("eat", 4).state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_local_checkpoint_is_verified_and_converted(tmp_path, beats_checkpoint):
    path = tmp_path / "BEATs.pt"
    torch.save(beats_checkpoint, path)
    settings: dict[str, Any] = {
        "architecture": {"name": "beats"}, "front_end": "beats_logmel", "seed": 0,
        "init": {"path": str(path), "sha256": file_digest(path)},
    }  # fmt: skip
    fetch_encoder(settings, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "encoder.safetensors",
    ]
    assert load_encoder(tmp_path / "out").architecture == "beats"
    assert json.loads((tmp_path / "out/config.json").read_text())["weights"] == "published"

    settings["init"]["sha256"] = "0" * 64
    with pytest.raises(InputError) as caught:
        fetch_encoder(settings, tmp_path / "no")
    assert file_digest(path) in str(caught.value) and "0" * 64 in str(caught.value)
    assert not (tmp_path / "no" / "encoder.safetensors").exists()


def test_a_checkpoint_comes_from_an_address(tmp_path, beats_checkpoint):
    path = tmp_path / "BEATs.pt"
    torch.save(beats_checkpoint, path)
    settings: dict[str, Any] = {
        "architecture": {"name": "beats"}, "front_end": "beats_logmel", "seed": 0,
        "init": {"url": f"file://{path}", "sha256": file_digest(path)},
    }  # fmt: skip
    fetch_encoder(settings, tmp_path / "out")
    assert load_encoder(tmp_path / "out").config()["architecture"]["width"] == 16


def test_an_entry_that_does_not_fit_its_checkpoint_is_refused(tmp_path):
    save_encoder(build("eat"), tmp_path / "source")
    settings = entry("eat", path=str(tmp_path / "source"))
    settings["architecture"] = {**settings["architecture"], "depth": 12}
    settings["front_end"] = "beats_logmel"
    with pytest.raises(InputError) as caught:
        fetch_encoder(settings, tmp_path / "out")
    assert caught.value.problems == [
        "architecture.depth: 12 is configured, the checkpoint has 2",
        "front_end: beats_logmel is configured, the checkpoint wants eat_logmel",
    ]


def test_a_checkpoint_needs_a_path_or_an_address(tmp_path):
    with pytest.raises(InputError, match="either `path` or `url`"):
        fetch_encoder(entry("eat", path=None, url=None), tmp_path)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/encoders").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_encoder_can_be_built(path):
    settings = read_yaml(path)
    with torch.device("meta"):
        encoder = architecture_class(settings["architecture"]["name"]).from_config(settings)
    assert encoder.config()["front_end"] == settings["front_end"]
    weights = sum(weight.numel() for weight in encoder.parameters())
    low, high = {
        "eat_base": (85e6, 90e6),
        "eat_base_adapted": (85e6, 90e6),
        "eat_large": (300e6, 310e6),
        "beats": (89e6, 92e6),
    }.get(path.stem, (0, 3e6))
    assert low <= weights <= high


def test_the_stft_cnn_has_the_spectrum_of_the_whole_clip_beside_every_token():
    encoder = build("stft_cnn")
    rows = encoder.front_end(waveform(2.0))
    other = rows.clone()
    other[:, :16] += 0.1 * torch.linspace(-1, 1, 513)
    with torch.no_grad():
        tokens, changed = encoder(rows), encoder(other)
    half = encoder.width // 2
    assert torch.equal(tokens[..., :half], changed[..., :half])
    assert not torch.allclose(tokens[..., half:], changed[..., half:])
    assert torch.equal(tokens[:, 0, half:], tokens[:, -1, half:])


def test_the_stft_cnn_takes_no_notice_of_what_never_changes_in_a_spectrogram():
    plain = {"front_end": "stft", "architecture": CONFIGS["stft_cnn"]["architecture"]}
    encoder = build_encoder(plain, 0).eval()
    assert encoder.width == build("stft_cnn").width // 2
    config = encoder.front_end.config
    magnitude = ((encoder.front_end(waveform(2.0)) * 2 * config.std + config.mean) / 2).exp()
    hum = torch.linspace(0.1, 1.0, 513)  # added to every frame alike
    louder = (2 * (magnitude + hum).log() - config.mean) / (2 * config.std)
    with torch.no_grad():
        found = encoder((2 * magnitude.log() - config.mean) / (2 * config.std)), encoder(louder)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)
