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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import slurm_daemons
from tests.pausing import wait_for

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
    start: Callable[..., None]
    """Starts a daemon under a name of its own, from its command line."""

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

    def start_now(self, number: str) -> None:
        """Have a requeued job begin, which SLURM would let wait for two minutes."""
        self.ask("scontrol", "update", f"jobid={number}", "StartTime=now")

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-f", f"{self.folder}/slurm.conf", "-N", node)

    def lose(self, node: str) -> None:
        """Kill all that runs on a node, as a power cut would, and tell SLURM, which would find out after minutes."""
        while found := self._processes_on(node):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def _processes_on(self, node: str) -> list[int]:
        """A node's daemon, then what it has between itself and its jobs, which would report that these ended, then the jobs."""
        daemon, between, jobs = set(), set(), set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
                variables = (folder / "environ").read_bytes().split(b"\0")
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state == "Z":
                continue
            if command[-3:-1] == [b"-N", node.encode()] and f"{self.folder}/slurm.conf".encode() in command:
                daemon.add(int(folder.name))
            ours = f"PATH={self.folder}/bin:".encode()
            if f"SLURMD_NODENAME={node}".encode() in variables and any(v.startswith(ours) for v in variables):
                jobs.add(int(folder.name))
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                        between.add(int(parent))
        return [*daemon, *between, *(jobs - between)]


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """munged, slurmctld and two slurmd in a folder of their own.

    They, their jobs and the folder vanish afterwards, also if this process is killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has a limit
    environment = write_configuration(folder)
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

    cluster = Cluster(folder, environment, start)
    try:
        start("munged", "munged", "--foreground", *munge_options(folder))
        cluster.wait_for("munged's socket", (folder / "munge.socket").exists)
        start("slurmctld", "slurmctld", "-D", "-i", "-f", f"{folder}/slurm.conf")
        for node in NODES:
            cluster.start_node(node)
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
