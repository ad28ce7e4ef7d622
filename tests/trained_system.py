"""A small trained system for tests of detection: every stage of the workflow run on a few two-second recordings."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from asdflow.clustering import make_labels
from asdflow.data.catalogue import build_catalogue, write_catalogue
from asdflow.detection.score import score
from asdflow.detection.system import export_detector
from asdflow.features.extract import extract_features
from asdflow.models.encoder import build_encoder, save_encoder
from asdflow.training.finetune import finetune

from tests.test_finetune import SETTINGS

RATE = 16_000
SECONDS = 2.0
ENCODER = {
    "front_end": "eat_logmel",
    "architecture": {"name": "logmel_statistics"},
}
AUDIO = {"sample_rate": RATE, "resample": True, "channel": "mean"}
HUM = {"fan": 120.0, "valve": 700.0}


def machine_sound(machine, seed, seconds=SECONDS, anomalous=False, rate=RATE, pitch=1.0):
    """A hum with harmonics in noise, float64 [samples]; an anomaly whistles at 3 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(
        np.sin(2 * np.pi * pitch * HUM[machine] * k * time + rng.uniform(0, 6)) / k for k in (1, 2, 3)
    )
    sound = 0.05 * tones + 0.01 * rng.normal(size=len(time))
    return sound + anomalous * 0.08 * np.sin(2 * np.pi * 3000 * time)


def write_recordings(root):
    """Recordings of two machines in DCASE layout."""
    counts = [("train", "normal", "source", 14), ("train", "normal", "target", 5), ("test", "normal", "source", 4),
              ("test", "normal", "target", 4), ("test", "anomaly", "source", 4), ("test", "anomaly", "target", 4)]  # fmt: skip
    for number, machine in enumerate(HUM):
        for part, (split, condition, domain, count) in enumerate(counts):
            for clip in range(count):
                sound = machine_sound(
                    machine,
                    [number, part, clip],
                    anomalous=condition == "anomaly",
                    pitch=1.1 if domain == "target" else 1.0,
                )
                name = f"section_00_{domain}_{split}_{condition}_{clip:04d}_vel_{5 + clip % 2}.wav"
                path = root / machine / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, sound, RATE, subtype="PCM_16")


class TrainedSystem:
    """Recordings, the stages' results below `run`, and the exported folder `model`."""

    def __init__(self, folder: Path) -> None:
        self.recordings, self.run, self.model = folder / "data", folder / "run", folder / "model"
        write_recordings(self.recordings)
        self.clips, _ = build_catalogue(self.recordings, {"rules_of": 2025, "audio": AUDIO})
        self.run.mkdir()
        write_catalogue(self.clips, self.run / "clips.parquet")
        features = []
        for machine, rows in self.clips.groupby("machine"):
            features.append(self.run / f"{machine}.h5")
            extract_features(rows, "eat_logmel", AUDIO, features[-1], 1)
        save_encoder(build_encoder(ENCODER, 0), self.run / "encoder")
        labels = {"kind": "domain", "supplemental": False, "additional_clips": "train", "per_domain": True}
        make_labels(
            {"demo": self.run / "clips.parquet"},
            {},
            labels,
            self.run / "labels.parquet",
            self.run / "clusters.npz",
            0,
        )
        settings = copy.deepcopy(SETTINGS)
        settings["tuning"]["method"] = "none"
        settings["pooling"] |= {"kind": "mean_deviation", "crops": 0, "standardise": "none"}
        finetune(
            settings, {"demo": features}, self.run / "labels.parquet", self.run / "clips.parquet", self.run / "encoder",
            0, self.run, self.run / "checkpoints", "cpu",
        )  # fmt: skip
        backend = {"backend": {"name": "knn"}, "decision": {"method": "gamma", "false_alarm_rate": 0.05}}
        score(self.run / "clips.parquet", self.run / "embeddings.h5", backend, 0, self.run)
        export_detector(
            self.run / "clips.parquet",
            self.run,
            self.run / "encoder",
            self.run / "detector",
            self.model,
            AUDIO,
            {"system": "test"},
        )

    @property
    def scores(self) -> pd.DataFrame:
        """The workflow's scores, indexed by clip id."""
        return pd.read_parquet(self.run / "scores.parquet").set_index("clip_id")
