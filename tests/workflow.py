"""Running the workflow in a folder of its own, as a user would, for the tests that look at what comes out."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]


def snakemake(
    directory: Path, *arguments: str, overlays=(), cores: int = 2, timeout: int = 560
) -> subprocess.CompletedProcess:
    """Run Snakemake in `directory` with the default configuration and overlays; output and errors together in stdout."""
    configfiles = [REPOSITORY / "config.yaml", *overlays]
    command = [*SNAKEMAKE, "--cores", str(cores), "--directory", str(directory), *arguments]
    command += ["--workflow-profile", str(REPOSITORY / "profiles" / "default")]
    command += ["--configfile", *map(str, configfiles)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, env=environment
    )


def planned(output: str) -> dict[str, int]:
    """Rule -> number of jobs from what a dry run prints; empty when there is nothing to do."""
    table = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", output, flags=re.M)
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", table.group(1), flags=re.M)) if table else {}
    return {rule: int(count) for rule, count in jobs.items() if rule not in ("total", "all")}
