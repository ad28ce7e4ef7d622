"""The workflow on a real SLURM: submitted by its profile, cancelled, requeued and its node lost in mid-training, equal to the local run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY
from tests.pausing import pausing, wait_for
from tests.slurm_cluster import NODES, end_with_parent, missing_programs, running_cluster
from tests.workflow import SNAKEMAKE

MISSING = missing_programs()
WHY_NOT = (
    f"no {', '.join(MISSING)} here: needs root and Debian's slurm-wlm and munge"
    if MISSING
    else "takes minutes: set ASDFLOW_EXPECT_SLURM=1, as .ci/run does"
)
pytestmark = [
    pytest.mark.skipif(not os.environ.get("ASDFLOW_EXPECT_SLURM"), reason=WHY_NOT),
    pytest.mark.timeout(2400),  # minutes on a quiet machine; the first test pays for the whole run
]

SMOKE = REPOSITORY / "configs" / "smoke.yaml"
UPDATES = 20  # of pre-training and of fine-tuning in the smoke run
PRETRAINING, FINETUNING = "pretrain/eat_small", "finetune/demo/attribute_aware/seed_0"
PAUSES = {PRETRAINING: [12, 16], FINETUNING: [7]}
PROFILE = ["--workflow-profile", str(REPOSITORY / "profiles" / "slurm")]
# Of the profile's values only those that are the cluster's: this machine's cores, its memory, groups that keep both nodes busy.
HERE = ["--cores", "2", "--resources", "mem_mb=8000", "--slurm-init-seconds-before-status-checks", "3"]
HERE += ["--group-components", "recordings=1", "features=3", "labels=2", "scores=4", "results=20"]
GPUS = ["--set-resources", "pretrain:gpu=1", "finetune:gpu=1", "embed:gpu=1"]


@pytest.fixture(scope="module")
def local(smoke_run):
    """The same run on this machine alone."""
    return smoke_run / "results-smoke"


@pytest.fixture(scope="module")
def cluster():
    assert not MISSING, f"ASDFLOW_EXPECT_SLURM is set, but there is no {', '.join(MISSING)}"
    with running_cluster() as cluster:
        yield cluster


class Submitted:
    """A run of the workflow on the cluster, in the background; its output goes to a file."""

    def __init__(self, cluster, folder: Path, overlays, *arguments: str) -> None:
        self.cluster, self.folder, self.output = cluster, folder, folder / "snakemake.log"
        command = [*SNAKEMAKE, "--directory", str(folder), *PROFILE, *HERE, *arguments]
        command += ["--config", "device=cpu"]
        command += ["--configfile", str(REPOSITORY / "config.yaml"), *map(str, overlays)]
        environment = {**cluster.environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment |= pausing(folder / "pauses", PAUSES)
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=end_with_parent
            )

    @property
    def results(self) -> Path:
        return self.folder / "results-smoke"

    def log(self) -> str:
        return self.output.read_text()

    def until(self, what: str, condition) -> None:
        """Wait for something to happen in this run, which must not have ended before."""

        def happened() -> bool:
            found = condition()
            assert found or self.process.poll() is None, f"ended before {what}:\n{self.log()[-6000:]}"
            return bool(found)

        wait_for(what, happened, seconds=1200)

    def paused(self, training: str, update: int) -> str:
        """Wait for a training to pause; SLURM's number of its job."""
        mark = self.folder / "pauses" / training / str(update)
        self.until(f"{training} to reach update {update}", mark.exists)
        return mark.read_text()

    def again_in_the_queue(self, number: str) -> None:
        """Wait until SLURM has taken a job back, and with it others of its node; have them all begin."""
        self.until("the job in the queue again", lambda: "Reason=BeginTime" in self.cluster.show(number))
        waiting = self.cluster.ask("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r")
        for line in waiting.splitlines():
            if line.endswith(" BeginTime"):
                self.cluster.start_now(line.split()[0])

    def end(self) -> None:
        try:
            code = self.process.wait(1200)
        finally:
            self.process.kill()
        assert code == 0, self.log()[-6000:]


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """The run on the cluster: pre-training cancelled, then its node lost; a fine-tuning requeued; each in the middle."""
    run = Submitted(cluster, tmp_path_factory.mktemp("cluster"), [SMOKE], *GPUS)
    try:
        cancelled = run.paused(PRETRAINING, 12)
        cluster.ask("scancel", cancelled)
        lost = run.paused(PRETRAINING, 16)
        [node] = [node for node in NODES if f"BatchHost={node}" in cluster.show(lost)]
        cluster.lose(node)
        run.again_in_the_queue(lost)
        run.until("the lost job on another node", lambda: "JobState=RUNNING" in cluster.show(lost))
        cluster.start_node(node)
        requeued = run.paused(FINETUNING, 7)
        cluster.ask("scontrol", "requeue", requeued)
        run.again_in_the_queue(requeued)
        run.end()
    finally:
        run.process.kill()
    return run, {"cancelled": cancelled, "lost": lost, "node": node, "requeued": requeued}


