# Helpers only: the validated configuration, where files lie, what each stage depends on.
import functools
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

BASE = Path(workflow.basedir)
SCRIPTS = BASE / "workflow_scripts"
sys.path.insert(0, str(SCRIPTS))

from asdflow import configuration, provenance
from asdflow.data.listing import listing_digest, machine_folders
from asdflow.errors import InputError

try:
    config = configuration.load_configuration(config, BASE)
except InputError as error:
    raise WorkflowError(str(error)) from None

RUN = config["run"]
RESULTS = config["results_dir"]
DATA = config["data_dir"]
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
CHECKPOINTS = f"{RESULTS}/checkpoints"


# ------------------------------------------------------------------ what a stage depends on besides its files


@functools.cache
def code_digest(script: str) -> str:
    """Digest of the code that a script of workflow_scripts/ reaches: comments and layout do not count, modules it imports do."""
    return provenance.code_digest(SCRIPTS / script)


def canonical(value):
    """The same content always as the same object: keys sorted, at every depth."""
    if isinstance(value, dict):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def stage_config(**entries) -> dict:
    """One dictionary holding exactly what a stage reads from the configuration."""
    return canonical(entries)


def needs_gpu() -> int:
    """1 where this run's training stages want a GPU; on a cluster's login node, say `device: cuda`."""
    wanted = config["device"]
    return int(wanted == "cuda" or (wanted == "auto" and Path("/dev/nvidiactl").exists()))


# ------------------------------------------------------------------ data sets


def datasets_from(source: str) -> list[str]:
    return sorted(name for name, entry in config["datasets"].items() if entry["source"] == source)


def any_of(names) -> str:
    """A wildcard constraint that allows these names and, where there are none, nothing."""
    import re

    return "|".join(re.escape(name) for name in names) or "(?!)"


def dataset_root(name: str) -> str:
    """The folder that holds a data set's machines."""
    entry = config["datasets"][name]
    return entry["path"] if entry["source"] == "folder" else f"{DATA}/{name}"


@functools.cache
def machines_of(name: str) -> tuple[str, ...]:
    """A data set's machines: as configured, or the folders that are there."""
    entry = config["datasets"][name]
    if entry["source"] == "synthetic":
        return tuple(sorted(entry["machines"]))
    if entry["source"] == "dcase":
        return tuple(dcase_machines(entry))
    try:
        return tuple(entry["machines"] or machine_folders(Path(entry["path"])))
    except InputError as error:
        raise WorkflowError(str(error)) from None


def recordings_key(name: str, machine: str | None = None) -> dict:
    """What decides the recordings of a data set, or of one machine: the files of a folder, otherwise the recipe and its code."""
    entry = config["datasets"][name]
    if entry["source"] == "folder":
        return {"listing": listing_digest(Path(entry["path"]), machine)}
    maker = {"synthetic": "synthesize.py", "dcase": "unpack.py"}[entry["source"]]
    return {"recipe": entry, "code": code_digest(maker)}


def clips_of(name: str) -> str:
    return f"{RESULTS}/{name}/clips.parquet"


def features_of(name: str, encoder: str) -> list[str]:
    """Feature files of all machines of a data set, for one encoder."""
    front_end = encoder_entry(encoder)["front_end"]
    return [f"{RESULTS}/{name}/features/{front_end}/{machine}.h5" for machine in machines_of(name)]


def hidden_attributes_of(name: str) -> list[str]:
    """The file with the truth about hidden attributes, where a data set has one; only `evaluate` may ask."""
    entry = config["datasets"][name]
    known = entry["source"] == "synthetic" or (entry["source"] == "dcase" and entry["hidden_attributes"])
    return [f"{RESULTS}/{name}/hidden_attributes.csv"] if known else []


# ------------------------------------------------------------------ encoders

UNADAPTED = "_unadapted"


def encoder_entry(name: str) -> dict:
    """An encoder's entry; `<encoder>_unadapted` is the encoder that its pre-training starts from."""
    if name in config["encoders"]:
        return config["encoders"][name]
    entry = config["encoders"][name.removesuffix(UNADAPTED)]
    return {**entry, "pretraining": None}


def encoder_directory(name: str) -> str:
    return f"{RESULTS}/encoders/{name}"


def encoder_files(name: str) -> dict[str, str]:
    directory = encoder_directory(name)
    return {"weights": f"{directory}/encoder.safetensors", "config": f"{directory}/config.json"}


def origin_of(name: str) -> str:
    """The encoder that pre-training of `name` starts from."""
    init = config["encoders"][name]["init"]
    return init if isinstance(init, str) and init != "none" else name + UNADAPTED


def pretraining_datasets(name: str) -> list[str]:
    """Data sets of a pre-training recipe; `run` stands for those of this run and what its systems train with besides."""
    chosen = []
    for dataset in config["encoders"][name]["pretraining"]["datasets"]:
        chosen += RUN["datasets"] if dataset == "run" else [dataset]
    return sorted(set(chosen))


PRETRAINED = sorted(name for name, entry in config["encoders"].items() if entry["pretraining"])
PLAIN = sorted({name for name, entry in config["encoders"].items() if not entry["pretraining"]}
               | {origin_of(name) for name in PRETRAINED})


# ------------------------------------------------------------------ systems


def system_entry(name: str) -> dict:
    return config["systems"][name]


def training_datasets(dataset: str, system: str) -> list[str]:
    """The data set that is scored, then those whose clips join as further classes."""
    return [dataset, *(name for name in system_entry(system)["extra_datasets"] if name != dataset)]


def clusters_attributes(system: str) -> bool:
    return system_entry(system)["labels"]["hidden"] == "cluster" and system_entry(system)["tuning"]["method"] != "none"


def unadapted_labels(dataset: str) -> dict[str, str]:
    """System -> labels made without pre-training, for the systems whose encoder is pre-trained and whose labels are clusters."""
    return {
        system: f"{RESULTS}/{dataset}/{system}/labels_unadapted.parquet"
        for system in RUN["systems"]
        if clusters_attributes(system) and system_entry(system)["encoder"] in PRETRAINED and hidden_attributes_of(dataset)
    }


def runs_of(dataset: str, file: str) -> list[str]:
    """One file of every system and seed of a data set."""
    return expand(f"{RESULTS}/{dataset}/{{system}}/seed_{{seed}}/{file}", system=RUN["systems"], seed=RUN["seeds"])


wildcard_constraints:
    dataset=any_of(sorted(config["datasets"])),
    system=any_of(sorted(config["systems"])),
    encoder=any_of(sorted({*PRETRAINED, *PLAIN})),
    seed=r"\d+",
    front_end=r"\w+",
