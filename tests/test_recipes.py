"""Impossible combinations of a system's parts are refused with the reason, and every system in configs/ is possible."""

import copy
from pathlib import Path

import pytest
from asdflow.configuration import load_configuration, read_yaml
from asdflow.training.recipes import check_system

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = sorted(path.stem for path in (ROOT / "configs/systems").glob("*.yaml"))
EAT = {"front_end": "eat_logmel", "architecture": {"name": "eat", "depth": 4}}
CNN = {"front_end": "stft", "architecture": {"name": "stft_cnn"}}
SPECTRUM = {**CNN, "front_end": "stft_spectrum"}


def resolved(name, overlay=None):
    """A named system and its encoder, complete, as a run with `overlay` would see them."""
    config = load_configuration({"run": {"systems": [name]}, **(overlay or {})}, ROOT)
    system = config["systems"][name]
    return system, config["encoders"][system["encoder"]]


@pytest.fixture(scope="module")
def attribute_aware():
    return resolved("attribute_aware")[0]


def changed(system, path, value):
    """The system with the value at a dotted path replaced."""
    system = copy.deepcopy(system)
    *parents, last = path.split(".")
    place = system
    for key in parents:
        place = place[key]
    place[last] = value
    return system


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_named_system_is_possible_on_its_encoder(name):
    system, encoder = resolved(name)
    assert check_system(system, encoder, ["fan", "valve"], ["fan"]) == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_possible_at_full_size(name):
    system, encoder = resolved(name, read_yaml(ROOT / "configs/full_size.yaml"))
    assert check_system(system, encoder, ["fan", "valve"], ["fan"]) == []


@pytest.mark.parametrize(("path", "value", "reason"), [
    ("labels.count", "bic", "gaussian_mixture"),
    ("labels", {"method": "kmeans", "count": "threshold", "min_clusters": 2, "max_clusters": 16}, "cuts a tree"),
    ("labels.min_clusters", 17, "above labels.max_clusters 16"),
    ("objective.arcface.weight", 0, "every weight in objective is 0"),
    ("tuning.crop_frames", None, "pooling.crops needs"),
    ("tuning.method", "autoencoder", "backend.name value"),
    ("backend.name", "value", "tuning.method autoencoder"),
    ("augmentation.noise.snr", [20, 0], "runs downwards"),
    ("augmentation.random_resize_crop.time_scale", [0.0, 1.0], "above 0"),
    ("augmentation.high_frequency.cutoff", [0.5, 1.5], "share of the band"),
    ("pooling.layers", [0, 4], "has 4 layers"),
])  # fmt: skip
def test_an_impossible_combination_is_refused_with_its_reason(attribute_aware, path, value, reason):
    problems = check_system(changed(attribute_aware, path, value), EAT)
    assert any(reason in problem for problem in problems)


@pytest.mark.parametrize(("path", "value", "reason"), [
    ("pooling.kind", "attentive_statistics", "weights to learn"),
    ("pooling.projection", 64, "weights to learn"),
    ("tuning.adapter.groups", 4, "trains no adapter"),
])  # fmt: skip
def test_nothing_that_learns_goes_with_an_untouched_encoder(attribute_aware, path, value, reason):
    frozen = changed(attribute_aware, "tuning.method", "none")
    assert check_system(frozen, EAT) == []
    assert any(reason in problem for problem in check_system(changed(frozen, path, value), EAT))


@pytest.mark.parametrize(("path", "value", "reason"), [
    ("tuning.method", "lora", "transformer blocks"),
    ("tuning.adapter.groups", 4, "transformer blocks"),
    ("pooling.kind", "cls", "no CLS token"),
])  # fmt: skip
def test_parts_that_need_a_transformer_are_refused_on_a_cnn(attribute_aware, path, value, reason):
    system = changed(attribute_aware, path, value)
    assert not any(reason in problem for problem in check_system(system, EAT))
    assert any(reason in problem for problem in check_system(system, CNN))


def test_an_encoder_without_weights_cannot_be_trained(attribute_aware):
    statistics = {"front_end": "eat_logmel", "architecture": {"name": "logmel_statistics"}}
    assert any("nothing to train" in problem for problem in check_system(attribute_aware, statistics))


def test_vector_quantisation_needs_machines_without_attributes(attribute_aware):
    system = changed(attribute_aware, "objective.vector_quantised.weight", 1.0)
    assert check_system(system, EAT, hidden=["fan"]) == []
    assert any("no machine hides" in problem for problem in check_system(system, EAT, hidden=[]))
    truth = changed(system, "labels.kind", "hidden_attributes")
    assert any("leaves none" in problem for problem in check_system(truth, EAT, hidden=["fan"]))


def test_an_adapter_by_machine_needs_several_machines(attribute_aware):
    system = changed(attribute_aware, "tuning.adapter.groups", 4)
    assert check_system(system, EAT, machines=["fan", "valve"]) == []
    assert any("only one machine" in problem for problem in check_system(system, EAT, machines=["valve"]))
    alone = changed(attribute_aware, "labels.kind", "machine")
    assert any("single class" in problem for problem in check_system(alone, EAT, machines=["valve"]))


def test_all_reasons_are_given_at_once(attribute_aware):
    system = changed(changed(attribute_aware, "labels.count", "bic"), "objective.arcface.weight", 0)
    assert len(check_system(system, EAT)) == 2


@pytest.mark.parametrize("part", ["random_resize_crop", "specaugment", "high_frequency"])
def test_no_augmentation_moves_the_spectrum_that_stands_before_the_frames(attribute_aware, part):
    system = changed(attribute_aware, f"augmentation.{part}.probability", 0.5)
    assert not any("spectrum" in problem for problem in check_system(system, CNN))
    assert any(f"augmentation {part}" in problem for problem in check_system(system, SPECTRUM))


def test_only_the_stft_cnn_reads_the_spectrum_that_stands_before_the_frames(attribute_aware):
    eat = {**EAT, "front_end": "stft_spectrum"}
    assert any(
        "only an stft_cnn encoder reads it" in problem for problem in check_system(attribute_aware, eat)
    )
