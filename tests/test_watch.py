"""Watching a folder: each recording is scored once when it is complete, whatever kills and restarts the watcher."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import soundfile
from asdflow.detection.detect import Recording
from asdflow.detection.watch import Folder, Journal, Patience, watch
from asdflow.errors import InputError

from tests.conftest import REPOSITORY
from tests.trained_system import AUDIO, RATE, TrainedSystem, machine_sound

PATIENCE = Patience(poll=0.01, settle=0.02, unreadable=0.05)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return TrainedSystem(tmp_path_factory.mktemp("trained"))


def write(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, machine_sound("fan", seed), RATE, subtype="PCM_16")


def until(count, output, seconds=60.0):
    """A stop that waits until so many results are kept."""
    end = time.monotonic() + seconds

    def stop():
        journal = output.with_name(output.name + ".journal.jsonl")
        kept = journal.read_text().count("\n") - 1 if journal.is_file() else 0
        assert time.monotonic() < end, f"{kept} results after {seconds} s"
        return kept >= count

    return stop


def journal_names(output):
    lines = output.with_name(output.name + ".journal.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["name"] for line in lines]


def test_recordings_are_scored_once_and_a_restart_goes_on(trained, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out.csv"
    for number in range(2):
        write(folder / f"{number}.wav", number)
    watch(trained.model, folder, output, "fan", patience=PATIENCE, stop=until(2, output))
    write(folder / "sub" / "2.wav", 2)
    (folder / "broken.wav").write_bytes(b"RIFF")
    rows = watch(trained.model, folder, output, "fan", patience=PATIENCE, stop=until(4, output))
    assert Counter(journal_names(output)) == Counter(["0.wav", "1.wav", "sub/2.wav", "broken.wav"])
    table = pd.read_csv(output)
    assert len(table) == len(rows) == 4
    assert table["anomaly_score"].notna().sum() == 3 and table["problem"].notna().sum() == 1


def test_a_file_is_waited_for_while_it_grows(tmp_path):
    now = [0.0]
    folder = Folder(tmp_path, Patience(1.0, settle=2.0, unreadable=60.0), clock=lambda: now[0])
    write(tmp_path / "a.wav")
    whole = (tmp_path / "a.wav").read_bytes()

    def ready():
        return [name for name, _, _ in folder.ready({}, AUDIO)]

    for size in (10_000, 20_000, 30_000):
        (tmp_path / "a.wav").write_bytes(whole[:size])
        assert ready() == []
        now[0] += 1.0
    now[0] += 10.0
    assert ready() == []  # stands still, but its header promises more
    (tmp_path / "a.wav").write_bytes(whole)
    assert ready() == []
    now[0] += 1.9
    assert ready() == []
    now[0] += 0.2
    assert ready() == ["a.wav"]
    assert [name for name, _, _ in folder.ready({"a.wav": len(whole)}, AUDIO)] == []


def test_an_unreadable_file_is_given_up_after_a_while(tmp_path):
    now = [0.0]
    folder = Folder(tmp_path, Patience(1.0, settle=2.0, unreadable=60.0), clock=lambda: now[0])
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    names = []
    for _ in range(62):
        names.append([name for name, _, _ in folder.ready({}, AUDIO)])
        now[0] += 1.0
    assert names[:60] == [[]] * 60 and names[-1] == ["a.wav"]


def test_a_torn_line_is_cut_off_and_whole_ones_are_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"machine": "fan"})
    journal.add("a.wav", 10, Recording("a.wav", "fan", "00", anomaly_score=0.5, decision=0))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"name": "b.wav", "si')
    again = Journal(path, {"machine": "fan"})
    assert list(again.rows) == ["a.wav"] and again.rows["a.wav"].anomaly_score == 0.5
    again.close()
    assert path.read_bytes() == whole


def test_two_watchers_do_not_share_a_journal_and_another_system_is_refused(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", {"machine": "fan"})
    with pytest.raises(InputError, match="in use"):
        Journal(tmp_path / "journal.jsonl", {"machine": "fan"})
    journal.close()
    with pytest.raises(InputError, match="another system"):
        Journal(tmp_path / "journal.jsonl", {"machine": "valve"})


def test_a_recording_that_changes_after_its_score_is_told_and_not_scored_again(tmp_path, caplog):
    folder = Folder(tmp_path, Patience(1.0, 0.0, 0.0), clock=lambda: 0.0)
    write(tmp_path / "a.wav")
    for _ in range(3):
        assert list(folder.ready({"a.wav": 5}, AUDIO)) == []
    assert caplog.text.count("changed after it was scored") == 1


def follow(trained, folder, output):
    """Watch in a process of its own (forked: it starts at once)."""
    process = multiprocessing.get_context("fork").Process(
        target=watch, args=(trained.model, folder, output, "fan"), kwargs={"patience": PATIENCE}
    )
    process.start()
    return process


def kept(output):
    journal = output.with_name(output.name + ".journal.jsonl")
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.is_file() else 0


def wait_for(condition, alive, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert alive() and time.monotonic() < end
        time.sleep(0.005)


def test_kill_9_at_random_moments_loses_no_file_and_scores_none_twice(trained, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    source = next((trained.recordings / "fan" / "test").iterdir())
    rng = np.random.default_rng(7)
    total = 0
    for _ in range(5):
        before = kept(output)
        process = follow(trained, folder, output)
        for _ in range(12):
            shutil.copyfile(source, folder / f"{total:03d}.wav")
            total += 1
        wait_for(lambda: kept(output) > before, process.is_alive)  # noqa: B023
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert kept(output) < total + 1
    process = follow(trained, folder, output)
    wait_for(lambda: kept(output) == total, process.is_alive)
    wait_for(lambda: len(pd.read_csv(output)) == total, process.is_alive)
    process.kill()
    process.join()
    assert sorted(journal_names(output)) == [f"{number:03d}.wav" for number in range(total)]
    table = pd.read_csv(output)
    assert len(table) == total and table["anomaly_score"].nunique() == 1


def test_the_command_watches_until_it_is_told_to_stop(trained, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out.csv"
    write(folder / "a.wav")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow_scripts"), "OMP_NUM_THREADS": "1"}
    arguments = [
        sys.executable, "-m", "asdflow.cli", "detect", str(trained.model), "--machine", "fan", "--watch", str(folder),
        "--output", str(output), "--settle", "0.1", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: kept(output) == 1, lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == int(pd.read_csv(output)["decision"].sum()), errors
    assert "a.wav: score" in printed and "1 recordings" in printed
