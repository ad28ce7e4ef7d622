"""What fine-tuning learns from: labelled clips in the feature cache, and the batches drawn from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from asdflow.errors import InputError
from asdflow.features.front_end import front_end_config
from asdflow.features.store import FeatureStore
from asdflow.tables import read_parquet

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """Random crops of clips: frames float16 [V, B, T, F] (V views), and of each clip its label and machine [B]."""

    frames: np.ndarray
    label: np.ndarray
    machine: np.ndarray
    attributed: np.ndarray
    noise: np.ndarray | None = None  # float16 [V, B, T, F]


class TrainingMaterial:
    """The labelled clips of one or several data sets, drawn in balanced batches.

    Parameters
    ----------
    sources : data set -> feature files; the first data set is the scored one.
    labels : labels.parquet. clips : clips.parquet of the scored data set.
    balance : what a batch holds equal shares of: none, machine, machine_domain or label.

    held_out : share of the scored data set's training clips that nothing is learnt from (`held_out_clips`).

    Clips of additional data sets that equal a clip of the scored one (same content hash) are left out, so that nothing
    is learnt from a copy of a test clip. `table` has a row per clip learnt from; `classes` and `machines` are names.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Path]],
        labels: Path,
        clips: Path,
        balance: str,
        seed: int,
        held_out: float = 0.0,
    ) -> None:
        self.store = FeatureStore(sources)
        self.scored = next(iter(sources))
        self.spectrum_rows = front_end_config(self.store.front_end).spectrum_rows
        self.seed = seed
        clips_table = read_parquet(clips)
        table = self._labelled(read_parquet(labels))
        table = self._without_copies(table)
        supplemental = clips_table.loc[clips_table["split"] == "supplemental", "clip_id"]
        own = table["dataset"] == self.scored
        table = table.assign(supplemental=own & table["clip_id"].isin(supplemental))
        unlearnt = held_out_clips(table[own & ~table["supplemental"]], held_out)
        table = table[~(own & table["clip_id"].isin(unlearnt))]
        self.classes = sorted(set(table["label_name"]))
        self.machines = sorted(set(table["machine"]))
        number = {name: k for k, name in enumerate(self.classes)}
        machine = {name: k for k, name in enumerate(self.machines)}
        self.table = table.assign(
            target=table["label_name"].map(number), machine_number=table["machine"].map(machine)
        ).reset_index(drop=True)
        self.share = _shares(self.table, balance)
        self.noise_items = self._noise(clips_table)
        self.longest = int(self.table["n_frames"].max())

    def _labelled(self, labels: pd.DataFrame) -> pd.DataFrame:
        index = self.store.index.assign(item=np.arange(len(self.store)))
        index = index.drop(columns="machine")
        table = labels.merge(index, on=["dataset", "clip_id"], how="left")
        missing = table.loc[table["item"].isna(), "clip_id"].tolist()
        if missing:
            raise InputError(
                f"{len(missing)} labelled clips have no features", missing[:20], "run extract_features again"
            )
        return table.astype({"item": "int64", "n_frames": "int64"})

    def _without_copies(self, table: pd.DataFrame) -> pd.DataFrame:
        index = self.store.index
        own = set(index.loc[index["dataset"] == self.scored, "content_hash"])
        copy = (table["dataset"] != self.scored) & table["content_hash"].isin(own)
        if copy.any():
            log.info(
                "%d clips of additional data sets equal clips of %s and are left out", copy.sum(), self.scored
            )
        return table.loc[~copy]

    def _noise(self, clips: pd.DataFrame) -> np.ndarray:
        """Items of the scored data set's noise-only supplemental clips."""
        noise = set(clips.loc[clips["supplement"] == "noise", "clip_id"])
        index = self.store.index
        return np.flatnonzero((index["dataset"] == self.scored) & index["clip_id"].isin(noise))

    @property
    def unattributed(self) -> list[int]:
        """Numbers of the scored data set's machines that have clips without true attributes."""
        scored = self.table["dataset"] == self.scored
        hidden = scored & (self.table["origin"] != "attributes")
        return sorted(set(self.table.loc[hidden, "machine_number"]))

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of what is learnt from: every clip's content and its class."""
        return hashlib.sha256(self.table[["content_hash", "label_name"]].to_csv().encode()).hexdigest()

    def batch(self, step: int, size: int, frames: int, views: int, noise: bool) -> Batch:
        """The batch of a step: it depends on the seed and the step alone, so training resumes anywhere.

        size : clips. frames : rows of every crop, those of the clip's spectrum among them; shorter clips start over at
        their end. views : crops per clip.
        """
        rng = np.random.default_rng([self.seed, step])
        rows = _draw(self.share, size, rng)
        chosen = self.table.iloc[rows]
        crops = [[self._crop(item, frames, rng) for item in chosen["item"]] for _ in range(views)]
        sounds = None
        if noise and len(self.noise_items):
            items = rng.choice(self.noise_items, (views, size))
            sounds = np.stack([np.stack([self._crop(item, frames, rng) for item in row]) for row in items])
        return Batch(
            np.stack([np.stack(view) for view in crops]),
            chosen["target"].to_numpy(np.int64, copy=True),
            chosen["machine_number"].to_numpy(np.int64, copy=True),
            (chosen["origin"] == "attributes").to_numpy(bool, copy=True),
            sounds,
        )

    def _crop(self, item: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop of a clip: float16 [frames, bins]."""
        return crop(self.store.frames(item), frames, float(rng.random()), self.spectrum_rows)


def held_out_clips(clips: pd.DataFrame, share: float) -> set[str]:
    """Which training clips (clip_id, machine, domain) fine-tuning leaves to the decision threshold.

    The share, rounded down, of each machine's and domain's clips, chosen by a digest of their names: the same clips for every
    seed, and for whoever asks with the same clips.
    """
    chosen: set[str] = set()
    for _, group in clips.groupby(["machine", clips["domain"].fillna("")]):
        ranked = sorted(group["clip_id"], key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen.update(ranked[: int(share * len(ranked) + 1e-9)])
    return chosen


def crop(clip: np.ndarray, frames: int, position: float, spectrum_rows: int = 0) -> np.ndarray:
    """Cut `frames` frames of a clip [n, bins], placed by `position` in [0, 1); shorter clips are repeated cyclically.

    Of the `frames` rows the first `spectrum_rows` are the clip's first rows, its spectrum, wherever the rest is cut.
    """
    if spectrum_rows:
        cut = crop(clip[spectrum_rows:], frames - spectrum_rows, position)
        return np.concatenate([clip[:spectrum_rows], cut])
    if len(clip) < frames:
        return np.resize(clip, (frames, clip.shape[1]))
    start = int(position * (len(clip) - frames + 1))
    return clip[start : start + frames]


def _shares(table: pd.DataFrame, balance: str) -> np.ndarray:
    """Probability of every clip to be drawn [n], such that every value of the balanced key is equally likely."""
    keys = {
        "none": pd.Series("", index=table.index),
        "machine": table["dataset"] + "|" + table["machine"],
        "machine_domain": table["dataset"] + "|" + table["machine"] + "|" + table["domain"].fillna("-"),
        "label": table["label_name"],
    }
    key = keys[balance]
    share = 1.0 / (key.map(key.value_counts()) * key.nunique())
    return share.to_numpy(np.float64)


def _draw(share: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` clips by systematic sampling: each expected count is met to within one, in random order."""
    order = rng.permutation(len(share))
    edges = np.cumsum(share[order])
    points = (np.arange(size) + rng.random()) / size * edges[-1]
    return rng.permutation(order[np.searchsorted(edges, points).clip(max=len(share) - 1)])
