"""One run at a time on a results folder; what becomes of a run that is told to end, and of the jobs of one that was killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from asdflow import running
from asdflow.errors import InputError

from tests.conftest import REPOSITORY
from tests.official_layout import wav
from tests.pausing import pausing, wait_for
from tests.workflow import snakemake, started

CLIP = "section_00_source_{}_normal_0000_m-n_W.wav"
JOB = """
import sys, time
from pathlib import Path
from asdflow import running
with running.job(Path(sys.argv[1]), "waiting"):
    print("begun", flush=True)
    time.sleep(300)
"""
TARGET = "results/mine/clips.parquet"


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
        wait_for("the catalogue's job", lambda: [path for path in jobs.glob("*.lock") if path.stat().st_size])
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


def test_a_run_told_to_end_in_mid_training_saves_and_the_same_command_ends_as_if_undisturbed(
    smoke_run: Path, tmp_path: Path
) -> None:
    """Ctrl-C, which reaches the jobs too, in pre-training; then SIGTERM to Snakemake alone in fine-tuning."""
    folder, pauses = tmp_path / "run", tmp_path / "pauses"
    shutil.copytree(smoke_run, folder, symlinks=True)
    results = folder / "results-smoke"
    shutil.rmtree(results / "encoders" / "eat_small")
    for path in (results / "demo").iterdir():
        if path.name not in ("clips.parquet", "features"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run: dict[str, Any] = {
        "overlays": [REPOSITORY / "configs" / "smoke.yaml"],
        "environment": {
            "CUDA_VISIBLE_DEVICES": "",
            **pausing(pauses, {"pretrain/eat_small": [12], "finetune/demo/attribute_aware/seed_0": [7]}),
        },
    }
    target = "results-smoke/demo/attribute_aware/seed_0/scores.parquet"
    for part, update, name in (
        ("pretrain/eat_small", 12, "SIGINT"),
        ("finetune/demo/attribute_aware/seed_0", 7, "SIGTERM"),
    ):
        with started(folder, target, **run) as process:
            mark = pauses / part / str(update)
            wait_for(f"{mark}", lambda: mark.exists() or process.poll() is not None, seconds=300)  # noqa: B023
            if name == "SIGINT":
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=120)
        assert process.returncode != 0 and mark.exists(), output[-4000:]
        log = (results / "logs" / f"{part}.log").read_text()
        assert f"Stopped by {name} after update {update}; the next start continues from here" in log
        assert "Not finished after" in output and "start the same command again" in output
        assert (results / running.RUN).read_text() == "" and not list((results / running.JOBS).iterdir())
    last = snakemake(folder, target, **run)
    assert last.returncode == 0, last.stdout[-4000:]
    assert "ended without a word" not in last.stdout
    assert "Continuing after update 12 " in (results / "logs/pretrain/eat_small.log").read_text()
    assert "Continuing after update 7 " in (results / f"logs/{part}.log").read_text()
    for name in ("results-smoke/encoders/eat_small/encoder.safetensors", target):
        assert (folder / name).read_bytes() == (smoke_run / name).read_bytes()


def test_a_run_says_nothing_of_one_that_ended_in_order_and_frees_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        lock, message = running.enter(tmp_path)
        assert message == ""
        with pytest.raises(InputError, match="Another run") as caught:
            running.enter(tmp_path)
        assert f"process {os.getpid()}" in str(caught.value)
        running.leave(lock)


def test_sigterm_reaches_the_jobs_of_the_run_here_and_those_just_starting_but_none_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(number: int, frame: object) -> None:
        heard.append(number)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, told)
    try:
        lock, _ = running.enter(tmp_path)
        running.pass_sigterm_on(lock, tmp_path)
        job = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path)], stdout=subprocess.PIPE)
        elsewhere = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "SLURM_JOB_ID": "77"},
        )
        for process in (job, elsewhere):
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM], "Snakemake's own handler is asked as well"
        assert job.wait(60) == -signal.SIGTERM and elsewhere.poll() is None
        with pytest.raises(SystemExit), running.job(tmp_path, "just starting"):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "78")
        with running.job(tmp_path, "just starting on a node"):
            pass
        monkeypatch.delenv("SLURM_JOB_ID")
        running.leave(lock)
        with running.job(tmp_path, "of a run that came after"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2, "a run that has ended tells nobody else's jobs"
    finally:
        signal.signal(signal.SIGTERM, before)
        elsewhere.kill()


def test_jobs_that_only_a_cluster_can_end_are_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(running, "PATIENCE_S", 0.2)
    with running.job(tmp_path, "finetune demo"), pytest.raises(InputError, match="still at work") as caught:
        running.enter(tmp_path)
    assert "finetune demo, process" in str(caught.value) and "SLURM job 77" in str(caught.value)
    running.enter(tmp_path)
