"""Tasks of a SLURM array become their own jobs, and limits under which the plugin would wait without end are refused."""

import base64
import json
import os
import subprocess
import sys
import zlib

from asdflow.slurm_arrays import OPTION, limits_in_the_way, own_command

from tests.conftest import REPOSITORY
from tests.workflow import SNAKEMAKE

SCRIPT = "import os, sys; from asdflow.slurm_arrays import become_own_job; become_own_job(sys.orig_argv, os.environ); print('first')"


def payload(**commands):
    packed = {task[1:]: zlib.compress(text.encode()).hex() for task, text in commands.items()}
    return OPTION + base64.b64encode(json.dumps(packed).encode()).decode()


def test_a_later_task_becomes_the_job_that_the_array_holds_for_it():
    command = ["python", "-m", "snakemake", "--target-jobs", "one", payload(_2="echo two", _3="echo three")]
    assert own_command(command, {"SLURM_ARRAY_TASK_ID": "3"}) == ["/bin/sh", "-c", "echo three"]


def test_the_first_task_is_the_job_that_its_command_names_and_no_task_of_an_array_any_more():
    command = [
        "python",
        "-m",
        "snakemake",
        "--target-jobs",
        "one",
        payload(_2="echo two"),
        "--mode",
        "remote",
    ]
    own = own_command(command, {"SLURM_ARRAY_TASK_ID": "1"})
    assert own == ["python", "-m", "snakemake", "--target-jobs", "one", "--mode", "remote"]
    assert own_command(own, {"SLURM_ARRAY_TASK_ID": "1"}) is None


def test_what_is_no_array_stays_what_it_is():
    assert own_command(["python", "-m", "snakemake"], {"SLURM_ARRAY_TASK_ID": "2"}) is None
    assert own_command(["python", "-m", "snakemake", payload(_2="echo two")], {}) is None


def test_a_process_is_replaced_by_its_task_with_its_exit_code():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow_scripts")}
    command = [sys.executable, "-c", SCRIPT, payload(_2="echo second; exit 7")]
    ends = [
        subprocess.run(
            command, env={**environment, "SLURM_ARRAY_TASK_ID": task}, capture_output=True, text=True
        )
        for task in "12"
    ]
    assert [(end.stdout, end.returncode) for end in ends] == [("first\n", 0), ("second\n", 7)]


def test_limits_below_the_number_of_jobs_are_named():
    limits = {"jobs": 100, "max-jobs-per-timespan": None, "resources: gpu": 280}
    [problem] = limits_in_the_way(280, limits)
    assert problem.startswith("jobs: 100") and "280" in problem


def test_a_run_whose_limits_could_leave_jobs_out_of_an_array_is_refused_before_anything_is_submitted(
    tmp_path,
):
    command = [*SNAKEMAKE, "--directory", str(tmp_path), "--jobs", "5", "--config", "device=cpu"]
    command += ["--workflow-profile", str(REPOSITORY / "profiles" / "slurm")]
    command += ["--configfile", str(REPOSITORY / "config.yaml"), str(REPOSITORY / "configs" / "smoke.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "jobs: 5, and " in output and "slurm-array-jobs" in output
    assert not (tmp_path / "results-smoke" / "encoders").exists()
