# What a stage depends on besides its files: settings in one form, and the code that it reaches.
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
