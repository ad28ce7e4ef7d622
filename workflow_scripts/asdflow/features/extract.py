"""Fill the feature cache: read every recording of a machine once, compute its frames, write them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from asdflow.data.audio import content_hash, read_audio
from asdflow.errors import InputError
from asdflow.features.front_end import SAMPLE_RATE, FrontEnd, Scratch, build_front_end
from asdflow.features.store import FeatureWriter
from asdflow.files import atomic_path, require_space

log = logging.getLogger(__name__)
INDEX_BYTES = 1000
"""More than a feature file needs for each clip besides its frames."""
RESAMPLING_SLACK = 2
"""Samples by which a resampler's output may miss the length computed from the catalogue."""


def extract_features(
    clips: pd.DataFrame, front_end: str, audio: Mapping[str, Any], output: Path, workers: int
) -> None:
    """Write the feature file of one machine.

    Parameters
    ----------
    clips : rows of clips.parquet (clip_id, path, n_samples, sample_rate are read), in the order of the file to be.
    front_end : name of the front end.
    audio : settings of `asdflow.data.audio.read_audio`.
    output : the HDF5 file; it appears when it is complete.
    workers : threads that read and compute at once, each with single-threaded tensor operations. The work is in
        libraries that release Python's lock, so threads keep all cores busy without the start-up time of processes.

    Memory holds a few clips per worker, however many there are. The same clips give the same bytes, whatever the
    number of workers. Raises InputError listing every recording that cannot be used.
    """
    module = build_front_end(front_end)
    lengths = resampled_lengths(clips)
    _refuse_short_clips(clips, lengths, module.config.window_length)
    n_frames = [module.config.n_frames(int(length)) for length in lengths]
    start = time.monotonic()
    with atomic_path(output) as temporary:
        require_space(temporary, sum(n_frames) * module.config.bins * 2 + INDEX_BYTES * (len(clips) + 1))
        writer = FeatureWriter(temporary, clips["clip_id"].tolist(), n_frames, module.config)
        task = _Extraction(clips["path"].tolist(), lengths, audio, module, writer)
        problems = _run(task, len(clips), max(1, workers))
        if problems:
            raise InputError("recordings cannot be used", problems, "replace these files and run again")
        writer.finish()
    seconds = time.monotonic() - start
    log.info("%d clips, %.0f clips/s, %s", len(clips), len(clips) / max(seconds, 1e-9), output)


def resampled_lengths(clips: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Samples of each clip at 16 kHz, as the catalogue lets one compute them: [clips] int64."""
    lengths = np.rint(clips["n_samples"].to_numpy() * (SAMPLE_RATE / clips["sample_rate"].to_numpy()))
    return lengths.astype(np.int64)


def _refuse_short_clips(clips: pd.DataFrame, lengths: npt.NDArray[np.int64], window_length: int) -> None:
    short = [
        f"{path}: {n} samples" for path, n in zip(clips["path"], lengths, strict=True) if n < window_length
    ]
    if short or not len(clips):
        raise InputError(
            f"clips are shorter than one analysis window ({window_length} samples at 16 kHz)"
            if short
            else "no clips",
            short,
            "remove these recordings or give longer ones",
        )


class _Extraction:
    """What one clip needs: read, check, compute, write."""

    def __init__(
        self,
        paths: list[str],
        lengths: npt.NDArray[np.int64],
        audio: Mapping[str, Any],
        front_end: FrontEnd,
        writer: FeatureWriter,
    ) -> None:
        self.paths, self.lengths, self.audio = paths, lengths, audio
        self.front_end, self.writer = front_end, writer

    def __call__(self, row: int, scratch: Scratch) -> str | None:
        """Do the clip in `row`; return what is wrong with its recording, or None."""
        try:
            samples = np.ascontiguousarray(read_audio(self.paths[row], self.audio), dtype=np.float32)
        except InputError as error:
            return "; ".join(error.problems) or error.summary
        if not np.isfinite(samples).all():
            position = int(np.argmin(np.isfinite(samples)))
            return f"{self.paths[row]}: sample {position} is not a finite number"
        expected = int(self.lengths[row])
        if abs(len(samples) - expected) > RESAMPLING_SLACK:
            return f"{self.paths[row]}: {len(samples)} samples at 16 kHz, the catalogue says {expected}"
        heard = content_hash(samples)
        if len(samples) != expected:
            samples = np.pad(samples, (0, max(0, expected - len(samples))))[:expected]
        frames = self.front_end(torch.from_numpy(samples)[None], scratch)[0].half().numpy()
        self.writer.write(row, frames, heard)
        return None


def _run(task: _Extraction, n_clips: int, workers: int) -> list[str]:
    """Do every clip, each worker every `workers`-th of them; return the problems in the order of the clips."""

    def work(rows: Iterable[int]) -> list[tuple[int, str]]:
        torch.set_num_threads(1)
        scratch = Scratch()
        found = ((row, task(row, scratch)) for row in rows)
        return [(row, problem) for row, problem in found if problem]

    threads_before = torch.get_num_threads()
    try:
        if workers == 1:
            shares = [work(range(n_clips))]
        else:
            with ThreadPoolExecutor(workers) as pool:
                shares = list(pool.map(work, [range(first, n_clips, workers) for first in range(workers)]))
    finally:
        torch.set_num_threads(threads_before)
    return [problem for _, problem in sorted(found for share in shares for found in share)]
