"""Which clips make up each training batch: chosen from (seed, step) alone, so that nothing has to be remembered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from asdflow.errors import InputError
from asdflow.features.store import padded_length

Items = npt.NDArray[np.int64]


def training_items(index: pd.DataFrame, clips: Mapping[str, pd.DataFrame], supplemental: bool) -> Items:
    """Rows of a feature store's `index` that may be trained on, each recording once.

    Parameters
    ----------
    index : dataset, machine, clip_id, content_hash (`FeatureStore.index`).
    clips : data set -> its clips.parquet.
    supplemental : whether clean supplemental clips count as training clips.

    Test clips, anomalies and noise-only clips never pass, nor does a recording with the same samples as a test clip of any of
    the data sets; of training recordings with equal samples only the first passes.
    Raises InputError when nothing is left.
    """
    parts = [table.assign(dataset=name) for name, table in clips.items()]
    known = pd.concat(parts, ignore_index=True)[["dataset", "clip_id", "split", "condition", "supplement"]]
    own = index[["dataset", "clip_id", "content_hash"]].assign(item=np.arange(len(index)))
    table = own.merge(known, on=["dataset", "clip_id"], how="inner")
    usable = table["split"] == "train"
    if supplemental:
        usable |= (table["split"] == "supplemental") & (table["supplement"] == "clean")
    tested = set(table.loc[table["split"] == "test", "content_hash"])
    usable &= ~table["content_hash"].isin(tested)
    table = table[usable & (table["condition"] != "anomaly")].sort_values("item")
    table = table.drop_duplicates("content_hash")
    if table.empty:
        raise InputError(
            "there are no training clips to learn from",
            [f"{name}: {len(part)} clips, none of split train with features" for name, part in clips.items()],
            "name data sets with training clips in the recipe's datasets",
        )
    return table["item"].to_numpy(np.int64)


class BatchPlan:
    """The clips of every update, drawn without replacement within a machine (or within all clips).

    Parameters
    ----------
    index : `FeatureStore.index`; `items` are rows of it.
    items : the clips to draw from.
    batch_size, steps, seed : clips per update over all devices, number of updates, seed.
    balance : "machines" gives every machine of every data set an equal share, "clips" every clip.
    crop_frames : longer clips are cut to so many frames at a random place; None keeps them whole.
    pad_multiple : clips of one batch have the same length once padded to this multiple.

    Batches hold clips of one padded length; a length comes as often as its machines (or clips) make it. The plan is a
    function of these parameters: batch `step` is the same in every process and after every resumption.
    """

    def __init__(
        self,
        index: pd.DataFrame,
        items: Items,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        balance: str,
        crop_frames: int | None,
        pad_multiple: int,
    ) -> None:
        self.batch_size, self.seed, self.crop_frames = batch_size, seed, crop_frames
        self.n_frames = index["n_frames"].to_numpy(np.int64)
        longest = (
            self.n_frames[items] if crop_frames is None else np.minimum(self.n_frames[items], crop_frames)
        )
        lengths = np.array([padded_length(int(length), pad_multiple) for length in longest])
        group_names = index["dataset"].iloc[items] + "/" + index["machine"].iloc[items]
        groups = group_names.to_numpy() if balance == "machines" else np.full(len(items), "clips")
        self.lengths = np.unique(lengths)
        self.streams = [
            ItemStream(items[lengths == n], groups[lengths == n], [seed, i])
            for i, n in enumerate(self.lengths)
        ]
        share = 1.0 / pd.Series(groups).map(pd.Series(groups).value_counts()).to_numpy()  # of a clip
        weights = share if balance == "machines" else np.ones(len(items))
        chance = np.array([weights[lengths == n].sum() for n in self.lengths])
        rng = np.random.default_rng([seed, len(self.lengths), 1])
        self.stream_of_step = rng.choice(len(self.lengths), size=steps, p=chance / chance.sum())
        self.turn = _count_before(self.stream_of_step, len(self.lengths))

    def items(self, step: int) -> Items:
        """Store rows of update `step`, [batch_size]."""
        stream = self.streams[self.stream_of_step[step]]
        first = int(self.turn[step]) * self.batch_size
        return np.array([stream.item(first + i) for i in range(self.batch_size)])

    def spans(self, step: int) -> list[tuple[int, int, int]]:
        """(store row, first frame, one past the last frame) of every clip of update `step`."""
        rng = np.random.default_rng([self.seed, step, 2])
        spans = []
        for item in self.items(step):
            total = int(self.n_frames[item])
            length = total if self.crop_frames is None else min(total, self.crop_frames)
            first = int(rng.integers(total - length + 1))
            spans.append((int(item), first, first + length))
        return spans


class ItemStream:
    """An endless order of items: round by round every group gives one, in shuffled order, from its own shuffled round."""

    def __init__(self, items: Items, groups: npt.NDArray[np.object_], seed: list[int]) -> None:
        self.seed = seed
        names = sorted(set(groups))
        self.members = [items[groups == name] for name in names]
        self._orders: dict[tuple[int, ...], tuple[int, Items]] = {}

    def item(self, position: int) -> int:
        """The item at `position` of the stream (any position, in any order)."""
        turn, place = divmod(position, len(self.members))
        group = int(self._order((0,), turn, len(self.members))[place])
        members = self.members[group]
        epoch, place = divmod(turn, len(members))
        return int(members[self._order((1, group), epoch, len(members))[place]])

    def _order(self, of: tuple[int, ...], turn: int, n: int) -> Items:
        """A shuffled 0 ... n - 1 for turn number `turn` of something; only its latest order is kept."""
        kept = self._orders.get(of)
        if kept is None or kept[0] != turn:
            kept = turn, np.random.default_rng([*self.seed, *of, turn]).permutation(n)
            self._orders[of] = kept
        return kept[1]


def _count_before(choices: npt.NDArray[np.int64], n: int) -> Items:
    """How often the value of each entry has come before it."""
    counts = np.zeros(len(choices), np.int64)
    for value in range(n):
        chosen = choices == value
        counts[chosen] = np.arange(chosen.sum())
    return counts
