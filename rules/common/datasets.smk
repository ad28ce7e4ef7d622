# Data sets: where recordings lie, what decides them, what their stages read.
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
