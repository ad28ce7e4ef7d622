"""Do recordings as a whole differ from the training clips? A wrong microphone looks like a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from asdflow.errors import InputError

SAMPLE_RATE = 16_000
FFT = 1024
BLOCK = 800
"""Samples of a silence block: 50 ms."""
SILENT_DB, FULL_SCALE = -80.0, 0.999
DIGITAL_SILENCE_DB = -120.0
EDGES = np.geomspace(50.0, 8000.0, 25)
"""Edges in Hz of the 24 bands whose levels are compared."""
CHANNEL_SECONDS = 10

LEVEL_STEP, BAND_STEP, SHAPE_STEP = 6.0, 12.0, 8.0
"""Differences in dB below which nothing is said: of the level, of the highest bands, and of the whole spectrum (ours)."""
SPREADS = 4.0
"""How many spreads of the training clips a difference must exceed as well (ours)."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sound:
    """What a recording is like, apart from any anomaly.

    Attributes
    ----------
    level : root mean square in dB of full scale. bands : level of 24 bands in dB below the level.
    silence : share of 50-ms blocks below -80 dB. clipping : share of samples at full scale.
    """

    level: float
    bands: tuple[float, ...]
    silence: float
    clipping: float


def describe(samples: npt.NDArray[np.float32]) -> Sound:
    """Describe float32 [n] samples in [-1, 1] at 16 kHz."""
    values = np.asarray(samples, dtype=np.float64)
    level = decibels(np.mean(np.square(values)))
    blocks = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK)
    silence = float(np.mean(decibels(np.mean(np.square(blocks), axis=1)) < SILENT_DB)) if len(blocks) else 0.0
    clipping = float(np.mean(np.abs(values) >= FULL_SCALE))
    return Sound(float(level), tuple((band_levels(values) - level).tolist()), silence, clipping)


def decibels(power: Any) -> Any:
    """10 log10 of a power, with a floor of -120 dB."""
    return 10 * np.log10(np.maximum(power, 10 ** (DIGITAL_SILENCE_DB / 10)))


def band_levels(values: Floats) -> Floats:
    """Levels [24] in dB of full scale in bands equally wide in the logarithm of frequency."""
    frames = np.resize(values, max(len(values), FFT))[: max(len(values), FFT) // FFT * FFT].reshape(-1, FFT)
    window = np.hanning(FFT)
    spectrum = (
        np.mean(np.abs(np.fft.rfft(frames * window, axis=1)) ** 2, axis=0) * 2 / (FFT * np.sum(window**2))
    )
    band = np.digitize(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT, EDGES) - 1
    inside = (band >= 0) & (band < len(EDGES) - 1)
    return np.asarray(decibels(np.bincount(band[inside], spectrum[inside], len(EDGES) - 1)), dtype=np.float64)


@dataclass(frozen=True)
class Reference:
    """What a machine's training clips are like: mean and spread of each quantity over clips, and their channels."""

    level: tuple[float, float]
    bands: tuple[tuple[float, float], ...]
    silence: float
    clipping: float
    channels: tuple[int, ...]

    @classmethod
    def of(cls, sounds: Sequence[Sound], channels: Sequence[int]) -> Self:
        """Summarise training clips; silence and clipping keep their largest values."""
        level = np.array([sound.level for sound in sounds])
        bands = np.array([sound.bands for sound in sounds])
        return cls(
            (float(level.mean()), float(level.std())),
            tuple(zip(bands.mean(0).tolist(), bands.std(0).tolist(), strict=True)),
            max(sound.silence for sound in sounds),
            max(sound.clipping for sound in sounds),
            tuple(sorted(set(channels))),
        )

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reference that `to_dict` gave."""
        level, bands = tuple(values["level"]), tuple(tuple(band) for band in values["bands"])
        return cls(level, bands, values["silence"], values["clipping"], tuple(values["channels"]))


def warnings(sounds: Sequence[Sound], reference: Reference) -> list[str]:
    """What recordings taken together (by their medians) have that the training clips have not, in words.

    A difference must exceed a fixed step and four spreads of the training clips, so that varied training clips warn late.
    """
    if not sounds:
        return []
    found = _level(sounds, reference) + _spectrum(sounds, reference)
    silence = float(np.median([sound.silence for sound in sounds]))
    if silence > reference.silence + 0.2:
        found.append(
            f"silence: {silence:.0%} of the time is below {SILENT_DB:.0f} dB, in training at most {reference.silence:.0%}"
        )
    clipped = float(np.mean([sound.clipping > max(2 * reference.clipping, 1e-4) for sound in sounds]))
    if clipped >= 0.5:
        found.append(
            f"clipping: {clipped:.0%} of the recordings reach full scale, the training clips do not; turn the gain down"
        )
    return found


def _level(sounds: Sequence[Sound], reference: Reference) -> list[str]:
    mean, spread = reference.level
    difference = float(np.median([sound.level for sound in sounds])) - mean
    if abs(difference) <= max(LEVEL_STEP, SPREADS * spread):
        return []
    return [
        f"level: {abs(difference):.0f} dB {'louder' if difference > 0 else 'quieter'} than the training clips"
    ]


def _spectrum(sounds: Sequence[Sound], reference: Reference) -> list[str]:
    heard = [sound for sound in sounds if sound.level > SILENT_DB]
    if not heard:
        return []
    mean, spread = np.array(reference.bands).T
    difference = np.median([sound.bands for sound in heard], axis=0) - mean
    low = difference < -np.maximum(BAND_STEP, SPREADS * spread)
    if low[-1]:
        cut = EDGES[len(low) - int(np.argmin(low[::-1]))] if not low.all() else EDGES[0]
        return [
            f"bandwidth: hardly any sound above {cut:.0f} Hz, unlike in the training clips (another sample rate or codec?)"
        ]
    if shape_distance(np.median([s.bands for s in heard], axis=0), reference) > 1:
        worst = int(np.argmax(np.abs(difference)))
        return [
            f"spectrum: differs from the training clips, most at {EDGES[worst]:.0f}-{EDGES[worst + 1]:.0f} Hz "
            f"({difference[worst]:+.0f} dB); another microphone or place?"
        ]
    return []


def shape_distance(bands: Any, reference: Reference) -> float:
    """Root mean square difference of band levels to the training clips', 1 being the least that is told."""
    mean, spread = np.array(reference.bands).T
    limit = np.maximum(SHAPE_STEP, SPREADS * spread)
    return float(np.sqrt(np.mean(np.square((np.asarray(bands) - mean) / limit))))


def better_channel(path: Path, reference: Reference, used: Sound) -> str | None:
    """Name a channel of a recording that resembles the training clips where what was used does not.

    Reads the first 10 seconds of every channel. Returns None for one channel or where there is nothing to say.
    Raises InputError for a file that cannot be read.
    """
    own = shape_distance(used.bands, reference)
    if own <= 1:
        return None
    try:
        with soundfile.SoundFile(path) as file:
            if file.channels < 2:
                return None
            block = file.read(CHANNEL_SECONDS * file.samplerate, dtype="float32", always_2d=True)
            rate = file.samplerate
    except (OSError, soundfile.LibsndfileError) as error:
        raise InputError(f"{path} cannot be read", [str(error)]) from error
    at_16k = block if rate == SAMPLE_RATE else soxr.resample(block, rate, SAMPLE_RATE)
    distances = [shape_distance(describe(channel).bands, reference) for channel in at_16k.T]
    best = int(np.argmin(distances))
    if distances[best] > min(1.0, own / 2):
        return None
    return f"channel {best} (counted from 0) resembles the training clips, what was scored does not"
