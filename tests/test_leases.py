"""GPU leases: jobs that run side by side get devices of their own, wait for one another, and give theirs back however they end."""

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from asdflow import job, leases
from asdflow.job import run_stage
from asdflow.leases import VISIBLE, leased_gpus, machine_gpus

from tests.conftest import REPOSITORY

HOLD = """
import sys
from pathlib import Path
from asdflow.leases import leased_gpus
with leased_gpus(int(sys.argv[2]), ["0", "1", "2"], Path(sys.argv[1])) as mine:
    print(",".join(mine), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv(VISIBLE, raising=False)


def start_holder(folder, count=1):
    """A process that has leased GPUs, and their names; it holds them until its stdin is closed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow_scripts")}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_jobs_side_by_side_get_devices_of_their_own(tmp_path):
    holders = [start_holder(tmp_path) for _ in range(3)]
    assert sorted(names for _, names in holders) == ["0", "1", "2"]
    for process, _ in holders:
        process.communicate("")
        assert process.returncode == 0


def test_a_killed_job_gives_its_devices_back(tmp_path):
    process, names = start_holder(tmp_path, count=2)
    assert names == "0,1"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with leased_gpus(3, ["0", "1", "2"], tmp_path) as mine:
        assert mine == ("0", "1", "2")


def test_a_job_waits_until_as_many_are_free_as_it_wants(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(leases, "POLL_S", 0.01)
    caplog.set_level("INFO")
    process, _ = start_holder(tmp_path, count=2)
    got, waiting = [], threading.Event()

    class Seen(logging.Handler):
        def emit(self, record):
            if "Waiting for a free GPU" in record.getMessage():
                waiting.set()

    seen = Seen()
    leases.log.addHandler(seen)

    def lease():
        with leased_gpus(2, ["0", "1", "2"], tmp_path) as mine:
            got.append(mine)

    thread = threading.Thread(target=lease)
    thread.start()
    assert waiting.wait(60) and got == []
    process.communicate("")
    thread.join(60)
    leases.log.removeHandler(seen)
    assert got == [("0", "1")] or got == [("0", "2")] or got == [("1", "2")]
    assert caplog.text.count("Waiting for a free GPU") == 1


def test_cuda_sees_the_leased_devices_alone_and_only_while_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setenv(VISIBLE, "GPU-a,GPU-b")
    assert machine_gpus() == ["GPU-a", "GPU-b"]
    with leased_gpus(1, folder=tmp_path):
        assert os.environ[VISIBLE] == "GPU-a"
        with leased_gpus(1, ["GPU-a", "GPU-b"], folder=tmp_path):
            assert os.environ[VISIBLE] == "GPU-b"
    assert os.environ[VISIBLE] == "GPU-a,GPU-b"


@pytest.mark.parametrize(("count", "gpus"), [(0, ["0", "1"]), (1, ["0"]), (1, [])])
def test_nothing_is_leased_where_there_is_nothing_to_choose(tmp_path, count, gpus):
    with leased_gpus(count, gpus, tmp_path / "folder") as mine:
        assert mine == () and VISIBLE not in os.environ
    assert not (tmp_path / "folder").exists()


def test_within_a_slurm_job_slurm_has_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with leased_gpus(1, ["0", "1"], tmp_path) as mine:
        assert mine == () and VISIBLE not in os.environ


def test_a_job_that_asks_for_a_gpu_runs_with_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "machine_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(job, "leased_gpus", functools.partial(leased_gpus, folder=tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = {}
    for gpus in (0, 1):
        config = {"results_dir": str(tmp_path / "results")}
        smk = SimpleNamespace(
            log=[], rule="embed", wildcards=[], threads=1, resources={"gpu": gpus}, config=config
        )
        run_stage(lambda smk: seen.update({smk.resources["gpu"]: os.environ.get(VISIBLE)}), smk)
    assert seen == {0: None, 1: "0"}
