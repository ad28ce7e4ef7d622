"""What every workflow script does around its one function call: log lines, threads, and readable errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from asdflow.errors import InputError
from asdflow.leases import leased_gpus
from asdflow.running import job

PACE = ("log_every", "checkpoint_minutes")
"""Settings that say when a training stage writes log lines and checkpoints. No result depends on them, so they are kept out of
what Snakemake records of a job, and changing one reruns nothing."""


def with_pace(settings: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's recorded settings and, from the configuration of today, how often it logs and saves."""
    return {**settings, **{key: configured[key] for key in PACE}}


def run_stage(main: Callable[[Any], None], smk: Any) -> None:
    """Call `main(smk)` with logging to the terminal and to the rule's log file, and with GPUs of its own where it wants some.

    An InputError is shown as its message alone and ends the process with exit code 1; any other error keeps its traceback.

    Parameters
    ----------
    main : the script's function.
    smk : the object Snakemake gives to scripts (`log`, `threads`, `resources`, `rule`, `wildcards`, `config`).
    """
    log_file = Path(str(smk.log[0])) if smk.log else None
    _start_logging(log_file, _job_name(smk))
    os.environ["OMP_NUM_THREADS"] = str(smk.threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(smk.threads))
    signal.signal(signal.SIGTERM, _leave)
    try:
        with (
            job(Path(smk.config["results_dir"]), _job_name(smk)),
            leased_gpus(int(smk.resources.get("gpu", 0))),
        ):
            main(smk)
    except InputError as error:
        logging.getLogger("asdflow").error("%s", error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        logging.getLogger("asdflow").error("Interrupted; the same command goes on from here")
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception:
        logging.getLogger("asdflow").exception("The job failed by an error in the program, not in its input")
        raise


def _leave(number: int, frame: FrameType | None) -> None:
    """On SIGTERM: end by way of what removes half-written files. Training has its own answer, and saves a checkpoint first."""
    logging.getLogger("asdflow").error("Ended by SIGTERM; the same command goes on from here")
    raise SystemExit(128 + number)


def _job_name(smk: Any) -> str:
    """The rule and the values that tell its jobs apart, for the start of every log line."""
    return " ".join([str(smk.rule), *(str(value) for value in smk.wildcards)])


def _start_logging(log_file: Path | None, job: str) -> None:
    formatter = logging.Formatter(f"[%(asctime)s] {job}: %(message)s", datefmt="%H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w", encoding="utf-8"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("asdflow").setLevel(logging.INFO)
