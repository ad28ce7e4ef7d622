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


# ------------------------------------------------------------------ what a stage depends on besides its files


ARCHITECTURES = ("eat", "beats", "stft_cnn", "logmel_statistics")


@functools.cache
def code_of(script: str, architecture: str | None = None) -> dict[str, str]:
    """File -> digest of the code that a script of workflow_scripts/ reaches: comments and layout do not count, modules it imports do.

    Of the encoder architectures, each a module imported when first asked for, only the named one counts; without a name all do.
    How files are transferred never counts: checksums say whether they are right.
    """
    package = SCRIPTS / "asdflow"
    uncounted = {
        package / "models" / f"{name}.py"
        for name in ARCHITECTURES
        if architecture and name != architecture
    }
    return provenance.code_digests(
        SCRIPTS / script, package, {*uncounted, package / "data" / "transfer.py"}
    )


def canonical(value):
    """The same content always as the same object: keys sorted, at every depth. Snakemake overlooks other kinds of values: refused."""
    if isinstance(value, dict):
        return {str(key): canonical(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(
        f"{value!r} is no plain value: Snakemake would not notice its change"
    )


def stage_config(**entries) -> dict:
    """One dictionary holding exactly what a stage reads from the configuration."""
    return canonical(entries)


def without_pace(settings: dict) -> dict:
    """Settings of a training stage without those that say how often it logs and saves."""
    return {key: value for key, value in settings.items() if key not in PACE}


def needs_gpu() -> int:
    """1 where this run's training stages want a GPU; on a cluster's login node, say `device: cuda`."""
    wanted = config["device"]
    return int(wanted == "cuda" or (wanted == "auto" and provenance.has_gpu()))


# ------------------------------------------------------------------ what jobs ask for


def growing(amount: int):
    """A resource that is asked for again, twice and three times over, when a job is tried again."""
    return lambda wildcards, attempt: amount * attempt


def pretraining_threads() -> int:
    """CPU threads of one task: processes on one node share a task, on several nodes each is a task of its own."""
    alone = config["training_nodes"] == 1
    return config["training_threads"] * (config["training_devices"] if alone else 1)


def several_devices() -> dict:
    """What pre-training on several devices asks of Snakemake and of SLURM; the result does not depend on it."""
    devices, nodes = config["training_devices"], config["training_nodes"]
    if nodes == 1:
        return {"devices": devices, "nodes": 1}
    # `mpi` has the plugin leave the start of the tasks to the job itself, which calls srun
    return {
        "devices": devices,
        "nodes": nodes,
        "mpi": "srun",
        "tasks": devices * nodes,
        "tasks_per_gpu": 0,
        "slurm_extra": f"--ntasks-per-node={devices}"
        + (f" --gpus-per-node={devices}" if needs_gpu() else "")
        + " --signal=TERM@120",
    }


# Memory in MB, of the main memory. Measured on the CPU: Python, PyTorch and a stage's windows onto the feature cache take 0.5
# to 0.8 GB whatever the data's size (docs/cluster.md). Estimated: the driver's part on a GPU, and 4 bytes a weight and copy.


def base_memory() -> int:
    return 4000 if needs_gpu() else 1500


def million_weights(encoder: str) -> float:
    """A transformer's size from its width and depth, as in its blocks' matrices; 1 for the small encoders."""
    shape = encoder_entry(encoder)["architecture"]
    width, depth = shape.get("width"), shape.get("depth")
    if shape["name"] == "beats":
        width, depth = 768, 12
    return 12 * width**2 * depth / 1e6 if width and depth else 1.0


def embedding_memory(encoder: str) -> int:
    """Two copies of the weights while they are loaded; on the CPU the activations of a batch besides."""
    weights = million_weights(encoder)
    return round(base_memory() + 8 * weights + (0 if needs_gpu() else 20 * weights))


def training_memory(encoder: str) -> int:
    """Weights, teacher, gradient and two moments, all once more in a checkpoint; on the CPU the activations besides."""
    weights = million_weights(encoder)
    processes = config["training_devices"]
    return round(
        (base_memory() + 40 * weights + (0 if needs_gpu() else 100 * weights))
        * processes
    )


def finetuning_memory() -> int:
    """Of the run's largest encoder: an array of jobs has one request for all."""
    encoders = [config["systems"][name]["encoder"] for name in RUN["systems"]]
    return max(
        round(base_memory() + (32 if needs_gpu() else 132) * million_weights(name))
        for name in encoders
    )


# ------------------------------------------------------------------ data sets


def datasets_from(source: str) -> list[str]:
    return sorted(
        name for name, entry in config["datasets"].items() if entry["source"] == source
    )


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
    try:
        if entry["source"] == "synthetic":
            return tuple(sorted(entry["machines"]))
        if entry["source"] == "dcase":
            return tuple(archives.planned_machines(name, entry))
        return tuple(entry["machines"] or machine_folders(Path(entry["path"])))
    except InputError as error:
        raise WorkflowError(str(error)) from None


@functools.cache
def planned_archives(name: str, machine: str | None = None) -> tuple:
    """The archives that hold a data set, or one machine of it."""
    try:
        return tuple(archives.plan_archives(name, config["datasets"][name], machine))
    except InputError as error:
        raise WorkflowError(str(error)) from None


def recordings_key(name: str, machine: str | None = None) -> dict:
    """What decides the recordings of a data set, or of one machine: a folder's files, the archives, or the recipe and its code."""
    entry = config["datasets"][name]
    if entry["source"] == "folder":
        return {"listing": listing_digest(Path(entry["path"]), machine)}
    if entry["source"] == "dcase":
        return {"archives": archive_identity(name, machine)}
    return {"recipe": synthesis_settings(name), "code": code_of("synthesize.py")}


def synthesis_settings(name: str) -> dict:
    """What the synthesis reads of a data set's entry."""
    entry = config["datasets"][name]
    return stage_config(
        **{key: entry[key] for key in ("seed", "clip_seconds", "counts", "machines")}
    )


def archive_records(name: str, machine: str) -> list[str]:
    """The records that say that a machine's archives are here and verified."""
    return [
        str(archives.record_path(DATA, archive))
        for archive in planned_archives(name, machine)
    ]


def archive_identity(name: str, machine: str | None = None) -> list[list]:
    """Which archives a data set, or a machine of it, consists of. Their content is checked against published checksums."""
    return [
        [archive.kind, archive.zenodo_record, archive.name]
        for archive in planned_archives(name, machine)
    ]


LABEL_KEYS = (
    "rules_of",
    "split",
    "machines",
    "evaluation_labels",
    "hidden_attributes",
    "partial",
)


CATALOGUE_KEYS = (
    "source",
    "rules_of",
    "audio",
    "partial",
    "auxiliary",
    "split",
)


def catalogue_settings(name: str) -> dict:
    """What the catalogue reads of a data set's entry.

    Later years than 2021 count as 2021 unless the set must be complete: the year then only asks whether names say a domain, and
    judging a data set by another year's metrics must not train anything again.
    """
    entry = config["datasets"][name]
    chosen = {key: entry[key] for key in CATALOGUE_KEYS if key in entry}
    settings = {"partial": True, "auxiliary": False, **chosen}
    if settings["partial"]:
        settings["rules_of"] = min(settings["rules_of"], 2021)
    return stage_config(
        **settings, **{"machines": list(machines_of(name)), "path": dataset_root(name)}
    )


def extraction_settings(wildcards) -> dict:
    """What decides, besides the recordings, which clips a machine has, how they are read, and what is made of them."""
    settings = catalogue_settings(wildcards.dataset)
    return stage_config(
        **{key: settings[key] for key in ("audio", "auxiliary", "path")},
        machines=[wildcards.machine],
        front_end=wildcards.front_end,
    )


def extraction_inputs(wildcards) -> dict:
    """The files that say that a machine's recordings are complete."""
    name = wildcards.dataset
    source = config["datasets"][name]["source"]
    if source == "synthetic":
        return {"recordings": dataset_root(name)}
    if source == "dcase":
        return {"recordings": f"{DATA}/{name}/{wildcards.machine}.unpacked.json"}
    return {}


def catalogue_inputs(wildcards) -> dict:
    """The files that say that a data set's recordings are complete; a folder of one's own is there or is not."""
    name = wildcards.dataset
    source = config["datasets"][name]["source"]
    if source == "synthetic":
        return {"recordings": [dataset_root(name)]}
    if source == "dcase":
        return {
            "recordings": [
                f"{DATA}/{name}/{machine}.unpacked.json"
                for machine in machines_of(name)
            ],
            "labels": f"{DATA}/{name}/evaluation_labels.csv",
        }
    return {}


def clips_of(name: str) -> str:
    return f"{RESULTS}/{name}/clips.parquet"


def features_of(name: str, encoder: str) -> list[str]:
    """Feature files of all machines of a data set, for one encoder."""
    front_end = encoder_entry(encoder)["front_end"]
    return [
        f"{RESULTS}/{name}/features/{front_end}/{machine}.h5"
        for machine in machines_of(name)
    ]


def hidden_attributes_of(name: str) -> list[str]:
    """The file with the truth about hidden attributes, where a data set has one; only `evaluate` may ask."""
    entry = config["datasets"][name]
    if entry["source"] == "synthetic":
        return [f"{DATA}/{name}.hidden_attributes.csv"]
    return (
        [f"{DATA}/{name}/hidden_attributes.csv"]
        if entry.get("hidden_attributes")
        else []
    )


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
    return {
        "weights": f"{directory}/encoder.safetensors",
        "config": f"{directory}/config.json",
    }


def architecture_of(encoder: str) -> str:
    return encoder_entry(encoder)["architecture"]["name"]


def checkpoint_files(encoder: str) -> list[str]:
    """The files of a checkpoint on this machine that an encoder starts from."""
    init = encoder_entry(encoder)["init"]
    path = Path(init["path"]) if isinstance(init, dict) and init["path"] else None
    if path is None:
        return []
    files = (
        sorted(file for file in path.iterdir() if file.is_file())
        if path.is_dir()
        else [path]
    )
    return [str(file) for file in files]


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


def pretraining_inputs(wildcards) -> dict:
    """Catalogues and features to pre-train on, and the encoder to start from."""
    names = pretraining_datasets(wildcards.encoder)
    return {
        "clips": [clips_of(name) for name in names],
        "features": [
            path for name in names for path in features_of(name, wildcards.encoder)
        ],
        "init_weights": encoder_files(origin_of(wildcards.encoder))["weights"],
        "init_config": encoder_files(origin_of(wildcards.encoder))["config"],
    }


PRETRAINED = sorted(
    name for name, entry in config["encoders"].items() if entry["pretraining"]
)
PLAIN = sorted(
    {name for name, entry in config["encoders"].items() if not entry["pretraining"]}
    | {origin_of(name) for name in PRETRAINED}
)


# ------------------------------------------------------------------ systems


def system_entry(name: str) -> dict:
    return config["systems"][name]


def training_datasets(dataset: str, system: str) -> list[str]:
    """The data set that is scored, then those whose clips join as further classes."""
    return [
        dataset,
        *(name for name in system_entry(system)["extra_datasets"] if name != dataset),
    ]


LABELLED_KEYS = ("encoder", "labels", "extra_datasets")
TUNED_KEYS = ("tuning", "objective", "augmentation", "pooling")


def tuning_settings(system: str) -> dict:
    """What fine-tuning reads of a system's entry."""
    entry = system_entry(system)
    return {
        "tuning": without_pace(entry["tuning"]),
        "objective": entry["objective"],
        "augmentation": entry["augmentation"],
        "pooling": entry["pooling"],
    }


def described_system(name: str) -> dict:
    """A system's entry as reports and exports show it."""
    entry = system_entry(name)
    return {**entry, "tuning": without_pace(entry["tuning"])}


def described_encoder(name: str) -> dict:
    """An encoder's entry as the report shows it."""
    entry = config["encoders"][name]
    recipe = entry["pretraining"]
    return {**entry, "pretraining": recipe and without_pace(recipe)}


def first_alike(system: str, keys) -> str:
    """The first system of the run that agrees with this one in these parts: a stage that reads no others runs for that one only."""
    own = [system_entry(system)[key] for key in keys]
    return next(
        other
        for other in (*RUN["systems"], system)
        if [system_entry(other)[key] for key in keys] == own
    )


def labels_folder(dataset: str, system: str) -> str:
    """Where a system's labels lie: systems with the same labels of the same encoder share them."""
    return f"{RESULTS}/{dataset}/{first_alike(system, LABELLED_KEYS)}"


def tuned_folder(dataset: str, system: str, seed) -> str:
    """Where a system's tuned model and embeddings lie: systems that differ in their back end only share them.

    An encoder that is not tuned gives the same embeddings with every seed, so they are made for the first seed only.
    """
    owner = first_alike(system, (*LABELLED_KEYS, *TUNED_KEYS))
    trained = system_entry(system)["tuning"]["method"] != "none"
    return f"{RESULTS}/{dataset}/{owner}/seed_{seed if trained else RUN['seeds'][0]}"


def clusters_embeddings(system: str) -> bool:
    """Whether a system's labels come, where attributes are hidden, from clusters of embeddings."""
    return system_entry(system)["labels"]["kind"] in ("pseudo_attributes", "clusters")


def label_inputs(dataset: str, system: str, unadapted: bool = False) -> dict:
    """Catalogues, and what the kind of labels needs besides: embeddings to cluster, or the truth as an upper bound."""
    inputs = {"clips": [clips_of(name) for name in training_datasets(dataset, system)]}
    if clusters_embeddings(system):
        encoder = system_entry(system)["encoder"]
        encoder = origin_of(encoder) if unadapted else encoder
        inputs["embeddings"] = [f"{RESULTS}/{dataset}/embeddings/{encoder}.h5"]
    if system_entry(system)["labels"]["kind"] == "hidden_attributes":
        inputs["hidden_attributes"] = hidden_attributes_of(dataset)
    return inputs


def finetuning_inputs(wildcards) -> dict:
    """Features and labels to train on, and the encoder to tune."""
    dataset, system = wildcards.dataset, wildcards.system
    encoder = system_entry(system)["encoder"]
    return {
        "clips": clips_of(dataset),
        "labels": f"{labels_folder(dataset, system)}/labels.parquet",
        "features": [
            path
            for name in training_datasets(dataset, system)
            for path in features_of(name, encoder)
        ],
        "encoder_weights": encoder_files(encoder)["weights"],
        "encoder_config": encoder_files(encoder)["config"],
    }


def judged_labels(dataset: str, suffix: str = "") -> dict[str, str]:
    """System -> labels whose clusters can be held against the hidden attributes; with a suffix, those made without pre-training."""
    systems = [
        system
        for system in RUN["systems"]
        if clusters_embeddings(system) and hidden_attributes_of(dataset)
    ]
    if suffix:
        systems = [
            system
            for system in systems
            if system_entry(system)["encoder"] in PRETRAINED
        ]
    return {
        system: f"{labels_folder(dataset, system)}/labels{suffix}.parquet"
        for system in systems
    }


SCORED = [*RUN["systems"], *config["ensembles"]]
"""What has scores: the systems of the run, and ensembles of them."""


def runs_of(dataset: str, file: str, systems=None) -> list[str]:
    """One file of every system and seed of a data set."""
    return expand(
        f"{RESULTS}/{dataset}/{{system}}/seed_{{seed}}/{file}",
        system=RUN["systems"] if systems is None else systems,
        seed=RUN["seeds"],
    )


def tuned_files(dataset: str, file: str) -> list[str]:
    """One file of every tuned model of a data set."""
    folders = {
        tuned_folder(dataset, system, seed)
        for system in RUN["systems"]
        for seed in RUN["seeds"]
    }
    return [f"{folder}/{file}" for folder in sorted(folders)]


def member_files(wildcards, file: str) -> list[str]:
    """One file of every member of an ensemble."""
    members = config["ensembles"][wildcards.ensemble]["systems"]
    return [
        f"{RESULTS}/{wildcards.dataset}/{member}/seed_{wildcards.seed}/{file}"
        for member in members
    ]


def reference_systems() -> list[str]:
    """Systems that the others are compared with: those that tune no encoder, the best baseline among them, and the chosen one."""
    baseline = RUN["baseline"] or RUN["systems"][-1]
    return [
        system
        for system in RUN["systems"]
        if system_entry(system)["tuning"]["method"] in ("none", "autoencoder")
        or system == baseline
    ]


def detection_inputs(wildcards) -> dict:
    """The exported system that scores new recordings, and the folder they lie in."""
    chosen = config["detect"]
    missing = [f"detect.{key} is not set" for key in ("recordings",) if not chosen[key]]
    if missing:
        raise WorkflowError(
            str(
                InputError(
                    "Nothing to detect in",
                    missing,
                    "--config 'detect={recordings: DIR}'",
                )
            )
        )
    dataset = chosen["dataset"] or RUN["datasets"][0]
    system = chosen["system"] or RUN["systems"][0]
    seed = RUN["seeds"][0] if chosen["seed"] is None else chosen["seed"]
    return {
        "model": f"{RESULTS}/{dataset}/{system}/seed_{seed}/export",
        "recordings": chosen["recordings"],
    }


# ------------------------------------------------------------------ report


def label_files(dataset: str) -> list[str]:
    """Labels and clusters of every system."""
    folders = sorted({labels_folder(dataset, system) for system in RUN["systems"]})
    return expand(
        "{folder}/{file}", folder=folders, file=("labels.parquet", "clusters.npz")
    )


def shown_encoders() -> dict[str, str]:
    """System -> the encoder before its pre-training, for systems whose encoder is pre-trained."""
    entries = {system: system_entry(system)["encoder"] for system in RUN["systems"]}
    return {
        system: origin_of(encoder)
        for system, encoder in entries.items()
        if encoder in PRETRAINED
    }


def shown_embeddings(dataset: str) -> list[str]:
    """Embeddings before and after fine-tuning, for the maps."""
    before = {
        *(system_entry(system)["encoder"] for system in RUN["systems"]),
        *shown_encoders().values(),
    }
    return [
        f"{RESULTS}/{dataset}/embeddings/{encoder}.h5" for encoder in sorted(before)
    ] + tuned_files(dataset, "embeddings.h5")


def report_config() -> dict:
    """What the report shows of the configuration; where files lie, on what device and with how many log lines they were made is no part of it."""
    return stage_config(
        configuration={
            "run": RUN,
            "datasets": config["datasets"],
            "encoders": {name: described_encoder(name) for name in config["encoders"]},
            "systems": {name: described_system(name) for name in config["systems"]},
            "ensembles": config["ensembles"],
            "ablations": config["ablations"],
        },
        unadapted=shown_encoders(),
        folders={
            system: {
                "labels": labels_folder("", system).rsplit("/", 1)[1],
                "tuned": {
                    str(seed): "/".join(
                        tuned_folder("", system, seed).rsplit("/", 2)[1:]
                    )
                    for seed in RUN["seeds"]
                },
            }
            for system in RUN["systems"]
        },
    )


# ------------------------------------------------------------------ the run as a whole


def share_between_checkouts(*names: str) -> None:
    """With `snakemake --cache`, keep what these rules make in the folder $SNAKEMAKE_OUTPUT_CACHE, and take from there what it has.

    Not by the directive `cache`, which warns in every run without it and goes with no benchmark: a shared result has none.
    """
    if workflow.workflow_settings.cache is None:
        return
    for name in names:
        shared = workflow.get_rule(name)
        shared.benchmark = None
        shared.cache = RuleCache.from_rule(shared, "omit-software")


entered = []
started = time.monotonic()

# Jobs of one machine share its memory: what they ask for together stays below. A cluster has its own limits.
if (
    workflow.is_main_process
    and "mem_mb" not in workflow.global_resources
    and workflow.global_resources["_nodes"].value is None
):
    workflow.register_resource("mem_mb", workstation.memory_for_jobs())


def only_asks() -> bool:
    """Whether this run only tells what another would do."""
    return {job.rule.name for job in workflow.dag.jobs} == {"why"}


def enter_results_folder() -> list:
    """The lock of the results folder, held until this process ends, however it ends."""
    if only_asks():
        return []
    try:
        lock, message = running.enter(Path(RESULTS))
    except InputError as error:
        raise WorkflowError(str(error)) from None
    if message:
        print(message, file=sys.stderr, flush=True)
    return [lock]


def check_arrays() -> None:
    """Refuse limits under which jobs that go into an array could be left out of it: the plugin would wait for them without end."""
    setting = getattr(workflow.executor_settings, "array_jobs", None) or ""
    arrays = {name.strip() for name in setting.replace(";", ",").split(",")}
    waiting = list(workflow.dag.needrun_jobs())
    if not any(job.rule.name in arrays or "all" in arrays for job in waiting):
        return
    jobs = {workflow.dag.get_job_group(job) or job for job in waiting}
    pace = workflow.scheduling_settings.max_jobs_per_timespan
    limits = {
        "jobs": workflow.global_resources["_nodes"].value,
        "max-jobs-per-timespan": pace and pace.max_jobs,
    }
    if "gpu" in workflow.global_resources:
        limits["resources: gpu"] = workflow.global_resources["gpu"].value
    problems = slurm_arrays.limits_in_the_way(len(jobs), limits)
    if problems:
        remedy = "raise them, or take `slurm-array-jobs` out of the profile"
        raise WorkflowError(
            str(InputError("These limits are too low for arrays:", problems, remedy))
        )


def run_jobs() -> list:
    """The jobs of this run and how they ended; those without files of their own are left out."""
    failed = {
        job
        for item in workflow.scheduler.failed
        for job in (item.jobs if item.is_group() else [item])
    }
    return [
        workstation.RunJob(
            job.rule.name,
            " ".join(job.wildcards),
            Path(job.log[0]) if job.log else None,
            Path(job.benchmark) if job.benchmark else None,
            (
                "failed"
                if job in failed
                else "done" if workflow.dag.finished(job) else "waiting"
            ),
        )
        for level in workflow.dag.toposorted()
        for job in sorted(level, key=lambda job: (job.rule.name, list(job.wildcards)))
        if job.output and workflow.dag.needrun(job)
    ]


def tell_how_it_went() -> None:
    """The last lines of a run."""
    for lock in entered:
        running.leave(lock)
    if not only_asks():
        page = Path(RESULTS) / "report" / "index.html"
        command = "the same command with the target `why`"
        print(
            workstation.closing_summary(
                run_jobs(), time.monotonic() - started, page, command
            ),
            flush=True,
        )


wildcard_constraints:
    dataset=any_of(sorted(config["datasets"])),
    system=any_of(sorted(config["systems"])),
    encoder=any_of(sorted({*PRETRAINED, *PLAIN})),
    seed=r"\d+",
    front_end=r"\w+",
