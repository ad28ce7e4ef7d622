"""One run at a time on a results folder, and what becomes of the jobs of a run that was killed."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from asdflow import running
from asdflow.errors import InputError

from tests.official_layout import wav
from tests.workflow import snakemake, started

CLIP = "section_00_source_{}_normal_0000_m-n_W.wav"
TARGET = "results/mine/clips.parquet"


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, "it did not happen"
        time.sleep(0.05)


def recordings(folder: Path) -> Path:
    """A data set of one machine, and in it the path of a pipe in a table's place: whoever reads the table waits for ever."""
    machine = folder / "recordings" / "fan"
    for split in ("train", "test"):
        (machine / split).mkdir(parents=True)
        (machine / split / CLIP.format(split)).write_bytes(wav(split))
    os.mkfifo(machine / "attributes_00.csv")
    return machine / "attributes_00.csv"


def test_a_second_run_is_refused_and_after_kill_9_of_snakemake_the_next_ends_its_job_and_goes_on(
    tmp_path: Path,
) -> None:
    pipe, jobs = recordings(tmp_path), tmp_path / "results" / running.JOBS
    overlay = tmp_path / "mine.yaml"
    mine = {"source": "folder", "path": str(tmp_path / "recordings")}
    overlay.write_text(
        yaml.safe_dump({"results_dir": "results", "run": {"datasets": ["mine"]}, "datasets": {"mine": mine}})
    )
    with started(tmp_path, TARGET, overlays=[overlay]) as first:
        wait_for(lambda: [path for path in jobs.glob("*.lock") if path.stat().st_size])
        (left,) = jobs.iterdir()
        second = snakemake(tmp_path, TARGET, overlays=[overlay])
        assert second.returncode != 0 and "Another run is writing to 'results'" in second.stdout
        assert f"process {first.pid} on {socket.gethostname()}, since 20" in second.stdout
        first.send_signal(signal.SIGKILL)
        first.wait()
        pipe.unlink()
        third = snakemake(tmp_path, TARGET, overlays=[overlay])
    assert third.returncode == 0, third.stdout[-4000:]
    assert "ended without a word" in third.stdout and f"process {first.pid} on" in third.stdout
    assert "has been ended: catalogue mine, process" in third.stdout
    assert not left.exists() and not list(jobs.iterdir())
    assert len(pd.read_parquet(tmp_path / TARGET)) == 2
    assert (tmp_path / "results" / running.RUN).read_text() == "", "an orderly end leaves no holder behind"


def test_a_run_says_nothing_of_one_that_ended_in_order_and_frees_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        lock, message = running.enter(tmp_path)
        assert message == ""
        with pytest.raises(InputError, match="Another run") as caught:
            running.enter(tmp_path)
        assert f"process {os.getpid()}" in str(caught.value)
        running.leave(lock)


def test_jobs_that_only_a_cluster_can_end_are_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(running, "PATIENCE_S", 0.2)
    with running.job(tmp_path, "finetune demo"), pytest.raises(InputError, match="still at work") as caught:
        running.enter(tmp_path)
    assert "finetune demo, process" in str(caught.value) and "SLURM job 77" in str(caught.value)
    running.enter(tmp_path)
