"""Checkpoints: whole or absent, verified, another run's refused by name, signals end a run softly; and the clock."""

import logging
import os
import signal

import pandas as pd
import pytest
import torch
from asdflow.errors import InputError
from asdflow.training.checkpoint import (
    Checkpoints,
    describe_differences,
)
from asdflow.training.progress import Progress, format_seconds

IDENTITY = {"settings": {"masks": 16, "ema": {"start": 0.9}}, "code": "abc"}


def checkpoints(directory, minutes=60.0, **changes):
    return Checkpoints(directory, {**IDENTITY, **changes}, minutes)


def state(value=1.0):
    return {"step": 7, "weights": {"w": torch.full((3,), value)}, "rows": [(7, "loss", 0.5)], "none": None}


def test_what_was_saved_comes_back(tmp_path):
    checkpoints(tmp_path).save(7, state(2.5))
    found = checkpoints(tmp_path).load()
    assert torch.equal(found["weights"]["w"], torch.full((3,), 2.5))
    assert found["rows"] == [(7, "loss", 0.5)] and found["step"] == 7 and found["none"] is None


def test_an_empty_directory_means_a_fresh_start(tmp_path, caplog):
    assert checkpoints(tmp_path / "none").load() is None
    assert caplog.text == ""


def test_a_flipped_bit_is_detected_and_the_one_before_is_taken(tmp_path, caplog):
    ours = checkpoints(tmp_path)
    ours.save(5, state(5.0))
    newest = ours.save(6, state(6.0))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert float(checkpoints(tmp_path).load()["weights"]["w"][0]) == 5.0
    assert newest.name in caplog.text and "damaged" in caplog.text


def test_with_only_a_damaged_checkpoint_the_run_starts_again_and_says_so(tmp_path, caplog):
    path = checkpoints(tmp_path).save(5, state())
    path.write_bytes(path.read_bytes()[:-100])
    assert checkpoints(tmp_path).load() is None
    assert "damaged" in caplog.text and "starting from the beginning" in caplog.text


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tmp_path, caplog):
    path = checkpoints(tmp_path).save(5, state())
    other = {"masks": 8, "ema": {"start": 0.9}}
    assert checkpoints(tmp_path, settings=other, code="def").load() is None
    assert path.name in caplog.text
    assert "settings.masks: 16, now 8" in caplog.text and "code: 'abc', now 'def'" in caplog.text
    assert "ema" not in caplog.text
    assert checkpoints(tmp_path).load() is not None  # its own run can still go on


def test_another_configurations_checkpoint_does_not_hide_or_outlive_ones_own(tmp_path):
    checkpoints(tmp_path).save(100, state())
    other = checkpoints(tmp_path, code="def")
    for step in (1, 2, 3):
        other.save(step, state(float(step)))
    assert float(checkpoints(tmp_path, code="def").load()["weights"]["w"][0]) == 3.0
    other.clear()
    assert list(tmp_path.iterdir()) == []


def test_only_the_two_newest_stay(tmp_path):
    ours = checkpoints(tmp_path)
    for step in (1, 2, 10):
        ours.save(step, state())
    assert sorted(int(path.name.split("-")[0].split("_")[1]) for path in tmp_path.iterdir()) == [2, 10]


def test_a_failing_save_leaves_the_older_checkpoint_and_no_rubbish(tmp_path):
    ours = checkpoints(tmp_path)
    path = ours.save(1, state())
    with pytest.raises(Exception, match="pickle"):
        ours.save(2, {"bad": (i for i in range(3))})
    assert list(tmp_path.iterdir()) == [path]


def test_objects_that_need_unpickling_are_not_read(tmp_path):
    ours = checkpoints(tmp_path)
    ours.save(1, {"object": pd.DataFrame()})
    with pytest.raises(Exception, match=r"(?i)weights only"):
        ours.load()


def test_saving_waits_for_the_minutes(tmp_path):
    waiting, hurried = checkpoints(tmp_path / "a", 60), checkpoints(tmp_path / "b", 0)
    for ours in (waiting, hurried):
        ours.after_step(1, state)
    assert not (tmp_path / "a").exists() and len(list((tmp_path / "b").iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_process_with_its_code(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, checkpoints(tmp_path) as ours:
        ours.after_step(1, state)
        os.kill(os.getpid(), number)
        ours.after_step(2, state)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert [path.name[:14] for path in tmp_path.iterdir()] == ["step_000000002"]


def test_differences_are_named_at_every_depth():
    assert describe_differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": [2]}, "d": 0}) == [
        "a.c: [1], now [2]",
        "d: None, now 0",
    ]


def progress(**options):
    return Progress(10, 4, torch.device("cpu"), 8, **options)


def test_a_line_and_rows_come_every_few_updates_and_at_the_end(caplog):
    caplog.set_level(logging.INFO)
    clock = progress()
    averages = [clock.after_step(step, {"loss": torch.tensor(float(step))}) for step in range(1, 11)]
    assert [found["loss"] for found in averages if found] == [2.5, 6.5, 9.5]
    assert [step for step, name, _ in clock.rows if name == "loss"] == [4, 8, 10]
    assert len(caplog.records) == 3
    assert "update 8/10" in caplog.text and "clips/s" in caplog.text and "left" in caplog.text
    assert "peak memory" in caplog.text and "utilisation" not in caplog.text  # that is for CUDA


def test_history_is_a_long_table(tmp_path):
    clock = progress(rows=[(2, "loss", 3.0)])
    clock.after_step(4, {"loss": 1.0, "learning_rate": 0.1})
    clock.write(tmp_path / "history.parquet")
    table = pd.read_parquet(tmp_path / "history.parquet")
    assert list(table.columns) == ["step", "metric", "value"]
    assert (table["step"].dtype, table["value"].dtype) == ("int64", "float64")
    assert table.query("metric == 'loss'")["value"].tolist() == [3.0, 1.0]
    assert {"clips_per_second", "peak_memory_mb", "learning_rate"} <= set(table["metric"])


def test_divergence_is_an_error_that_names_the_figure():
    with pytest.raises(InputError, match="diverged by update 4") as caught:
        progress().after_step(4, {"loss": float("nan"), "rate": 1.0})
    assert "loss is nan" in str(caught.value) and "rate is" not in str(caught.value)


def test_times_are_written_for_people():
    assert [format_seconds(s) for s in (12.4, 200, 7500)] == ["12 s", "3 min 20 s", "2 h 05 min"]
