"""A real SLURM of two nodes on this machine, with made-up GPUs: started and ended by whoever needs one, without systemd."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CLIENTS = ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
NEEDED = ("munged", "slurmctld", "slurmd", *CLIENTS)
NODES = ("node1", "node2")
CONFIGURATION = """
ClusterName=made_up
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
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
import importlib.machinery, os, sys, time
from pathlib import Path

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "asdflow.training.checkpoint":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), pause(module.Checkpoints))
        return spec

def pause(checkpoints):
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

sys.meta_path.insert(0, Finder())
"""


def pausing(folder: Path, updates: Mapping[str, int]) -> dict[str, str]:
    """Variables for a process whose jobs pause, each once: the training whose checkpoints lie in such a folder after so many updates.

    A job that pauses leaves a file of the folder's name with SLURM's number of the job in it, and goes on when a signal comes.
    """
    folder.mkdir(parents=True)
    text = PAUSE.replace("PARTS", repr(dict(updates))).replace("FOLDER", repr(str(folder)))
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def end_with_parent() -> None:
    """In a process about to start: have the kernel end it when the one that started it dies, however that dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


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

    def show(self, number: str) -> str:
        return self.ask("scontrol", "show", "job", number)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start munged, slurmctld and two slurmd in a folder of their own, and end them and their jobs afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has a limit
    folder.chmod(0o755)
    environment = write_configuration(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    cluster = Cluster(folder, environment)

    def start(name: str, *command: str) -> None:
        program = find(command[0])
        assert program is not None
        with (folder / f"{name}.log").open("wb") as log:
            daemons.append(
                subprocess.Popen(
                    [program, *command[1:]],
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
            )

    try:
        start("munged", "munged", "--foreground", *munge_options(folder))
        wait_for("munged's socket", (folder / "munge.socket").exists)
        start("slurmctld", "slurmctld", "-D", "-i", "-f", f"{folder}/slurm.conf")
        for node in NODES:
            start(node, "slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N", node)
        wait_for("idle nodes", lambda: nodes_are_idle(cluster))
        yield cluster
    finally:
        if len(daemons) > 1:
            subprocess.run(["scancel", "--user=root"], env=environment, timeout=30, check=False)
            with contextlib.suppress(AssertionError):
                wait_for("no job", lambda: not cluster.ask("squeue", "--noheader"), seconds=30)
        end(daemons)
        shutil.rmtree(folder, ignore_errors=True)


def write_configuration(folder: Path) -> dict[str, str]:
    """Write SLURM's files, a key, and commands that know this cluster; returns the environment that finds them."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in ("state", "bin", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, nodes=NODES, ports=free_ports(3))
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    (folder / "gres.conf").write_text(GPUS, encoding="utf-8")
    for name in CLIENTS:
        client = folder / "bin" / name
        client.write_text(CLIENT.format(name=name, folder=folder, program=find(name)), encoding="utf-8")
        client.chmod(0o755)
    (folder / "calls").touch()
    # a cluster's network knows its nodes by name; here the first one is this machine
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "MASTER_ADDR": "127.0.0.1"}


def munge_options(folder: Path) -> list[str]:
    files = {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "seed-file": "munged.seed",
    }
    return [f"--{option}={folder}/{name}" for option, name in files.items()]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


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


def end(daemons: list[subprocess.Popen[bytes]]) -> None:
    """End daemons in the reverse order of their start, by force after ten seconds."""
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
