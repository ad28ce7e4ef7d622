"""The processes of one training run on several GPUs or nodes: started here or by SLURM's srun, heard, stopped and ended together."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from asdflow.errors import InputError
from asdflow.provenance import PACKAGE

log = logging.getLogger(__name__)

PART = "ASDFLOW_PART_OF"
"""Environment variable of a process that is part of a run: who started it, `here` or `srun`."""
GRACE_S = 30.0
"""So long the others may take to end when one process has ended badly."""
POLL_S = 0.1


def make_fabric(device: torch.device, devices: int, nodes: int, precision: str) -> Fabric:
    """Lightning's Fabric for this process: alone, or as a part of `devices` processes on each of `nodes` nodes."""
    environment: ClusterEnvironment = (
        SLURMEnvironment() if os.environ.get(PART) == "srun" else LightningEnvironment()
    )
    return Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
        plugins=[environment],
    )


def is_part() -> bool:
    """Whether `run_together` has started this process."""
    return PART in os.environ


def run_together(function: str, arguments: Mapping[str, Any], devices: int, nodes: int, folder: Path) -> None:
    """Call a function in `devices` processes on each of `nodes` nodes and wait for them all.

    Parameters
    ----------
    function : `module:name`, called with `arguments` (plain content only) in every process.
    nodes : above 1 the processes are started by `srun` within this job's allocation, one task per device.
    folder : where the arguments are left for the processes; all nodes must see it.

    What the processes print is logged here. SIGTERM and SIGINT are passed on to them. Raises SystemExit with the first
    exit code that is not 0, after the others have ended too; InputError when SLURM is needed and not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".processes-", suffix=".json")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            json.dump({"function": function, "arguments": dict(arguments)}, handle)
        command = [sys.executable, "-m", __name__, name]
        started = _start_here(command, devices) if nodes == 1 else [_start_by_srun(command, devices, nodes)]
        code = _wait(started)
    finally:
        Path(name).unlink(missing_ok=True)
    if code:
        raise SystemExit(code)


def _start_here(command: Sequence[str], devices: int) -> list[subprocess.Popen[str]]:
    """One process per device on this machine, joined by a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", PART: "here"}
    common |= {"WORLD_SIZE": str(devices), "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // devices))}
    return [_start(command, {**common, "LOCAL_RANK": str(rank)}) for rank in range(devices)]


def _start_by_srun(command: Sequence[str], devices: int, nodes: int) -> subprocess.Popen[str]:
    """One task per device on each node of this job's allocation, in the variables that Fabric reads on SLURM."""
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise InputError(
            f"training_nodes: {nodes} needs a SLURM allocation, and this process is in none",
            remedy="run with --workflow-profile profiles/slurm, or set training_nodes: 1",
        )
    threads = str(torch.get_num_threads())
    steps = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * devices}", f"--ntasks-per-node={devices}"]
    steps += [f"--cpus-per-task={threads}", "--gpu-bind=none", "--kill-on-bad-exit=1", "--unbuffered"]
    return _start([*steps, *command], {PART: "srun", "OMP_NUM_THREADS": threads})


def _start(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C reaches them once, through us
    )


def _wait(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Log what the processes print until all have ended; the first exit code that is not 0, else 0."""
    listeners = [threading.Thread(target=_listen, args=[process], daemon=True) for process in processes]
    for listener in listeners:
        listener.start()
    with _passing_signals_on(processes):
        first_bad, since = 0, 0.0
        while any(process.poll() is None for process in processes):
            bad = [process.returncode for process in processes if process.returncode]
            if bad and not first_bad:
                first_bad, since = bad[0], time.monotonic()
            if first_bad and time.monotonic() - since > GRACE_S:
                _kill(processes)
            time.sleep(POLL_S)
    for listener in listeners:
        listener.join()
    codes = [first_bad, *(process.returncode for process in processes)]
    code = next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


def _listen(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        log.info("%s", line.rstrip())


@contextlib.contextmanager
def _passing_signals_on(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Pass SIGTERM and SIGINT on to the processes; kill those that are left when the wait ends in any other way."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    main = threading.current_thread() is threading.main_thread()
    old = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield
    finally:
        _kill(processes)
        for number, handler in old.items():
            signal.signal(number, handler)


def _kill(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()


# ------------------------------------------------------------------------------------------------- in each process


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when the one that started it dies, however it dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def main(arguments_file: str) -> None:
    """One process of a run: read what to call, call it, and print errors as the user should see them."""
    _end_with_parent()
    rank = int(os.environ.get("SLURM_PROCID" if os.environ[PART] == "srun" else "LOCAL_RANK", "0"))
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s" if rank == 0 else f"process {rank}: %(message)s"
    )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("asdflow").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = json.loads(Path(arguments_file).read_text(encoding="utf-8"))
    module, name = job["function"].split(":")
    try:
        getattr(importlib.import_module(module), name)(**job["arguments"])
    except InputError as error:
        logging.getLogger("asdflow").error("%s", error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main(sys.argv[1])
