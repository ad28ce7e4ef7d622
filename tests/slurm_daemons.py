"""A process of its own that starts daemons named on its standard input, and ends them and all they started when that closes.

Whoever starts it holds the other end of a pipe, which closes with that process however it dies. Daemons, the steps they fork
off and the jobs in them are all descendants of this process: orphans below it become its children instead of init's.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

DEATH_SIGNAL, ADOPT_ORPHANS = 1, 36  # of prctl


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def start(log: Path, command: list[str]) -> None:
    """Start a daemon whose output goes to a file."""
    with log.open("wb") as output:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: prctl(DEATH_SIGNAL, signal.SIGKILL),
        )


def bury(*_: object) -> None:
    """Take note of children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def descendants() -> list[int]:
    """All living processes below this one."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)] = int(parent)
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def end_all() -> None:
    """End everything below this process, and what it starts meanwhile."""
    while below := descendants():
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        bury()


def main(folder: Path) -> None:
    prctl(ADOPT_ORPHANS, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    signal.signal(signal.SIGCHLD, bury)
    try:
        for line in sys.stdin:
            name, command = json.loads(line)
            start(folder / f"{name}.log", command)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_all()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
