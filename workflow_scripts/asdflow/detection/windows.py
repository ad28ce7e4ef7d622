"""Recordings as windows as long as the training clips, streamed in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from asdflow.data.audio import AudioInfo, inspect_audio, read_audio, read_blocks

Samples = npt.NDArray[np.float32]
LEAST_SHARE = 0.5
"""A recording shorter than this share of the shortest training clip is refused (ours)."""


class Window(NamedTuple):
    """Samples float32 [n] at the wanted rate, and the sample number at which they start."""

    start: int
    samples: Samples


class Lengths(NamedTuple):
    """Samples at the wanted rate: of the longest training clip (the window) and of the shortest."""

    window: int
    shortest: int

    @property
    def least(self) -> int:
        """Fewest samples of a recording that is scored."""
        return int(np.ceil(LEAST_SHARE * self.shortest))


def inspect_recording(path: Path, audio: Mapping[str, Any], lengths: Lengths) -> AudioInfo | str:
    """What a recording holds, or in words why it cannot be scored."""
    if not path.is_file():
        return "there is no such file"
    rate = int(audio.get("sample_rate", 16000))
    info = inspect_audio(path, {**audio, "minimum_seconds": 0.0})
    if isinstance(info, str):
        return info
    if info.n_samples == 0:
        return "holds no samples"
    seconds, least = info.n_samples / info.sample_rate, lengths.least / rate
    if seconds < least:
        return (
            f"is {seconds:.2f} s long; less than {least:.2f} s, half a training clip, is too short to judge"
        )
    return info


def expected_samples(info: AudioInfo, rate: int) -> int:
    """Samples at the wanted rate, as the feature cache counts them."""
    return int(np.rint(info.n_samples * (rate / info.sample_rate)))


def windows(
    path: Path, info: AudioInfo, audio: Mapping[str, Any], lengths: Lengths, hop: int
) -> Iterator[Window]:
    """Windows of a recording, one hop apart, the last one ending where the recording ends.

    A recording no longer than a window is one window, with the very samples that the feature cache would hold. Memory holds
    a window and a block of the file, however long the recording.
    """
    total = expected_samples(info, int(audio.get("sample_rate", 16000)))
    if total <= lengths.window:
        samples = read_audio(path, audio).astype(np.float32, copy=False)
        yield Window(0, np.pad(samples, (0, max(0, total - len(samples))))[:total])
        return
    held, start = np.zeros(0, dtype=np.float32), 0
    for block in read_blocks(path, audio, max(hop, lengths.window)):
        held = np.concatenate([held, block])
        while len(held) >= lengths.window + hop:
            yield Window(start, held[: lengths.window].copy())  # a view would keep all of `held`
            held, start = held[hop:], start + hop
    if len(held) < lengths.window:  # the resampler gave a few samples less than was counted
        held = np.pad(held, (0, lengths.window - len(held)))
    yield Window(start, held[: lengths.window])
    if len(held) > lengths.window:
        yield Window(start + len(held) - lengths.window, held[-lengths.window :])
