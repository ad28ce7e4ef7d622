# Encoders: where they lie, what they start from, what pre-training reads.
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
