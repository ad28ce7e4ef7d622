"""A workflow whose trainings stand still after chosen updates, for tests that disturb them there."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SITE = Path(__file__).parent / "pausing_site"


def pausing(folder: Path, updates: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Variables for a Snakemake whose trainings pause: those whose checkpoints lie in such a folder, after so many updates.

    A training that pauses leaves a file `folder/<end of its folder>/<update>` with SLURM's number of its job in it, or its own, and goes
    on when a signal comes. It pauses once at each update.
    """
    return {"PYTHONPATH": str(SITE), "ASDFLOW_PAUSES": f"{folder}:{json.dumps(dict(updates))}"}


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition holds; an error that says what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)
