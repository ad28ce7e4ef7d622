"""Pre-training: the objective, equivalence with its naive form, resuming, several processes, what is trained on."""

import logging
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from asdflow.errors import InputError
from asdflow.features.front_end import front_end_config
from asdflow.features.store import FeatureStore, write_features
from asdflow.models.eat import EAT
from asdflow.models.encoder import build_encoder, save_encoder
from asdflow.models.loading import load_encoder
from asdflow.training import pretrain as module
from asdflow.training.checkpoint import Checkpoints
from asdflow.training.masking import inverse_block_masks
from asdflow.training.pretrain import make_optimiser, name_collapse, pretrain
from asdflow.training.sampling import BatchPlan, training_items
from asdflow.training.self_distillation import (
    Decoder,
    Prediction,
    Student,
    distillation_losses,
    follow,
    layer_targets,
    make_teacher,
    mask_noise,
    step_flops,
)
from safetensors.torch import load_file

from benchmarks.pretraining import naive_losses
from tests.conftest import REPOSITORY
from tests.killing import killed_at, lines_of, moments

ARCHITECTURE = {"name": "eat", "width": 16, "depth": 2, "heads": 2, "max_frames": 512, "pad_multiple": 16}
CONFIG: dict[str, Any] = {"front_end": "eat_logmel", "architecture": ARCHITECTURE}
RECIPE: dict[str, Any] = {
    "steps": 8, "epochs": None, "batch_size": 4, "accumulate": 1, "masks": 3, "mask_ratio": 0.8, "block": 3,
    "decoder": {"layers": 2, "kernel": 3, "groups": 4}, "utterance_weight": 1.0, "learning_rate": 0.01, "warmup": 0.25,
    "weight_decay": 0.05, "clip_norm": 4.0, "ema": {"start": 0.9, "end": 0.99, "anneal_steps": None},
    "crop_frames": None, "balance": "machines", "supplemental": True, "export": "student", "precision": "auto",
    "compile": False, "checkpoint_minutes": 60.0, "log_every": 2, "seed": 5, **CONFIG,
}  # fmt: skip


def write_clips(folder: Path, machines: dict[str, list[int]]) -> dict[str, tuple[Path, list[Path]]]:
    """A data set of hums: machine -> frames of each training clip, one test clip more per machine."""
    rng, rows, paths = np.random.default_rng(0), [], []
    for machine, lengths in machines.items():
        lengths = [*lengths, 64]
        ids = [f"{machine}/{'test' if i + 1 == len(lengths) else 'train'}/{i}" for i in range(len(lengths))]
        spectra = [rng.standard_normal(128) for _ in lengths]  # every clip hums its own steady tune
        frames = [
            (s + 0.3 * rng.standard_normal((n, 128))).astype(np.float16)
            for s, n in zip(spectra, lengths, strict=True)
        ]
        paths.append(folder / f"{machine}.h5")
        hashes = [f"{machine}{i}" for i in range(len(ids))]
        write_features(paths[-1], ids, frames, hashes, front_end_config("eat_logmel"))
        rows += [
            {
                "clip_id": i,
                "machine": machine,
                "split": i.split("/")[1],
                "condition": "normal",
                "supplement": None,
            }
            for i in ids
        ]
    pd.DataFrame(rows).to_parquet(folder / "clips.parquet")
    return {"noise": (folder / "clips.parquet", paths)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("noise"), {"fan": [64] * 6, "pump": [64] * 3 + [96] * 2})


@pytest.fixture(scope="module")
def finished(sources, tmp_path_factory):
    """An uninterrupted run of RECIPE."""
    folder = tmp_path_factory.mktemp("finished")
    pretrain(RECIPE, sources, None, folder, folder / "checkpoints", "cpu")
    return folder


