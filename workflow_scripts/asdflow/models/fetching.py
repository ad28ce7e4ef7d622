"""Encoders put where the workflow finds them: random weights by seed, or a published checkpoint, verified and converted.

Apart from `loading`, which all training reaches, so that an edit of the transfer of files never trains anything again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asdflow.data.transfer import DownloadSettings, Progress, ask, blocks, open_session, with_retries
from asdflow.errors import InputError
from asdflow.files import file_digest, full_disk_in_words
from asdflow.models.encoder import Encoder, build_encoder, save_encoder
from asdflow.models.loading import load_encoder, weights_file

log = logging.getLogger(__name__)


def fetch_encoder(settings: Mapping[str, Any], output: str | Path) -> None:
    """Put the encoder of a configuration entry into the folder `output`, in our layout.

    `settings` has `architecture`, `front_end`, `seed` and `init`: `none` for random weights by seed (config.json then says
    weights: random), or {path or url, sha256} for a published checkpoint, which is verified, loaded, compared with
    `architecture` and `front_end`, and converted. Raises InputError for what does not fit.
    """
    init = settings["init"]
    if init == "none":
        save_encoder(build_encoder(settings, int(settings["seed"])), output, weights="random")
        return
    Path(output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=output) as folder:
        source = _checkpoint_file(init, Path(folder))
        encoder = load_encoder(source)
    _compare(settings, encoder, str(init.get("path") or init.get("url")))
    save_encoder(encoder, output, weights="published")


def _checkpoint_file(init: Mapping[str, Any], folder: Path) -> Path:
    """The verified checkpoint: the local file or folder itself, or a download in `folder`."""
    path, url, wanted = init.get("path"), init.get("url"), init.get("sha256")
    if bool(path) == bool(url):
        raise InputError(
            "init of an encoder needs either `path` or `url`", [f"init: {dict(init)}"], "give one of them"
        )
    source = Path(path) if path else folder / str(url).split("?")[0].rsplit("/", 1)[-1]
    if url:
        _download(str(url), source)
    weights = weights_file(source)
    found = file_digest(weights)
    if wanted is None:
        log.warning("%s: no sha256 is configured; the file has %s", path or url, found)
    elif found != wanted:
        raise InputError(
            f"{path or url} is not the file that was wanted",
            [f"SHA-256 of {weights.name}: {found}", f"configured: {wanted}"],
            "fetch it again, or correct sha256 if the file was replaced on purpose",
        )
    return source


def _download(url: str, path: Path) -> None:
    """Fetch `url` into `path`; local addresses (file://) are copied."""
    if url.startswith("file://"):
        with full_disk_in_words(path):
            shutil.copyfile(url.removeprefix("file://"), path)
        return
    settings = DownloadSettings()

    def attempt() -> None:
        with (
            full_disk_in_words(path),
            open_session() as session,
            ask(session, url, settings) as response,
            path.open("wb") as handle,
        ):
            progress = Progress(path.name, int(response.headers.get("Content-Length", 0)))
            for block in blocks(response, url, 1 << 20):
                handle.write(block)
                progress.add(len(block))

    with_retries(attempt, settings, url, "check the connection, or fetch the file by hand and set init.path")


def _compare(settings: Mapping[str, Any], encoder: Encoder, source: str) -> None:
    """Raise InputError where the configuration says something else than the checkpoint."""
    built = encoder.config()
    problems = [
        f"architecture.{key}: {value} is configured, the checkpoint has {built['architecture'].get(key)}"
        for key, value in settings["architecture"].items()
        if built["architecture"].get(key) != value
    ]
    if settings["front_end"] != built["front_end"]:
        problems.append(
            f"front_end: {settings['front_end']} is configured, the checkpoint wants {built['front_end']}"
        )
    if problems:
        raise InputError(
            f"{source} does not fit the encoder's entry", problems, "correct the entry in configs/encoders/"
        )
