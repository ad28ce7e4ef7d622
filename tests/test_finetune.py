"""Fine-tuning: what is learnt, what is stored, that it resumes, and that a stored model embeds as the run did."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from asdflow.errors import InputError
from asdflow.features.embeddings import read_embeddings
from asdflow.features.front_end import FRONT_ENDS
from asdflow.features.store import FeatureStore, write_features
from asdflow.files import file_digest, read_json, write_json
from asdflow.models.encoder import build_encoder, save_encoder
from asdflow.training import finetune as stage
from asdflow.training.finetune import finetune
from asdflow.training.material import TrainingMaterial, crop, held_out_clips
from asdflow.training.network import TunedModel, load_model
from safetensors.torch import load_file

FRONT_END = FRONT_ENDS["eat_logmel"]
EAT = {
    "front_end": "eat_logmel",
    "architecture": {"name": "eat", "width": 32, "depth": 2, "heads": 2, "pad_multiple": 16},
}
OFF = {"probability": 0.0}
SETTINGS: dict[str, Any] = {
    "tuning": {
        "method": "full", "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2,
        "weight_decay": 0.01, "warmup": 0.1, "clip_norm": 4.0, "crop_frames": 32, "balance": "label",
        "weight_average": 0.5, "frozen_share": 0.0, "frozen_features": "encoder", "frozen_pooling": "mean_deviation",
        "checkpoint_minutes": 10,
        "log_every": 4, "lora": {"rank": 2, "alpha": 4, "branches": 2, "targets": ["qkv", "fc1"]},
        "adapter": {"groups": 0, "bottleneck": 4, "unseen": "error"},
    },
    "objective": {"arcface": {"weight": 1.0, "scale": 16, "margin": 0.2}},
    "augmentation": {
        "mixup": {**OFF, "alpha": 0.2}, "log_mixup_exp": {**OFF, "strength": 0.3, "memory": 16},
        "random_resize_crop": {**OFF, "frequency_scale": [0.6, 1.5], "time_scale": [0.6, 1.5]}, "segments": {"count": 1},
        "specaugment": {**OFF, "time_masks": 1, "time_width": 4, "frequency_masks": 1, "frequency_width": 4},
        "noise": {**OFF, "snr": [0, 20]}, "high_frequency": {**OFF, "cutoff": [0.25, 1.0], "kind": "any", "gain": 12},
    },
    "pooling": {
        "kind": "mean", "power": 3.0, "hidden": 8, "layers": None, "projection": None, "crops": 2, "standardise": "none",
    },
}  # fmt: skip
EVERY_AUGMENTATION = {name: {"probability": 1.0} for name in SETTINGS["augmentation"] if name != "segments"}


def changed(tree=SETTINGS, **changes):
    """The settings with dotted keys replaced: changed(tuning__steps=3)."""
    settings = copy.deepcopy(tree)
    for path, value in changes.items():
        place = settings
        *parents, last = path.split("__")
        for key in parents:
            place = place[key]
        place[last] = {**place[last], **value} if isinstance(place.get(last), dict) else value
    return settings


class World:
    """Two machines, two classes each, tones in class-dependent bands; a further data set with a copy of a test clip."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        rows, labels = [], []
        self.sources: dict[str, list[Path]] = {}
        for dataset, machines in (("demo", ("fan", "valve")), ("more", ("pump",))):
            for machine in machines:
                frames, ids, hashes = [], [], []
                for number in range(10):
                    split = "train" if number < 8 else "test"
                    clip_id = f"{machine}/{split}/{number}"
                    clip = 0.3 * rng.normal(size=(40 + 4 * (number % 3), 128))
                    band = 20 + 40 * (number % 2) + 10 * (machine == "valve")
                    clip[:, band : band + 20] += 1.5
                    frames.append(clip.astype(np.float16))
                    ids.append(clip_id)
                    hashes.append(
                        "copied" if clip_id in ("fan/test/9", "pump/train/3") else f"{dataset}{clip_id}"
                    )
                    rows.append((clip_id, machine, split, None))
                    if split == "train":
                        label = f"{dataset}:{machine}|{number % 2}"
                        domain = "target" if number > 5 else "source"
                        labels.append((dataset, clip_id, label, "attributes", machine, "00", domain))
                path = folder / dataset / f"{machine}.h5"
                path.parent.mkdir(exist_ok=True)
                write_features(path, ids, frames, hashes, FRONT_END)
                self.sources.setdefault(dataset, []).append(path)
        clips = pd.DataFrame(rows, columns=["clip_id", "machine", "split", "supplement"])
        clips.loc[clips["clip_id"] == "valve/test/9", "supplement"] = "noise"
        clips[clips["machine"] != "pump"].to_parquet(folder / "clips.parquet")
        columns = ["dataset", "clip_id", "label_name", "origin", "machine", "section", "domain"]
        self.labels = pd.DataFrame(labels, columns=columns)
        self.labels.assign(label=0).to_parquet(folder / "labels.parquet")
        self.encoder = folder / "encoder"
        save_encoder(build_encoder(EAT, seed=0), self.encoder)

    def run(self, name, settings=SETTINGS, seed=0, sources=None):
        output = self.folder / name
        finetune(
            settings, sources or self.sources, self.folder / "labels.parquet", self.folder / "clips.parquet",
            self.encoder, seed, output, self.folder / "checkpoints" / name, "cpu",
        )  # fmt: skip
        return output

    def material(self, balance="label", **others):
        return TrainingMaterial(
            self.sources, self.folder / "labels.parquet", self.folder / "clips.parquet", balance, 0, **others
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


def test_a_copy_of_a_scored_clip_in_a_further_data_set_is_not_learnt_from(world):
    table = world.material().table
    assert "pump/train/3" not in set(table["clip_id"])
    assert len(table) == 3 * 8 - 1


def test_held_out_clips_are_a_fixed_share_of_each_machine_and_domain_and_are_never_learnt_from(world):
    whole, kept = world.material().table, world.material(held_out=0.5).table
    left_out = whole[~whole["clip_id"].isin(kept["clip_id"])]
    assert set(left_out["dataset"]) == {"demo"}
    assert left_out.groupby(["machine", "domain"]).size().to_dict() == {
        (machine, domain): count
        for machine in ("fan", "valve")
        for domain, count in (("source", 3), ("target", 1))
    }
    of_demo = world.labels[world.labels["dataset"] == "demo"]
    assert held_out_clips(of_demo.sample(frac=1, random_state=1), 0.5) == set(left_out["clip_id"])
    assert held_out_clips(of_demo, 0.0) == set()


@pytest.mark.parametrize("balance", ["machine", "machine_domain", "label"])
def test_batches_hold_equal_shares_of_the_key(world, balance):
    material = world.material(balance)
    table = material.table
    drawn = np.zeros(len(material.classes))
    for step in range(60):
        drawn += np.bincount(material.batch(step, 12, 16, 1, False).label, minlength=len(drawn))
    keys = {"machine": "machine", "machine_domain": "domain", "label": "label_name"}
    if balance == "machine_domain":
        assert material.share[table["domain"] == "target"].sum() == pytest.approx(0.5)
        return
    of_class = table.drop_duplicates("target").set_index("target")[keys[balance]]
    shares = pd.Series(drawn / drawn.sum()).groupby(of_class).sum()
    assert shares.to_numpy() == pytest.approx(1 / len(shares), abs=0.03)


def test_a_batch_depends_on_seed_and_step_alone(world):
    one, two = world.material(), world.material()
    one.batch(3, 8, 16, 2, False)
    first, second = one.batch(7, 8, 16, 2, False), two.batch(7, 8, 16, 2, False)
    assert np.array_equal(first.frames, second.frames) and np.array_equal(first.label, second.label)
    assert first.frames.shape == (2, 8, 16, 128)
    assert not np.array_equal(first.frames[0], first.frames[1])


def test_short_clips_start_over_and_long_ones_are_cut_inside():
    clip = np.arange(10).reshape(5, 2)
    assert crop(clip, 8, 0.3)[5:].tolist() == clip[:3].tolist()
    assert crop(clip, 2, 0.999).tolist() == clip[3:].tolist()


def test_training_lowers_the_loss_and_separates_the_classes(world):
    output = world.run(
        "learn", changed(tuning__steps=50, tuning__learning_rate=3e-3, tuning__head_learning_rate=3e-2)
    )
    history = pd.read_parquet(output / "history.parquet")
    loss = history.loc[history["metric"] == "loss", "value"].to_numpy()
    assert loss[-1] < 0.5 * loss[0]
    ids, vectors = read_embeddings(output / "embeddings.h5")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    train = [row for row, clip in enumerate(ids) if "/train/" in clip]
    for row, clip in enumerate(ids):
        if "/test/" in clip:
            nearest = ids[max(train, key=lambda other: unit[row] @ unit[other])]
            assert nearest.split("/")[0] == clip.split("/")[0]
            assert int(nearest.split("/")[2]) % 2 == int(clip.split("/")[2]) % 2


def test_every_clip_of_the_scored_data_set_is_embedded_and_no_other(world):
    ids, vectors = read_embeddings(world.run("all", changed(tuning__steps=1)) / "embeddings.h5")
    index = FeatureStore({"demo": world.sources["demo"]}).index
    assert ids == index["clip_id"].tolist() and np.isfinite(vectors).all()


ADAPTED = [
    {"tuning__method": "full"},
    {"tuning__method": "full", "tuning__frozen_share": 0.4, "pooling__standardise": "machine"},
    {"tuning__method": "lora"},
    {"tuning__method": "fully_connected_lora", "tuning__adapter": {"groups": 2}, "tuning__frozen_share": 0.2},
    {"tuning__method": "none", "pooling__standardise": "machine"},
    {
        "tuning__method": "full",
        "pooling__kind": "attentive_statistics",
        "pooling__projection": 6,
        "pooling__layers": [0, 1],
    },
]


@pytest.mark.parametrize("changes", ADAPTED)
def test_a_stored_model_embeds_as_the_run_did_and_the_base_is_untouched(world, changes):
    before = {path: path.read_bytes() for path in world.encoder.iterdir()}
    output = world.run("stored", changed(tuning__steps=2, **changes))
    assert {path: path.read_bytes() for path in world.encoder.iterdir()} == before
    _, vectors = read_embeddings(output / "embeddings.h5")
    model = load_model(output)
    store = FeatureStore({"demo": world.sources["demo"]})
    again = model.embed([store.frames(k) for k in (3, 11)], store.index["machine"].iloc[[3, 11]].tolist())
    np.testing.assert_allclose(again, vectors[[3, 11]], rtol=1e-4, atol=1e-5)


def test_a_lora_model_stores_no_base_weights_and_is_loaded_with_its_updates_merged(world):
    output = world.run("lora", changed(tuning__method="lora"))
    base = load_file(world.encoder / "encoder.safetensors")
    stored = load_file(output / "model.safetensors")
    assert not any(name.removeprefix("encoder.") in base for name in stored)
    ups = {
        name.removesuffix(".up"): value.abs().max() > 0
        for name, value in stored.items()
        if name.endswith(".up")
    }
    assert ups and all(ups.values())
    model = load_model(output)
    assert isinstance(model, TunedModel) and model.tuned is not None
    loaded = model.tuned.state_dict()
    changed_layers = {
        f"encoder.{name.removesuffix('.weight')}"
        for name, value in base.items()
        if not torch.equal(loaded[f"encoder.{name}"], value)
    }
    assert changed_layers == ups.keys()


def test_a_stored_lora_is_a_small_share_of_the_base_whose_file_stays_as_it_is(world, tmp_path):
    wide = copy.copy(world)
    wide.encoder = tmp_path / "encoder"
    architecture = {"name": "eat", "width": 768, "depth": 2, "heads": 12}  # two of EAT-base's blocks
    save_encoder(build_encoder({**EAT, "architecture": architecture}, seed=0), wide.encoder)
    before = file_digest(wide.encoder / "encoder.safetensors")
    lora = {"rank": 16, "alpha": 32, "targets": ["qkv", "proj", "fc1", "fc2"]}
    output = wide.run("wide", changed(tuning__method="lora", tuning__steps=1, tuning__lora=lora))
    assert file_digest(wide.encoder / "encoder.safetensors") == before
    stored, base = output / "model.safetensors", wide.encoder / "encoder.safetensors"
    assert 0 < stored.stat().st_size < 0.05 * base.stat().st_size


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(world):
    settings = changed(**{f"augmentation__{name}": value for name, value in EVERY_AUGMENTATION.items()})
    one, two, other = (
        world.run(name, settings, seed) for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    for file in ("embeddings.h5", "model.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_an_interrupted_training_goes_on_to_the_same_end(world, monkeypatch):
    settings = changed(
        tuning__checkpoint_minutes=1e-9,
        **{f"augmentation__{name}": value for name, value in EVERY_AUGMENTATION.items()},
    )
    settings["objective"]["nt_xent"] = {"weight": 0.5, "temperature": 0.2}
    whole = world.run("whole", settings)
    update = stage._Training._update
    steps: list[int] = []

    def interrupted(self, step, batch):
        if step == 7 and not steps.count(7):
            steps.append(step)
            raise KeyboardInterrupt
        steps.append(step)
        return update(self, step, batch)

    monkeypatch.setattr(stage._Training, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.run("resumed", settings)
    resumed = world.run("resumed", settings)
    assert steps[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert (whole / "embeddings.h5").read_bytes() == (resumed / "embeddings.h5").read_bytes()


def test_the_averaged_weights_make_the_embeddings(world):
    last = load_file(world.run("last", changed(tuning__weight_average=0.0)) / "model.safetensors")
    averaged = load_file(world.run("averaged", changed(tuning__weight_average=0.9)) / "model.safetensors")
    assert any(not torch.equal(last[name], averaged[name]) for name in last)


def squared_distances(vectors):
    return ((vectors[:, None] - vectors[None]) ** 2).sum(2)


@pytest.mark.parametrize("standardise", ["none", "machine"])
def test_squared_distances_are_weighted_means_of_both_parts_in_units_of_neighbour_distance(
    world, standardise
):
    share, expected = 0.3, 0.0
    both = {"tuning__steps": 3, "pooling__standardise": standardise}
    frozen = {"tuning__method": "none", "pooling__kind": "mean_deviation"}
    for weight, changes in ((share, frozen), (1 - share, {})):
        ids, vectors = read_embeddings(world.run("part", changed(**both, **changes)) / "embeddings.h5")
        fan = [row for row, clip in enumerate(ids) if clip.startswith("fan")]
        squared = squared_distances(vectors[fan].astype(np.float64))
        train = squared[:8, :8] + np.diag([np.inf] * 8)
        expected += weight * squared / torch.tensor(np.sqrt(train.min(1))).median().item() ** 2
    _, vectors = read_embeddings(
        world.run("both", changed(**both, tuning__frozen_share=share)) / "embeddings.h5"
    )
    np.testing.assert_allclose(squared_distances(vectors[fan]), expected, rtol=2e-3, atol=2e-3)


def test_the_untouched_part_can_be_the_log_mel_itself_and_no_padding_enters_it(world):
    settings = changed(
        tuning__steps=2, tuning__frozen_share=1.0, tuning__frozen_features="log_mel", tuning__frozen_pooling="max",
    )  # fmt: skip
    folder = world.run("log_mel", settings)
    ids, vectors = read_embeddings(folder / "embeddings.h5")
    store = FeatureStore({"demo": world.sources["demo"]})
    loudest = np.stack([store.frames(row).max(0) for row in range(len(store))]).astype(np.float32)
    for machine in ("fan", "valve"):
        own = [row for row, clip in enumerate(ids) if clip.startswith(machine)]
        ratio = vectors[own, :128] / loudest[own]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    again = load_model(folder).embed([store.frames(0)], ["fan"])
    np.testing.assert_allclose(again[0], vectors[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["none", "full"])
def test_standardised_embeddings_are_centred_and_bounded_per_machine(world, method):
    settings = changed(tuning__method=method, tuning__steps=2, pooling__standardise="machine")
    ids, vectors = read_embeddings(world.run("standardised", settings) / "embeddings.h5")
    for machine in ("fan", "valve"):
        own = vectors[[row for row, clip in enumerate(ids) if clip.startswith(f"{machine}/train")]]
        np.testing.assert_allclose(own.mean(0), 0, atol=1e-4)
        assert own.std(0).max() <= 1 and np.median(own.std(0)) == pytest.approx(0.5**0.5, abs=0.02)


def test_a_machine_never_trained_on_is_refused_or_gets_the_mean_gate(world):
    gated = {"tuning__method": "lora", "tuning__steps": 2}
    strict = load_model(world.run("strict", changed(tuning__adapter={"groups": 2}, **gated)))
    clip = [np.zeros((40, 128), np.float16)]
    with pytest.raises(InputError, match="not trained on"):
        strict.embed(clip, ["grinder"])
    lenient = load_model(world.run("mean", changed(tuning__adapter={"groups": 2, "unseen": "mean"}, **gated)))
    assert np.isfinite(lenient.embed(clip, ["grinder"])).all()
    plain = load_model(world.run("plain_unseen", changed(tuning__steps=1)))
    assert np.isfinite(plain.embed(clip, ["grinder"])).all()


def test_what_only_the_recordings_show_to_be_impossible_is_refused(world, tmp_path):
    labels = pd.read_parquet(world.folder / "labels.parquet")
    labels[labels["machine"] == "fan"].assign(label_name="fan").to_parquet(tmp_path / "labels.parquet")
    settings = changed(tuning__adapter={"groups": 2})
    settings["objective"]["vector_quantised"] = {
        "weight": 1, "codes": 4, "decay": 0.9, "temperature": 0.1, "instance_weight": 1.0, "cluster_weight": 1.0
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        finetune(
            settings, world.sources, tmp_path / "labels.parquet", world.folder / "clips.parquet", world.encoder, 0,
            tmp_path / "out", tmp_path / "checkpoints", "cpu",
        )  # fmt: skip
    assert len(caught.value.problems) == 3


def test_the_operations_of_a_step_are_those_of_its_matrix_products(world):
    model = load_model(world.run("flops", changed(tuning__steps=1)))
    assert isinstance(model, TunedModel) and model.tuned is not None
    patches, width = (32 // 16) * (128 // 16), 32
    tokens = patches + 1
    products = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width  # of a block: weights, then attention
    expected = 3 * (2 * products + 2 * patches * 256 * width)
    assert stage.training_flops(model.tuned, 32) == pytest.approx(expected, rel=0.02)


def test_another_base_encoder_is_refused(world, tmp_path):
    output = world.run("based", changed(tuning__method="lora", tuning__steps=1))
    save_encoder(build_encoder(EAT, seed=5), tmp_path / "other")
    with pytest.raises(InputError, match="digest"):
        load_model(output, tmp_path / "other")
    description = read_json(output / "model.json", "")
    description["encoder"]["path"] = str(tmp_path / "gone")
    write_json(output / "model.json", description)
    with pytest.raises(InputError, match="missing"):
        load_model(output)


def test_features_missing_for_labelled_clips_are_named(world, tmp_path):
    extra = pd.read_parquet(world.folder / "labels.parquet")
    extra.loc[0, "clip_id"] = "fan/train/nowhere"
    extra.to_parquet(tmp_path / "labels.parquet")
    with pytest.raises(InputError) as caught:
        TrainingMaterial(
            world.sources, tmp_path / "labels.parquet", world.folder / "clips.parquet", "none", 0
        )
    assert caught.value.problems == ["fan/train/nowhere"]


@pytest.fixture(scope="module")
def spectra(tmp_path_factory):
    """A world of spectrograms for the autoencoder: anomalous clips have a band that training clips have not."""
    folder = tmp_path_factory.mktemp("spectra")
    rng, rows = np.random.default_rng(0), []
    frames = []
    for number in range(16):
        split, odd = ("train", False) if number < 12 else ("test", number >= 14)
        clip = 0.1 * rng.normal(size=(30, 513))
        clip[:, 100:110] += 1.0
        clip[:, 300:330] += 1.0 * odd
        frames.append(clip.astype(np.float16))
        rows.append((f"fan/{split}/{number}", "fan", split, None, "target" if number % 4 == 3 else "source"))
    clips = pd.DataFrame(rows, columns=["clip_id", "machine", "split", "supplement", "domain"])
    clips.to_parquet(folder / "clips.parquet")
    labels = clips[clips["split"] == "train"].assign(
        dataset="demo", section="00", origin="domain", label_name="fan"
    )
    labels.to_parquet(folder / "labels.parquet")
    path = folder / "fan.h5"
    write_features(path, clips["clip_id"].tolist(), frames, clips["clip_id"].tolist(), FRONT_ENDS["stft"])
    return folder, path


def test_the_official_autoencoder_scores_odd_clips_higher_by_both_of_its_scores(spectra, tmp_path):
    folder, path = spectra
    own = {"epochs": 60, "learning_rate": 1e-2, "batch_size": 64}
    settings = changed(tuning__method="autoencoder")
    settings["tuning"]["autoencoder"] = own
    finetune(
        settings, {"demo": [path]}, folder / "labels.parquet", folder / "clips.parquet", folder / "nowhere", 0,
        tmp_path, tmp_path / "checkpoints", "cpu",
    )  # fmt: skip
    ids, values = read_embeddings(tmp_path / "embeddings.h5")
    assert values.shape == (16, 2)
    assert (values[14:].min(0) > values[12:14].max(0)).all()
    history = pd.read_parquet(tmp_path / "history.parquet")
    loss = history.loc[history["metric"] == "loss_fan", "value"].to_numpy()
    assert len(loss) == 60 and loss[-1] < 0.5 * loss[0]
    store = FeatureStore({"demo": [path]})
    again = load_model(tmp_path).embed([store.frames(3)], ["fan"])
    np.testing.assert_allclose(again[0], values[ids.index("fan/train/3")], rtol=1e-5)


def test_a_crop_keeps_the_spectrum_that_stands_before_the_frames():
    clip = np.arange(20, dtype=np.float16)[:, None]
    assert crop(clip, 8, 0.0, 4)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert crop(clip, 8, 0.999, 4)[:, 0].tolist() == [0, 1, 2, 3, 16, 17, 18, 19]
    assert crop(clip[:6], 8, 0.5, 4)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