def same_weights(one: Path, two: Path) -> bool:
    a, b = (load_file(folder / "encoder.safetensors") for folder in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------- the objective


def build_eat(seed: int) -> EAT:
    encoder = build_encoder(CONFIG, seed)
    assert isinstance(encoder, EAT)
    return encoder


def small_case(clips=2, masks=3, frames=64, width=16):
    encoder = build_eat(seed=1)
    torch.manual_seed(0)
    student = Student(encoder, Decoder(width, 2, 3, 4))
    teacher = make_teacher(build_eat(seed=2))
    log_mel = torch.randn(clips, frames, 128)
    grid = encoder.grid(frames)
    drawn = inverse_block_masks(clips * masks, grid, 0.8, 3, torch.Generator().manual_seed(3))
    noise = mask_noise(masks, grid[0] * grid[1], width, 4, torch.device("cpu"))
    return student, teacher, log_mel, drawn, noise


def test_the_loss_and_its_gradients_are_those_of_the_naive_form():
    """The naive form: per mask one teacher pass, and a student over all patches that may not look at mask tokens."""
    student, teacher, log_mel, masks, noise = small_case()
    losses = distillation_losses(student(log_mel, masks, noise), layer_targets(teacher, log_mel), masks)
    per_mask = list(naive_losses(student, teacher, log_mel, masks, noise, restricted=True))
    assert len(per_mask) == 3
    frame, utterance = (torch.stack(part).mean() for part in zip(*per_mask, strict=True))
    torch.testing.assert_close(losses.frame, frame, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.utterance, utterance, rtol=1e-5, atol=1e-6)
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(losses.frame + losses.utterance, parameters)
    naive_gradients = torch.autograd.grad(frame + utterance, parameters)
    for one, other in zip(gradients, naive_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_letting_patches_look_at_mask_tokens_is_another_function():
    student, teacher, log_mel, masks, noise = small_case()
    ways = [
        list(naive_losses(student, teacher, log_mel, masks, noise, restricted))
        for restricted in (True, False)
    ]
    assert abs(ways[0][0].frame - ways[1][0].frame) > 1e-4


def test_the_student_learns_nothing_from_hidden_patches():
    student, _, log_mel, masks, noise = small_case(clips=1, masks=1)
    log_mel.requires_grad_()
    student(log_mel, masks, noise).patches.sum().backward()
    touched = log_mel.grad.view(4, 16, 8, 16).abs().sum((1, 3)).view(-1) > 0
    assert touched[masks.kept[0]].all() and not touched[masks.hidden[0]].any()


def test_targets_are_the_definition():
    _, teacher, log_mel, _, _ = small_case()
    x, layers = teacher.with_cls(teacher.patches(log_mel)), []
    for block in teacher.blocks:
        x = block.norm1(x + block.attn(x))
        layers.append(F.instance_norm(block.mlp(x)[:, 1:].transpose(1, 2)).transpose(1, 2))
        x = block.norm2(x + block.mlp(x))
    expected = F.layer_norm(torch.stack(layers).mean(0), (16,))
    torch.testing.assert_close(layer_targets(teacher, log_mel), expected, atol=1e-5, rtol=1e-4)


def test_a_perfect_prediction_costs_nothing_and_an_error_costs_its_square_over_the_root_of_the_width():
    _, teacher, log_mel, masks, _ = small_case()
    targets = layer_targets(teacher, log_mel)
    rows = torch.cat([targets[i // 3][hidden] for i, hidden in enumerate(masks.hidden)])
    cls = targets.mean(1).repeat_interleave(3, 0)
    assert distillation_losses(Prediction(rows, cls), targets, masks).frame == 0
    losses = distillation_losses(Prediction(rows + 0.5, cls - 1.0), targets, masks)
    assert losses.frame.item() == pytest.approx(0.25 * 16**0.5, rel=1e-5)
    assert losses.utterance.item() == pytest.approx(1.0 * 16**0.5, rel=1e-5)


def test_the_teacher_follows_slowly_and_gets_no_gradient():
    student, teacher, log_mel, _, _ = small_case()
    before = teacher.patch_embed.proj.weight.clone()
    follow(teacher, student.encoder, 0.75)
    expected = 0.75 * before + 0.25 * student.encoder.patch_embed.proj.weight
    torch.testing.assert_close(teacher.patch_embed.proj.weight, expected)
    assert not layer_targets(teacher, log_mel).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_weight_decay_spares_biases_and_normalisations():
    student = small_case()[0]
    decayed, spared = make_optimiser(student, 0.05).param_groups
    assert decayed["weight_decay"] == 0.05 and all(p.ndim > 1 for p in decayed["params"])
    assert spared["weight_decay"] == 0.0 and len(spared["params"]) > 10
    assert len(decayed["params"]) + len(spared["params"]) == len(list(student.parameters()))


def test_collapse_is_named(caplog):
    assert name_collapse({"target_variance": 0.9, "prediction_variance": 0.5}) == []
    name_collapse({"target_variance": 0.04, "prediction_variance": 0.5})
    assert "collapsed" in caplog.text and "target_variance 0.04 (below 0.1)" in caplog.text


def test_flops_of_a_step_are_the_matrix_products_it_makes():
    from torch.utils.flop_counter import FlopCounterMode

    student, teacher, log_mel, masks, noise = small_case()
    with FlopCounterMode(display=False) as counter:
        targets = layer_targets(teacher, log_mel)
        losses = distillation_losses(student(log_mel, masks, noise), targets, masks)
        (losses.frame + losses.utterance).backward()
    ours = 2 * step_flops(student.encoder, student.decoder, 64, masks.kept.shape[1], 3)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.1)


# ------------------------------------------------------------------------------------------------- the run


def test_a_run_leaves_an_encoder_its_history_and_no_checkpoints(finished):
    encoder = load_encoder(finished)
    assert encoder.config() == CONFIG | {
        "architecture": {**ARCHITECTURE, "mlp_ratio": 4.0, "patch": 16, "bins": 128}
    }
    history = pd.read_parquet(finished / "history.parquet")
    assert history["step"].unique().tolist() == [2, 4, 6, 8]
    assert {
        "loss",
        "loss_frame",
        "loss_utterance",
        "similarity",
        "target_variance",
        "prediction_variance",
    } <= set(history["metric"])
    assert {"learning_rate", "teacher_decay", "clips_per_second", "peak_memory_mb"} <= set(history["metric"])
    assert list((finished / "checkpoints").glob("*")) == []


def test_training_lowers_the_loss(sources, tmp_path):
    recipe = {**RECIPE, "steps": 60, "ema": {"start": 0.999, "end": 0.999, "anneal_steps": None}}
    pretrain(recipe, sources, None, tmp_path, tmp_path / "c", "cpu")
    loss = pd.read_parquet(tmp_path / "history.parquet").query("metric == 'loss_frame'")["value"].to_numpy()
    assert loss[-5:].mean() < 0.8 * loss[:2].mean()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(sources, finished, tmp_path):
    torch.rand(3)  # the global generator's state must not matter
    pretrain(RECIPE, sources, None, tmp_path / "a", tmp_path / "c", "cpu")
    pretrain({**RECIPE, "seed": 6}, sources, None, tmp_path / "b", tmp_path / "c", "cpu")
    assert (tmp_path / "a/encoder.safetensors").read_bytes() == (
        finished / "encoder.safetensors"
    ).read_bytes()
    assert not same_weights(tmp_path / "b", finished)


def test_the_teacher_can_be_exported_instead(sources, finished, tmp_path):
    pretrain({**RECIPE, "export": "teacher"}, sources, None, tmp_path, tmp_path / "c", "cpu")
    assert not same_weights(tmp_path, finished)


def test_accumulation_changes_nothing_but_rounding(sources, finished, tmp_path):
    pretrain({**RECIPE, "accumulate": 2}, sources, None, tmp_path, tmp_path / "c", "cpu")
    assert_same_weights_but_for_rounding(tmp_path, finished)


def assert_same_weights_but_for_rounding(one: Path, two: Path) -> None:
    """Sums in another order: every weight ends within 1e-4 of the way that its tensor has gone.

    A bias of attention's keys has no gradient (a constant added to all scores changes no attention): what Adam makes of
    its rounding errors tells nothing.
    """
    a, b = (load_file(folder / "encoder.safetensors") for folder in (one, two))
    first = build_eat(RECIPE["seed"]).state_dict()
    for key in a:
        moved = (b[key] - first[key]).abs().max().item()
        apart = (a[key] - b[key]).abs()
        if key.endswith("attn.qkv.bias"):
            width = len(apart) // 3
            apart[width : 2 * width] = 0.0
        assert moved > 0.01 and apart.max().item() <= 1e-4 * moved, key


def test_two_processes_give_the_result_of_one(sources, finished, tmp_path):
    pretrain(RECIPE, sources, None, tmp_path, tmp_path / "c", "cpu", devices=2)
    assert_same_weights_but_for_rounding(tmp_path, finished)
    tables = [
        pd.read_parquet(folder / "history.parquet").query("metric in ['loss', 'gradient_norm', 'similarity']")
        for folder in (tmp_path, finished)
    ]
    assert tables[0]["step"].tolist() == tables[1]["step"].tolist() and len(tables[0]) == 12
    assert tables[0]["value"].to_numpy() == pytest.approx(tables[1]["value"].to_numpy(), rel=1e-4)
    assert list(tmp_path.glob(".*")) == []


def test_several_nodes_need_slurm(sources, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match="needs a SLURM allocation"):
        pretrain(RECIPE, sources, None, tmp_path, tmp_path / "c", "cpu", nodes=2)


def test_more_gpus_than_there_are_is_refused(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    with pytest.raises(InputError, match="training_devices: 2, and this job sees 1 GPU"):
        pretrain(RECIPE, sources, None, tmp_path, tmp_path / "c", "cuda", devices=2)


# ------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_ends_with_the_same_bytes_as_an_uninterrupted_one(
    sources, finished, tmp_path, monkeypatch, caplog, number
):
    with monkeypatch.context() as patch:
        update = module.Run.update

        def interrupted(self, step):
            update(self, step)
            if step == 4:
                os.kill(os.getpid(), number)

        patch.setattr(module.Run, "update", interrupted)
        with pytest.raises(SystemExit) as caught:
            pretrain(RECIPE, sources, None, tmp_path, tmp_path / "c", "cpu")
    assert caught.value.code == 128 + number and not (tmp_path / "encoder.safetensors").exists()
    caplog.set_level(logging.INFO)
    pretrain(RECIPE, sources, None, tmp_path, tmp_path / "c", "cpu")
    assert "Continuing after update 5" in caplog.text
    assert same_weights(tmp_path, finished)
    rows = [
        pd.read_parquet(folder / "history.parquet").query("metric == 'loss'")
        for folder in (tmp_path, finished)
    ]
    assert rows[0]["step"].tolist() == rows[1]["step"].tolist()
    assert rows[0]["value"].iloc[-1] == rows[1]["value"].iloc[-1]


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes_and_repeats_at_most_one_interval(
    sources, finished, tmp_path, monkeypatch
):
    """Checkpoints come every INTERVAL updates here; `journal` holds every update that any of the processes made."""
    journal, update = tmp_path / "journal", module.Run.update

    def noted(self, step):
        update(self, step)
        with journal.open("a") as handle:
            handle.write(f"{step}\n")

    interval = 3
    monkeypatch.setattr(module.Run, "update", noted)
    monkeypatch.setattr(Checkpoints, "after_step", save_every(interval))
    output = tmp_path / "out"

    def run():
        pretrain(RECIPE, sources, None, output, output / "c", "cpu")

    lines = lines_of(run)
    assert same_weights(output, finished)
    for moment in moments(11, 5, lines):
        output.rename(tmp_path / f"before_{moment}")
        journal.unlink()
        for line in (moment, 60 + moment % 60):  # and once more soon after the second start
            killed_at(line, run)
            assert not (output / "encoder.safetensors").exists() or same_weights(output, finished)
        run()
        assert same_weights(output, finished)
        done = list(map(int, journal.read_text().split()))
        assert set(done) == set(range(RECIPE["steps"]))
        assert len(done) - RECIPE["steps"] <= 2 * interval, (
            "two kills, each costs at most the updates since a checkpoint"
        )


def save_every(interval):
    """`Checkpoints.after_step` by the number of updates instead of minutes."""

    def after_step(self, step, state):
        if step % interval == 0:
            self.save(step, state())

    return after_step


def test_a_checkpoint_of_another_recipe_is_refused_by_name_and_the_run_starts_again(
    sources, finished, tmp_path, monkeypatch, caplog
):
    def stop_at_once(self, step, state):
        self.save(step, state())
        raise SystemExit(1)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Checkpoints, "after_step", stop_at_once)
        pretrain({**RECIPE, "masks": 2}, sources, None, tmp_path, tmp_path / "c", "cpu")
    pretrain(RECIPE, sources, None, tmp_path, tmp_path / "c", "cpu")
    assert "settings.masks: 2, now 3" in caplog.text and "starting from the beginning" in caplog.text
    assert same_weights(tmp_path, finished)


# ------------------------------------------------------------------------------------------------- starting points


def test_adapting_trained_weights_has_a_smaller_default_rate_than_random_ones(sources, tmp_path):
    peaks = {}
    for name in ("random", "trained"):
        save_encoder(
            build_encoder(CONFIG, seed=1),
            tmp_path / name,
            **({"weights": "random"} if name == "random" else {}),
        )
        recipe = {**RECIPE, "learning_rate": None, "warmup": 0.0, "log_every": 1, "steps": 1}
        pretrain(recipe, sources, tmp_path / name, tmp_path / "out", tmp_path / "c", "cpu")
        history = pd.read_parquet(tmp_path / "out/history.parquet")
        peaks[name] = history.query("metric == 'learning_rate'")["value"].max()
    assert peaks == pytest.approx({"random": 5e-4, "trained": 1e-4})


def test_adaptation_starts_from_the_given_weights(sources, tmp_path):
    save_encoder(build_encoder(CONFIG, seed=9), tmp_path / "first")
    recipe = {**RECIPE, "learning_rate": 1e-9, "weight_decay": 0.0}
    pretrain(recipe, sources, tmp_path / "first", tmp_path / "out", tmp_path / "c", "cpu")
    before, after = (load_file(tmp_path / name / "encoder.safetensors") for name in ("first", "out"))
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_an_encoder_that_is_no_eat_is_refused(sources, tmp_path):
    config = {"front_end": "eat_logmel", "architecture": {"name": "logmel_statistics"}}
    save_encoder(build_encoder(config, seed=0), tmp_path / "first")
    with pytest.raises(InputError, match="logmel_statistics"):
        pretrain(RECIPE, sources, tmp_path / "first", tmp_path / "out", tmp_path / "c", "cpu")


def test_a_recipe_that_does_not_fit_together_lists_everything(sources, tmp_path):
    recipe = {**RECIPE, "epochs": 2, "accumulate": 3, "decoder": {"layers": 1, "kernel": 2, "groups": 4}}
    with pytest.raises(InputError) as caught:
        pretrain(recipe, sources, None, tmp_path, tmp_path / "c", "cpu")
    assert len(caught.value.problems) == 3


# ------------------------------------------------------------------------------------------------- what is trained on


def catalogue(**changes) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    rows = [
        ("a", "fan", "train", "normal", None, "h0"),
        ("b", "fan", "train", None, None, "h1"),
        ("c", "fan", "test", None, None, "h2"),
        ("d", "fan", "train", "normal", None, "h0"),
        ("e", "fan", "supplemental", None, "clean", "h4"),
        ("f", "fan", "supplemental", None, "noise", "h5"),
        ("g", "fan", "train", "anomaly", None, "h6"),
    ]
    table = pd.DataFrame(
        rows, columns=["clip_id", "machine", "split", "condition", "supplement", "content_hash"]
    )
    return table.assign(dataset="x"), {"x": table.drop(columns="content_hash")}


def test_only_normal_training_clips_are_used_each_recording_once():
    index, clips = catalogue()
    assert training_items(index, clips, supplemental=False).tolist() == [0, 1]
    assert training_items(index, clips, supplemental=True).tolist() == [0, 1, 4]


def test_a_recording_that_is_also_a_test_clip_somewhere_is_not_trained_on():
    index, clips = catalogue()
    other = {"x": clips["x"], "y": clips["x"].query("clip_id == 'c'")}
    later = index.query("clip_id == 'c'").assign(dataset="y", content_hash="h0")
    both = pd.concat([index, later], ignore_index=True)
    assert training_items(both, other, supplemental=True).tolist() == [1, 4]


def test_clips_of_equal_name_in_two_data_sets_are_told_apart():
    index, clips = catalogue()
    other = {"x": clips["x"], "y": clips["x"].assign(split="test", supplement=None)}
    both = pd.concat([index, index.assign(dataset="y", content_hash="z")], ignore_index=True)
    assert training_items(both, other, supplemental=True).tolist() == [0, 1, 4]


def test_no_training_clips_is_an_error_that_names_the_data_sets():
    index, clips = catalogue()
    with pytest.raises(InputError, match="no training clips") as caught:
        training_items(index, {"x": clips["x"].assign(split="test")}, supplemental=True)
    assert "x: 7 clips" in str(caught.value)


def plan(lengths: dict[str, list[int]], **options) -> tuple[BatchPlan, pd.DataFrame]:
    rows = [("x", machine, n) for machine, all_lengths in lengths.items() for n in all_lengths]
    index = pd.DataFrame(rows, columns=["dataset", "machine", "n_frames"])
    settings = {
        "batch_size": 4,
        "steps": 60,
        "seed": 1,
        "balance": "machines",
        "crop_frames": None,
        "pad_multiple": 16,
    }
    return BatchPlan(index, np.arange(len(index)), **{**settings, **options}), index


def test_machines_are_drawn_equally_often_however_many_clips_they_have():
    batches, index = plan({"fan": [64] * 90, "pump": [64] * 3})
    drawn = index["machine"].iloc[np.concatenate([batches.items(step) for step in range(60)])].value_counts()
    assert drawn["fan"] == drawn["pump"] == 120


def test_balanced_by_clips_every_clip_comes_once_per_pass():
    batches, _ = plan({"fan": [64] * 30, "pump": [64] * 10}, balance="clips")
    assert sorted(np.concatenate([batches.items(step) for step in range(10)])) == list(range(40))


def test_clips_of_one_machine_take_turns():
    batches, index = plan({"fan": [64] * 12, "pump": [64] * 12}, steps=6)
    assert sorted(np.concatenate([batches.items(step) for step in range(6)])) == list(range(24))
    assert len(index) == 24


def test_a_batch_has_one_padded_length_and_each_length_its_share():
    batches, index = plan({"fan": [600] * 20, "pump": [1000] * 20, "valve": [1001] * 20}, steps=300)
    lengths = [set(-(-index["n_frames"].iloc[batches.items(step)] // 16)) for step in range(300)]
    assert all(len(found) == 1 for found in lengths)
    short = sum(found == {38} for found in lengths)
    assert 70 < short < 130


def test_batches_are_a_function_of_seed_and_step():
    one, two = plan({"fan": [64] * 9, "pump": [80] * 5})[0], plan({"fan": [64] * 9, "pump": [80] * 5})[0]
    for step in (40, 3, 59):
        assert one.spans(step) == two.spans(step)
    other = plan({"fan": [64] * 9, "pump": [80] * 5}, seed=2)[0]
    assert [one.spans(step) for step in range(9)] != [other.spans(step) for step in range(9)]


def test_longer_clips_are_cropped_at_random_places_shorter_ones_stay():
    batches, index = plan({"fan": [300] * 20, "pump": [100] * 20}, crop_frames=160, steps=200)
    firsts = set()
    for step in range(200):
        for item, first, last in batches.spans(step):
            n = index["n_frames"].iloc[item]
            assert last - first == min(n, 160) and 0 <= first <= last <= n
            firsts |= {first} if n == 300 else set()
    assert len(firsts) > 80 and max(firsts) > 120


def test_the_store_rows_are_those_of_the_training_clips(sources):
    store = FeatureStore({"noise": sources["noise"][1]})
    clips = {"noise": pd.read_parquet(sources["noise"][0])}
    ids = store.index["clip_id"].iloc[training_items(store.index, clips, True)]
    assert len(ids) == 11 and all("/train/" in clip_id for clip_id in ids)


def test_student_and_targets_compile_to_one_graph_each_without_changing_the_loss():
    """As on CUDA, with the tracing backend that needs no C++ compiler."""
    student, teacher, log_mel, masks, noise = small_case()
    eager = distillation_losses(student(log_mel, masks, noise), layer_targets(teacher, log_mel), masks)
    targets_of = torch.compile(layer_targets, backend="aot_eager", fullgraph=True)
    student.compile(backend="aot_eager", fullgraph=True)
    compiled = distillation_losses(student(log_mel, masks, noise), targets_of(teacher, log_mel), masks)
    torch.testing.assert_close(tuple(compiled), tuple(eager), rtol=1e-5, atol=1e-6)
    (compiled.frame + compiled.utterance).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_with_freed_memory_kept_the_same_pages_serve_every_update():
    script = (
        "import resource, sys, numpy as np; from asdflow.training.memory import keep_freed_memory\n"
        "kept = keep_freed_memory() if sys.argv[1] == 'keep' else True\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(5_000_000); before = faults()\n"
        "for _ in range(10): np.ones(5_000_000)\n"
        "print(int(kept), faults() - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow_scripts")}
    found = {}
    for way in ("keep", "leave"):
        command = [sys.executable, "-c", script, way]
        kept, faults = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        found[way] = int(faults)
        if platform.libc_ver()[0] == "glibc":
            assert kept == "1"
    if platform.libc_ver()[0] == "glibc":
        assert found["keep"] < 0.1 * found["leave"]
    else:
        assert found["keep"] <= 1.5 * found["leave"]
