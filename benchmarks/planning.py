"""How long Snakemake plans the largest comparison: seven years x 10 systems x 4 seeds, with results absent and present.

usage: python benchmarks/planning.py [--runs 3]

Results that are present are empty files with the records that a real run leaves, in a temporary folder. Each figure is a whole
`snakemake -n` from start to exit: seconds by the clock and of processor time. Prints one JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.pretended_run import pretend_run  # noqa: E402
from tests.workflow import planned  # noqa: E402

YEARS = range(2020, 2027)
LEFT_OUT = "frozen_eat"
"""configs/systems has eleven; the comparison is of ten."""


def comparison() -> dict[str, Any]:
    """The overlay of the run that is planned."""
    systems = sorted(path.stem for path in (REPOSITORY / "configs" / "systems").glob("*.yaml"))
    return {
        "run": {
            "datasets": [f"dcase{year}" for year in YEARS],
            "systems": [name for name in systems if name != LEFT_OUT],
            "seeds": [0, 1, 2, 3],
        }
    }


def planning(folder: Path, configfiles: list[Path]) -> dict[str, Any]:
    """One dry run: seconds, processor seconds, jobs planned."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--dry-run",
        "--cores",
        "8",
        "--directory",
        str(folder),
    ]
    command += [
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--workflow-profile",
        str(REPOSITORY / "profiles" / "default"),
    ]
    command += ["--configfile", *map(str, configfiles)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 1),
        "processor_s": round(used, 1),
        "jobs": sum(planned(done.stdout).values()),
    }


def main() -> None:
    """Plan with nothing there, make up the results, plan again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overlay = folder / "comparison.yaml"
        overlay.write_text(yaml.safe_dump(comparison()), encoding="utf-8")
        files = [REPOSITORY / "config.yaml", overlay]
        absent = [planning(folder, files) for _ in range(runs)]
        jobs = pretend_run(folder, files)
        present = [planning(folder, files) for _ in range(runs)]
    print(
        json.dumps({"load": os.getloadavg()[0], "jobs": jobs, "absent": absent, "present": present}, indent=1)
    )


if __name__ == "__main__":
    main()
