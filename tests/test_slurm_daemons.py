"""What keeps the test cluster's daemons: nothing of it outlives the process that asked for it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import slurm_daemons
from tests.pausing import wait_for

ASK = """
import subprocess, sys
keeper = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, text=True, start_new_session=True)
keeper.stdin.write(sys.argv[1] + "\\n")
keeper.stdin.flush()
keeper.wait()
"""
FORKING = "echo $$ > {folder}/one; setsid sh -c 'echo $$ > {folder}/two; sleep 1000' & trap '' TERM; exit 0"


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=lambda end: end.name)
def test_daemons_orphans_and_the_folder_vanish_when_the_asking_process_is_killed(end, tmp_path):
    folder, marks = tmp_path / "cluster", tmp_path / "marks"
    folder.mkdir()
    marks.mkdir()
    order = json.dumps(["daemon", ["sh", "-c", FORKING.format(folder=marks)]])
    keeper = [sys.executable, str(Path(slurm_daemons.__file__)), str(folder)]
    asking = subprocess.Popen([sys.executable, "-c", ASK, order, *keeper])
    wait_for("the orphan", lambda: (marks / "two").exists() and (marks / "two").read_text().strip())
    orphan = (marks / "two").read_text().strip()
    assert alive(orphan) and folder.exists()
    asking.send_signal(end)
    asking.wait()
    wait_for("the orphan's end", lambda: not alive(orphan))
    wait_for("the folder's end", lambda: not folder.exists())
