"""A real SLURM of two nodes on this machine, with made-up GPUs: started and ended by whoever needs one, without systemd."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import slurm_daemons

CLIENTS = ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
NEEDED = ("munged", "slurmctld", "slurmd", *CLIENTS)
NODES = ("node1", "node2")
CONFIGURATION = """
ClusterName=made_up
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=bf_interval=2,sched_min_interval=100000
ReturnToService=2
MinJobAge=900
KillWait=60
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=16000 Gres=gpu:made_up:2
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=16000 Gres=gpu:made_up:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GPUS = "NodeName=node[1-2] Name=gpu Type=made_up File=/dev/null,/dev/zero\n"
CLIENT = """#!/bin/sh
printf '%s\\n' "{name} $*" >> {folder}/calls
SLURM_CONF={folder}/slurm.conf exec {program} "$@"
"""

PAUSE = """
import asyncio, importlib.machinery, os, sys, time
from pathlib import Path

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), CHANGES[name](module))
        return spec

def look_often(module):
    async def sleep(self):
        await asyncio.sleep(1)
    module.RemoteExecutor.sleep = sleep

def pause(module):
    checkpoints = module.Checkpoints
    go_on = checkpoints.after_step
    def after_step(self, step, state):
        for part, update in PARTS.items():
            mark = Path(FOLDER, part)
            if str(self.directory).endswith(part) and step == update and not mark.exists():
                task = os.environ.get("SLURM_ARRAY_TASK_ID")
                number = os.environ["SLURM_ARRAY_JOB_ID"] + "_" + task if task else os.environ["SLURM_JOB_ID"]
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.with_suffix(".new").write_text(number)
                mark.with_suffix(".new").rename(mark)
                until = time.monotonic() + 300
                while self.signal is None and time.monotonic() < until:
                    time.sleep(0.02)
        go_on(self, step, state)
    checkpoints.after_step = after_step

CHANGES = {
    "asdflow.training.checkpoint": pause,
    "snakemake_interface_executor_plugins.executors.remote": look_often,
}
sys.meta_path.insert(0, Finder())
"""


def pausing(folder: Path, updates: Mapping[str, int]) -> dict[str, str]:
    """Variables for a process whose jobs pause, each once: the training whose checkpoints lie in such a folder after so many updates.

    Snakemake under these variables looks after its jobs every second, instead of ever more seldom up to every three minutes.
    A job that pauses leaves a file of the folder's name with SLURM's number of the job in it, and goes on when a signal comes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = PAUSE.replace("PARTS", repr(dict(updates))).replace("FOLDER", repr(str(folder)))
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def end_with_parent() -> None:
    """In a process about to start: have the kernel end it when the one that started it dies, however that dies."""
    slurm_daemons.prctl(slurm_daemons.DEATH_SIGNAL, signal.SIGKILL)


def missing_programs() -> list[str]:
    """SLURM's and munge's programs that this machine lacks; they also need root."""
    return [name for name in NEEDED if find(name) is None] + (["root"] if os.getuid() else [])


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` lets a process find its commands first, each call of which is noted down."""

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a SLURM command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def calls(self, program: str) -> list[str]:
        """Every call so far of one of the commands, with its arguments."""
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(f"{program} ")]

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """As the function of this name; the error shows what the daemons have said."""
        try:
            wait_for(what, condition)
        except AssertionError as error:
            logs = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log"))]
            raise AssertionError("\n".join([str(error), *logs])) from None

    def show(self, number: str) -> str:
        return self.ask("scontrol", "show", "job", number)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """munged, slurmctld and two slurmd in a folder of their own.

    They, their jobs and the folder vanish afterwards, also if this process is killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has a limit
    cluster = Cluster(folder, write_configuration(folder))
    keeper = subprocess.Popen(
        [sys.executable, str(Path(slurm_daemons.__file__)), str(folder)],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests; this ends when they do
    )

    def start(name: str, *command: str) -> None:
        program = find(command[0])
        assert program is not None and keeper.stdin is not None
        keeper.stdin.write(json.dumps([name, [program, *command[1:]]]) + "\n")
        keeper.stdin.flush()

    try:
        start("munged", "munged", "--foreground", *munge_options(folder))
        cluster.wait_for("munged's socket", (folder / "munge.socket").exists)
        start("slurmctld", "slurmctld", "-D", "-i", "-f", f"{folder}/slurm.conf")
        for node in NODES:
            start(node, "slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N", node)
        cluster.wait_for("idle nodes", lambda: nodes_are_idle(cluster))
        yield cluster
    finally:
        keeper.communicate(timeout=60)


def write_configuration(folder: Path) -> dict[str, str]:
    """Write SLURM's files, a key, and commands that know this cluster; returns the environment that finds them."""
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in ("state", "bin", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, nodes=NODES, ports=free_ports(3))
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    (folder / "gres.conf").write_text(GPUS, encoding="utf-8")
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={idle_cgroup_plugin()}\n", encoding="utf-8")
    for name in CLIENTS:
        client = folder / "bin" / name
        client.write_text(CLIENT.format(name=name, folder=folder, program=find(name)), encoding="utf-8")
        client.chmod(0o755)
    (folder / "calls").touch()
    # a cluster's network knows its nodes by name; here the first one is this machine
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "MASTER_ADDR": "127.0.0.1"}


def idle_cgroup_plugin() -> str:
    """The plugin with which slurmd starts where no cgroups are mounted; none are used."""
    slurmd = find("slurmd")
    assert slurmd is not None
    version = subprocess.run([slurmd, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    return "cgroup/v1" if int(version.split(".")[0]) < 23 else "disabled"


def munge_options(folder: Path) -> list[str]:
    files = {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "seed-file": "munged.seed",
    }
    return [f"--{option}={folder}/{name}" for option, name in files.items()]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, below those that the system gives away by itself."""
    found: list[int] = []
    for port in random.Random(os.getpid()).sample(range(20000, 32000), 500):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


def nodes_are_idle(cluster: Cluster) -> bool:
    asked = subprocess.run(
        ["scontrol", "show", "nodes", "--oneliner"], env=cluster.environment, capture_output=True, text=True
    )
    return asked.stdout.count("State=IDLE ") == len(NODES)


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition holds; an error that says what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)
