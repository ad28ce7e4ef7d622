"""A trained system as one folder that can be copied to another machine: model, encoder, memory, thresholds, front end."""

from __future__ import annotations

import json
import platform
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from asdflow.data.audio import inspect_audio, read_audio
from asdflow.detection.detector import Detector, Unit
from asdflow.detection.drift import Reference, Sound, describe
from asdflow.detection.windows import Lengths, Samples
from asdflow.errors import InputError
from asdflow.features.front_end import build_front_end, front_end_config
from asdflow.files import atomic_path, file_digest, read_json, write_json
from asdflow.tables import read_parquet
from asdflow.training.network import EmbeddingModel, load_model

FORMAT, VERSION = "asdflow-system", 1
DESCRIBED_CLIPS = 48
"""Training clips per machine that are read to know what its recordings are like."""


def export_detector(
    clips: Path,
    model_dir: Path,
    encoder_dir: Path | None,
    detector_dir: Path,
    output: Path,
    audio: Mapping[str, Any],
    configuration: Mapping[str, Any] | None = None,
) -> None:
    """Assemble a self-contained folder for `asdflow detect`.

    Parameters
    ----------
    clips : clips.parquet; the lengths and a sample of the training recordings are read.
    model_dir : folder with model.safetensors and model.json of a run.
    encoder_dir : folder of the encoder that the model was tuned from.
    detector_dir : the `detector` folder that the score stage wrote.
    output : folder to write: system.json, model/, encoder/, detector/.
    audio : the data set's audio settings.
    configuration : what system.json keeps of the configuration, as plain values.

    Raises InputError for training recordings that cannot be read, and for inputs that are missing.
    """
    output = Path(output)
    detector = Detector.load(detector_dir)
    _copy(model_dir, output / "model", ("model.safetensors", "model.json"))
    if encoder_dir is not None:
        _copy(encoder_dir, output / "encoder", ("encoder.safetensors", "config.json"))
    _copy(detector_dir, output / "detector", ("memory.safetensors", "detector.json"))
    model = load_model(model_dir, encoder_dir)
    training = read_parquet(clips).query("split == 'train'")
    machines = {
        machine: _machine_description(rows, audio)
        for machine, rows in training.groupby("machine")
        if machine in detector.machines
    }
    description = {
        "format": FORMAT,
        "version": VERSION,
        "front_end": front_end_config(model.front_end).to_dict(),
        "audio": dict(audio),
        "machines": machines,
        "configuration": dict(configuration or {}),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "soxr")}
        | {"python": platform.python_version(), "asdflow": _own_version()},
    }
    write_json(output / "system.json", description)


def _own_version() -> str:
    try:
        return metadata.version("asdflow")
    except metadata.PackageNotFoundError:
        return "unknown"


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    missing = [f"{Path(source) / name}: missing" for name in names if not (Path(source) / name).is_file()]
    if missing:
        raise InputError("a part of the system is missing", missing, "run the stages before export again")
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        with atomic_path(target / name) as temporary:
            shutil.copyfile(Path(source) / name, temporary)


def _machine_description(rows: pd.DataFrame, audio: Mapping[str, Any]) -> dict[str, Any]:
    """Lengths of a machine's training clips in samples at the wanted rate, and what a sample of them sounds like."""
    rate = int(audio.get("sample_rate", 16000))
    lengths = np.rint(rows["n_samples"].to_numpy() * (rate / rows["sample_rate"].to_numpy())).astype(int)
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), DESCRIBED_CLIPS)).astype(int))]
    sounds: list[Sound] = []
    for path in chosen["path"]:
        if isinstance(problem := inspect_audio(path, audio), str):
            raise InputError(
                "a training recording cannot be read", [f"{path}: {problem}"], "replace the file"
            )
        sounds.append(describe(read_audio(path, audio)))
    reference = Reference.of(sounds, rows["channels"].astype(int).tolist())
    return {"window": int(lengths.max()), "shortest": int(lengths.min()), "reference": reference.to_dict()}


@dataclass(frozen=True)
class WindowScores:
    """Scores float64 [n] of windows and the training clip each is nearest to."""

    anomaly_score: np.ndarray
    nearest: np.ndarray


class System:
    """A loaded model folder, ready to score windows of one machine; safe to use from several threads."""

    def __init__(
        self, directory: Path, machine: str | None, section: str | None, device: str = "cpu"
    ) -> None:
        self.directory = Path(directory)
        self.description = _read_description(self.directory)
        encoder = self.directory / "encoder"
        self.model: EmbeddingModel = load_model(
            self.directory / "model", encoder if encoder.is_dir() else None, device
        )
        self.detector = Detector.load(self.directory / "detector", device)
        self.machine = self._machine(machine)
        self.unit: Unit = self.detector.unit(self.machine, section)
        self.section = section or (self.detector.sections(self.machine) or [""])[0]
        about = self.description["machines"][self.machine]
        self.lengths = Lengths(about["window"], about["shortest"])
        self.reference = Reference.from_dict(about["reference"])
        self.audio: dict[str, Any] = {**self.description["audio"], "resample": True}
        self.rate = int(self.audio.get("sample_rate", 16000))
        self.digest = file_digest(self.directory / "detector" / "memory.safetensors")
        self._front_end = build_front_end(self.model.front_end)
        self._lock = threading.Lock()

    def _machine(self, machine: str | None) -> str:
        known = self.detector.machines
        if machine is None and len(known) == 1:
            return known[0]
        if machine is None or machine not in known:
            raise InputError(
                f"machine {machine!r} is unknown to {self.directory}"
                if machine
                else "which machine was recorded?",
                remedy=f"give --machine with one of: {', '.join(known)}",
            )
        return machine

    @torch.inference_mode()
    def score(self, windows: Sequence[Samples]) -> WindowScores:
        """Score windows, float32 [samples] each at the wanted rate.

        The log-mel is rounded to float16 as in the feature cache, so that a clip gets the score it has in the workflow.
        """
        frames = [self._front_end(torch.from_numpy(window)[None])[0].half().numpy() for window in windows]
        machines = [self.machine] * len(windows)
        tuned = getattr(self.model, "tuned", None)
        if getattr(tuned, "adapters", None) is not None:  # the adapters keep the machine of the batch in hand
            with self._lock:
                embeddings = self.model.embed(frames, machines)
        else:
            embeddings = self.model.embed(frames, machines)
        found = self.unit.score(torch.from_numpy(embeddings))
        return WindowScores(found.anomaly_score.double().numpy(), found.nearest.numpy())


def _read_description(directory: Path) -> dict[str, Any]:
    """system.json of a model folder, after checking that this asdflow computes the same front end."""
    path = directory / "system.json"
    if not path.is_file():
        inside = [f"{found.parent} is one" for found in sorted(directory.glob("*/system.json"))]
        raise InputError(
            f"{directory} is not the folder of a trained system: it has no system.json",
            inside,
            "give the folder that the workflow's export step wrote",
        )
    description = read_json(path, "copy the folder again")
    if description.get("format") != FORMAT or description.get("version") != VERSION:
        raise InputError(f"{path} is not of a form that this asdflow reads", remedy="export the system again")
    there = description["front_end"]
    own = json.loads(json.dumps(front_end_config(there["name"]).to_dict()))
    if differing := [
        f"{key}: {there.get(key)} there, {own[key]} here" for key in own if own[key] != there.get(key)
    ]:
        raise InputError(
            f"{path}: the front end {own['name']} of this asdflow has other parameters than the system was trained with",
            differing,
            "install the version of asdflow that made the system",
        )
    return description
