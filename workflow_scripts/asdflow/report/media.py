"""Clips to look at and listen to: which ones, their log-mel pictures, their sound compressed, the nearest normal clip."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import soundfile
import soxr
from PIL import Image

log = logging.getLogger(__name__)
SECONDS, RATE, WIDTH = 10.0, 16000, 360
# dark blue over teal to pale yellow, even steps of lightness, safe for colour-blind readers
_ANCHORS = np.array(
    [[9, 12, 40], [26, 54, 104], [33, 105, 131], [66, 152, 136], [150, 194, 122], [249, 240, 165]],
    dtype=float,
)


@dataclass(frozen=True)
class Medium:
    """One clip on the page: `sound` and `picture` are data URIs, or None with the reason in `absent`."""

    clip_id: str
    detail: str
    seconds: float
    sound: str | None
    picture: str | None
    absent: str | None = None


@dataclass(frozen=True)
class Example:
    """A test clip worth a look, why, and the nearest normal training clip (None if no embeddings are at hand)."""

    title: str
    score: float
    clip: Medium
    nearest: Medium | None
    distance: float | None


def choose_clips(scores: pd.DataFrame, mistakes: int) -> list[tuple[str, str]]:
    """(title, clip_id): highest and lowest score, then the worst mistakes, no clip twice.

    A mistake is a normal clip with a high score or an anomaly with a low one, whatever the threshold.
    """
    ranked = scores.sort_values(["anomaly_score", "clip_id"], kind="stable")
    if not len(ranked):
        return []
    normal, anomaly = (ranked[ranked["condition"] == c]["clip_id"].tolist() for c in ("normal", "anomaly"))
    wanted = [("Highest score", ranked["clip_id"].iloc[-1]), ("Lowest score", ranked["clip_id"].iloc[0])]
    for step in range(mistakes):
        wanted += [("Normal, scored high", c) for c in normal[::-1][step : step + 1]]
        wanted += [("Anomaly, scored low", c) for c in anomaly[step : step + 1]]
    chosen: dict[str, str] = {}
    for title, clip_id in wanted:
        chosen.setdefault(clip_id, title)
    return [(title, clip_id) for clip_id, title in chosen.items()]


def nearest_normal(
    clip_id: str, clips: pd.DataFrame, rows: Mapping[str, int], matrix: np.ndarray, metric: str = "cosine"
) -> tuple[str, float] | None:
    """The normal training clip of the same machine with the smallest distance (cosine or euclidean), and the distance."""
    machine = clips.loc[clips["clip_id"] == clip_id, "machine"].iloc[0]
    usable = clips[(clips["machine"] == machine) & (clips["split"] == "train") & clips["clip_id"].isin(rows)]
    if clip_id not in rows or not len(usable):
        return None
    references = matrix[[rows[c] for c in usable["clip_id"]]]
    query = matrix[rows[clip_id]]
    if metric == "euclidean":
        distances = np.linalg.norm(references - query, axis=1)
    else:
        norms = np.linalg.norm(references, axis=1) * np.linalg.norm(query)
        distances = 1 - references @ query / np.maximum(norms, 1e-12)
    best = int(np.argmin(distances))
    return str(usable["clip_id"].iloc[best]), float(distances[best])


class Pictures:
    """Log-mel pictures from the feature files, each opened once."""

    def __init__(self, features: tuple[Path, ...]) -> None:
        self._where: dict[str, tuple[Path, int, int]] = {}
        for path in features:
            if path.is_file():
                with h5py.File(path, "r") as file:
                    spans = zip(
                        file["clip_id"].asstr()[:], file["offset"][:], file["n_frames"][:], strict=True
                    )
                    self._where.update({str(c): (path, int(o), int(n)) for c, o, n in spans})

    def frames(self, clip_id: str) -> np.ndarray | None:
        """Features of a clip, float32 [frames, bins], or None if no file holds it."""
        if clip_id not in self._where:
            return None
        path, offset, count = self._where[clip_id]
        with h5py.File(path, "r") as file:
            return np.asarray(file["frames"][offset : offset + count], dtype=np.float32)


def picture(frames: np.ndarray, low: float, high: float) -> str:
    """WebP data URI of features [frames, bins], low frequencies at the bottom, `low` darkest and `high` brightest."""
    edges = np.linspace(0, len(frames), min(WIDTH, len(frames)) + 1).astype(int)[:-1]
    shown = np.add.reduceat(frames, edges, axis=0) / np.diff(np.append(edges, len(frames)))[:, None]
    level = np.clip((shown - low) / max(high - low, 1e-6), 0, 1).T[::-1]
    table = np.stack([np.interp(np.linspace(0, 5, 256), range(6), channel) for channel in _ANCHORS.T], axis=1)
    pixels = table[(level * 255).astype(np.uint8)].astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(out, "WEBP", quality=55, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def read_start(path: Path) -> np.ndarray:
    """The first 10 s of a recording, channels averaged, at 16 kHz, float32 [samples]."""
    with soundfile.SoundFile(path) as file:
        samples = file.read(int(SECONDS * file.samplerate), dtype="float32", always_2d=True).mean(axis=1)
        rate = file.samplerate
    return samples if rate == RATE else np.asarray(soxr.resample(samples, rate, RATE), dtype=np.float32)


def sound(samples: np.ndarray, gain: float) -> str:
    """MP3 data URI (every browser plays it) of samples at 16 kHz; about 3 kB a second."""
    out = io.BytesIO()
    soundfile.write(out, np.clip(samples * gain, -1, 1), RATE, format="MP3", subtype="MPEG_LAYER_III",
                    compression_level=0.9, bitrate_mode="VARIABLE")  # fmt: skip
    return "data:audio/mpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


class Gallery:
    """Makes the examples of a data set's machines, each machine within its share of a budget of bytes."""

    def __init__(self, clips: pd.DataFrame, features: tuple[Path, ...], budget: float) -> None:
        self._clips = clips.set_index("clip_id", drop=False)
        self._pictures = Pictures(features)
        self._share = budget / max(clips["machine"].nunique(), 1)
        self._left = self._share

    def examples(
        self,
        scores: pd.DataFrame,
        embeddings: tuple[list[str], np.ndarray] | None,
        mistakes: int,
        metric: str = "cosine",
    ) -> list[Example]:
        """The clips of one machine, of one system and seed; `embeddings`: clip ids and matrix of the same run."""
        self._left = self._share
        clip_ids, matrix = embeddings or ([], np.zeros((0, 1)))
        rows = {c: i for i, c in enumerate(clip_ids)}
        of_score = scores.set_index("clip_id")["anomaly_score"].to_dict()
        found = []
        for title, clip_id in choose_clips(scores, mistakes):
            near = nearest_normal(clip_id, self._clips, rows, matrix, metric)
            media = self._media([clip_id] + ([near[0]] if near else []))
            distance = near[1] if near else None
            found.append(Example(title, of_score[clip_id], media[0], media[1] if near else None, distance))
        return found

    def _media(self, pair: list[str]) -> list[Medium]:
        """A clip and its neighbour with one gain and one colour range, so that eye and ear compare fairly."""
        sounds, reasons = zip(*(self._read(c) for c in pair), strict=True)
        frames = [self._pictures.frames(c) for c in pair]
        peak = max((float(np.abs(s).max()) for s in sounds if s is not None and len(s)), default=0.0)
        gain = 0.7 / peak if peak > 0 else 1.0
        seen = [f for f in frames if f is not None and len(f)]
        low, high = np.percentile(np.concatenate(seen), [2, 99.7]) if seen else (0.0, 1.0)
        return [
            self._medium(
                clip_id, samples, gain, None if f is None or not len(f) else picture(f, low, high), reason
            )
            for clip_id, samples, f, reason in zip(pair, sounds, frames, reasons, strict=True)
        ]

    def _medium(
        self, clip_id: str, samples: np.ndarray | None, gain: float, image: str | None, reason: str | None
    ) -> Medium:
        heard = sound(samples, gain) if samples is not None and len(samples) and self._left > 0 else None
        shown = image if self._left > 0 else None
        self._left -= len(heard or "") + len(shown or "")
        if heard is None and reason is None:
            reason = "the report's size limit is reached" if self._left <= 0 else "the recording is empty"
        return Medium(clip_id, self._detail(clip_id), self._seconds(clip_id), heard, shown, reason)

    def _read(self, clip_id: str) -> tuple[np.ndarray | None, str | None]:
        path = Path(str(self._clips.at[clip_id, "path"]))
        try:
            return read_start(path), None
        except (OSError, soundfile.LibsndfileError) as problem:
            log.warning("No sound of %s in the report: %s", path, problem)
            return None, "the recording is not where clips.parquet says"

    def _row(self, clip_id: str) -> dict[str, Any]:
        return self._clips.loc[[clip_id]].to_dict("records")[0]  # type: ignore[return-value]

    def _seconds(self, clip_id: str) -> float:
        row = self._row(clip_id)
        return float(row["n_samples"]) / float(row["sample_rate"])

    def _detail(self, clip_id: str) -> str:
        row = self._row(clip_id)
        parts = [row["condition"], row["domain"], f"section {row['section']}", row["attribute_label"]]
        return " · ".join(p for p in parts if isinstance(p, str) and p)
