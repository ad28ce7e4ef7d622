# Helpers only: the validated configuration, where files lie, what each stage depends on.
import functools
import os
import sys
import time
from pathlib import Path

from snakemake.caching.rule import RuleCache
from snakemake.exceptions import WorkflowError

BASE = Path(workflow.basedir)
SCRIPTS = BASE / "workflow_scripts"
sys.path.insert(0, str(SCRIPTS))

from asdflow import configuration, provenance, running, slurm_arrays, workstation
from asdflow.data import archives
from asdflow.data.listing import listing_digest, machine_folders
from asdflow.errors import InputError
from asdflow.job import PACE
from asdflow.training.recipes import check_system

# Where Snakemake has been started as a task of a SLURM array, it ends here and the task's own job takes its place.
slurm_arrays.become_own_job(sys.orig_argv, os.environ)


def known_machines(config, system: dict) -> tuple:
    """Machines that a system trains on and those of them that hide their attributes, where a plan can know both."""
    entries = [
        config["datasets"][name]
        for name in (*config["run"]["datasets"], *system["extra_datasets"])
    ]
    if any(entry["source"] != "synthetic" for entry in entries):
        return None, None
    machines = {
        name: part for entry in entries for name, part in entry["machines"].items()
    }
    return sorted(machines), [
        name for name, part in machines.items() if part["hide_attributes"]
    ]


def check_systems(config) -> None:
    """Refuse systems whose parts cannot work together, all reasons at once."""
    problems = [
        f"systems.{name}: {reason}"
        for name, entry in config["systems"].items()
        for reason in check_system(
            entry, config["encoders"][entry["encoder"]], *known_machines(config, entry)
        )
    ]
    if problems:
        raise InputError(
            "These systems cannot work:", problems, "change the parts named above"
        )


try:
    config = configuration.load_configuration(config, BASE)
    check_systems(config)
except InputError as error:
    raise WorkflowError(str(error)) from None

RUN = config["run"]
RESULTS = config["results_dir"]
DATA = config["data_dir"]
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
CHECKPOINTS = f"{RESULTS}/checkpoints"


include: "common/digests.smk"
include: "common/resources.smk"
include: "common/datasets.smk"
include: "common/encoders.smk"
include: "common/systems.smk"
include: "common/shown.smk"
include: "common/run.smk"
