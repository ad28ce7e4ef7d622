"""Running the workflow in a folder of its own, as a user would, for the tests that look at what comes out."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]


def command_line(directory: Path, *arguments: str, overlays=(), cores: int = 2) -> list[str]:
    """Snakemake in `directory` with the default configuration and profile, and overlays."""
    configfiles = [REPOSITORY / "config.yaml", *overlays]
    command = [*SNAKEMAKE, "--cores", str(cores), "--directory", str(directory), *arguments]
    command += ["--workflow-profile", str(REPOSITORY / "profiles" / "default")]
    return [*command, "--configfile", *map(str, configfiles)]


def started(directory: Path, *arguments: str, environment=None, **options) -> subprocess.Popen:
    """Start Snakemake in a process group of its own; output and errors together in stdout.

    It hears Ctrl-C even where the tests themselves run in the background, whose processes inherit that they should not.
    """
    return subprocess.Popen(
        command_line(directory, *arguments, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def snakemake(
    directory: Path, *arguments: str, timeout: int = 560, environment=None, **options
) -> subprocess.CompletedProcess:
    """Run Snakemake in `directory` to its end, as `started` does."""
    with started(directory, *arguments, environment=environment, **options) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def planned(output: str) -> dict[str, int]:
    """Rule -> number of jobs from what a dry run prints; empty when there is nothing to do."""
    table = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", output, flags=re.M)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", table.group(1), flags=re.M)) if table else {}
    return {rule: int(count) for rule, count in jobs.items() if rule not in ("total", "all")}
