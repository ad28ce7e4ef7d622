"""Recordings that occur more than once, across splits, data sets and years, found by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile

from asdflow.data.audio import content_hash, read_audio
from asdflow.errors import InputError

FIRST_SAMPLES = 4000
"""Samples that are compared first: recordings that differ there need not be read to their end."""


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


def hash_candidates(clips: pd.DataFrame, audio: Mapping[str, Mapping[str, Any]], workers: int) -> pd.DataFrame:
    """The clips that may have a duplicate, with the hash of their decoded samples, as `find_duplicates` takes them.

    Parameters
    ----------
    clips : dataset, clip_id, path; one row a clip.
    audio : data set -> its settings of `asdflow.data.audio`.
    workers : threads that read recordings.

    Only clips whose first FIRST_SAMPLES stored values occur twice are read to their end, so most of a data set costs one short read
    a clip. Memory holds a few recordings. Raises InputError listing every recording that cannot be read.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        starts = _all_or_problems(pool.map(_start_of, clips["path"]), clips["path"])
        chosen = clips[pd.Series(starts, index=clips.index).duplicated(keep=False)]
        settings = [audio[dataset] for dataset in chosen["dataset"]]
        hashes = _all_or_problems(pool.map(_hash_of, chosen["path"], settings), chosen["path"])
    return chosen[["dataset", "clip_id"]].assign(content_hash=pd.Series(hashes, index=chosen.index, dtype="str"))


def _start_of(path: str) -> str | InputError:
    """A digest of the first stored samples; where it differs, so do the recordings."""
    try:
        with soundfile.SoundFile(Path(path)) as sound:
            start = sound.read(FIRST_SAMPLES, dtype="float32", always_2d=True)
            shape = f"{sound.samplerate} {sound.frames} {sound.channels} ".encode()
    except (soundfile.LibsndfileError, OSError) as error:
        return InputError("A recording cannot be read.", [f"{path}: {error}"])
    return hashlib.sha256(shape + start.tobytes()).hexdigest()


def _hash_of(path: str, settings: Mapping[str, Any]) -> str | InputError:
    try:
        return content_hash(read_audio(path, settings))
    except InputError as error:
        return error


def _all_or_problems(found: Iterator[str | InputError], paths: pd.Series) -> list[str]:
    """The digests; or one InputError with the problems of all recordings."""
    digests, problems = [], []
    for answer, path in zip(found, paths, strict=True):
        if isinstance(answer, InputError):
            problems += answer.problems or [f"{path}: {answer.summary}"]
        else:
            digests.append(answer)
    if problems:
        raise InputError("recordings cannot be read", problems, "replace these files and run again")
    return digests
