"""Recordings that occur more than once, across splits, data sets and years, found by their content."""

from __future__ import annotations

import pandas as pd


def find_duplicates(index: pd.DataFrame) -> pd.DataFrame:
    """Find clips with the same decoded samples.

    Parameters
    ----------
    index : columns dataset, clip_id, content_hash; one row a clip.

    Returns
    -------
    Columns dataset, clip_id, content_hash, group, first: every clip whose content occurs at least twice, sorted by
    group (0, 1, ... in the order in which contents first appear) and then as in `index`; `first` marks the
    one of each group to keep, when the others are to be left out.
    """
    columns = ["dataset", "clip_id", "content_hash"]
    repeated = index.loc[index["content_hash"].duplicated(keep=False), columns]
    group = pd.Series(pd.factorize(repeated["content_hash"])[0], index=repeated.index, dtype="int64")
    found = repeated.assign(group=group, first=~repeated["content_hash"].duplicated())
    return found.sort_values("group", kind="stable").reset_index(drop=True)
