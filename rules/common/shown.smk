# What the report shows of a run.
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
