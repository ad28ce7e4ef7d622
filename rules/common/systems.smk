# Systems: what they share, what their stages read and write.
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
    return [
        system
        for system in RUN["systems"]
        if system_entry(system)["tuning"]["method"] in ("none", "autoencoder")
        or system == RUN["baseline"]
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