def scores(results: Path) -> dict[str, pd.DataFrame]:
    files = sorted(results.glob("demo/*/seed_*/scores.parquet"))
    return {str(path.relative_to(results)): pd.read_parquet(path) for path in files}


def test_the_run_ends_with_the_scores_of_the_local_one(finished, local):
    run, _ = finished
    ours, theirs = scores(run.results), scores(local)
    assert len(ours) == 12 and ours.keys() == theirs.keys()
    for name in ours:
        pd.testing.assert_frame_equal(ours[name], theirs[name], check_exact=True)
    for name in ("demo/metrics.csv", "demo/official_scores.csv"):
        assert (run.results / name).read_bytes() == (local / name).read_bytes()
    weights = "encoders/eat_small/encoder.safetensors"
    assert (run.results / weights).read_bytes() == (local / weights).read_bytes()
    assert (run.results / "report" / "index.html").is_file()


def test_a_cancelled_pre_training_saved_a_checkpoint_and_the_next_submission_continued_from_it(finished):
    run, jobs = finished
    [first_life] = run.folder.glob(f".snakemake/slurm_logs/rule_pretrain/*/{jobs['cancelled']}.log")
    assert "Stopped by SIGTERM after update 12" in first_life.read_text()
    assert f"SLURM-job '{jobs['cancelled']}' failed, SLURM status is: 'CANCELLED'" in run.log()
    assert jobs["lost"] != jobs["cancelled"]


def test_a_pre_training_whose_node_was_lost_continued_on_the_other(finished, cluster):
    """From the checkpoint before: a power cut leaves no time to write one."""
    run, jobs = finished
    job = cluster.show(jobs["lost"])
    [other] = set(NODES) - {jobs["node"]}
    assert "Restarts=1" in job and "JobState=COMPLETED" in job and f"BatchHost={other}" in job
    log = (run.results / "logs/pretrain/eat_small.log").read_text()
    assert "Continuing after update 12 " in log and "update 20/20" in log


def test_a_requeued_fine_tuning_continued_under_its_own_number(finished, cluster):
    run, jobs = finished
    job = cluster.show(jobs["requeued"])
    assert "Restarts=1" in job and "JobState=COMPLETED" in job
    log = (run.results / "logs/finetune/demo/attribute_aware/seed_0.log").read_text()
    assert "Continuing after update 7 " in log


def test_short_jobs_share_submissions(finished, cluster):
    """Jobs by the number that Snakemake planned, submissions by the calls of sbatch; one more for the cancelled job."""
    run, _ = finished
    [jobs] = re.findall(r"^total +(\d+)$", run.log(), flags=re.M)[:1]
    submissions = cluster.calls("sbatch")
    assert int(jobs) >= 30 and len(submissions) - 1 <= int(jobs) / 2
    assert not [call for call in submissions if re.search("/rule_(score|extract_features)/", call)]
    assert [call for call in submissions if re.search("/group_scores_", call)]
    assert any("--array=1-" in call for call in submissions)


def test_gpus_are_asked_for_and_a_job_is_requeued_if_it_must_give_way(finished, cluster):
    calls = [call for call in cluster.calls("sbatch") if "rule_pretrain" in call]
    assert len(calls) == 2  # the first and the one after the cancellation
    for call in calls:
        assert " --gpus=1" in call and " --requeue" in call and " --signal=TERM@120" in call
    memory = [int(re.findall(r" --mem (\d+)", call)[0]) for call in calls]
    assert memory[1] == 2 * memory[0]


def test_pre_training_on_two_nodes_ends_like_the_local_one(finished, local, cluster, tmp_path):
    """Two tasks, one on each node, started by srun: the same encoder but for rounding."""
    run, _ = finished
    for part in ("demo/features", "encoders/eat_small_unadapted"):
        shutil.copytree(run.results / part, tmp_path / "results" / part)
    shutil.copy2(run.results / "demo/clips.parquet", tmp_path / "results/demo")
    overlay = tmp_path / "two_nodes.yaml"
    overlay.write_text(f"training_nodes: 2\nresults_dir: {tmp_path}/results\n")
    again = Submitted(cluster, run.folder, [SMOKE, overlay], "--until", "pretrain")
    again.end()
    call = cluster.calls("sbatch")[-1]
    assert " --nodes=2 " in call and " --ntasks=2 " in call and " --ntasks-per-node=1 " in call
    step = next(call for call in reversed(cluster.calls("srun")) if "asdflow.training.processes" in call)
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in step
    tables = [
        pd.read_parquet(folder / "encoders/eat_small/history.parquet")
        for folder in (tmp_path / "results", local)
    ]
    loss, expected = (table.query("metric == 'loss'")["value"].to_numpy() for table in tables)
    assert len(loss) == 4 and loss == pytest.approx(expected, rel=1e-4)
