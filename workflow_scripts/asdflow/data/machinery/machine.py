"""What every synthetic machine has: attributes of both domains, kinds of faults, a sound, microphones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import scipy.fft

from asdflow.data.machinery.signals import SAMPLE_RATE, Modes, Signal, frequencies, modal_response

Attributes = Mapping[str, str]


def combinations(keys: str, *rows: str) -> tuple[dict[str, str], ...]:
    """Attribute combinations written as a small table: keys and each row's values separated by blanks."""
    return tuple(dict(zip(keys.split(), row.split(), strict=True)) for row in rows)


@dataclass(frozen=True)
class Rendering:
    """A machine's dry sound: `healthy` [n], and what the fault adds to it, [n] (zeros without a fault)."""

    healthy: Signal
    fault: Signal


class Machine(ABC):
    """A machine type. Subclasses state their attribute combinations and faults, and render their sound.

    `source` and `target` list the attribute combinations of the two domains; every target combination has a value
    that the source domain never has. `shape_faults` change when things happen rather than add sound: their grade is
    a size in time and their energy is not scaled. `reserve_db` lowers single kinds of fault against the stated
    range: a modulation of more than 100 % does not exist.
    """

    name: ClassVar[str]
    source: ClassVar[tuple[dict[str, str], ...]]
    target: ClassVar[tuple[dict[str, str], ...]]
    faults: ClassVar[tuple[str, ...]]
    shape_faults: ClassVar[frozenset[str]] = frozenset()
    reserve_db: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        """The dry sound under `attributes`; `fault` is one of `faults`, `grade` in [0, 1] its size."""

    def level_db(self, attributes: Attributes) -> float:
        """How much louder than nominal the machine is under these attributes, in dB."""
        return 0.0

    def microphone(self, attributes: Attributes) -> str:
        """Which of MICROPHONES records the machine under these attributes."""
        return "near"


@dataclass(frozen=True)
class Microphone:
    """A place and a capsule: body resonances, low-pass corner in Hz, echo level and reverberation time in s."""

    modes: Modes
    corner: float
    echo: float
    reverberation: float


MICROPHONES = {
    "near": Microphone(((900, 0.5, 0.3),), 7_500, 0.02, 0.10),
    "side": Microphone(((420, 0.3, 0.9), (2_600, 0.25, 0.7)), 5_000, 0.05, 0.15),
    "far": Microphone(((650, 0.4, 0.5), (1_700, 0.2, 0.9)), 3_800, 0.12, 0.25),
    "housing": Microphone(((1_150, 0.12, 1.6), (3_300, 0.1, 1.4)), 6_500, 0.03, 0.08),
}


@lru_cache(maxsize=16)
def microphone_response(name: str, n_fft: int) -> npt.NDArray[np.complexfloating]:
    """Frequency response of capsule and room between machine and microphone: complex64 [n_fft // 2 + 1].

    The room is an exponentially decaying noise (its first 0.25 s), the same one whenever a microphone is used.
    """
    microphone = MICROPHONES[name]
    n_echo = int(0.25 * SAMPLE_RATE)
    rng = np.random.default_rng(list(name.encode()))
    decay = np.exp(-6.9 * np.arange(n_echo) / SAMPLE_RATE / microphone.reverberation)
    room = microphone.echo * decay * rng.standard_normal(n_echo)
    room[0] = 1.0
    low_pass = 1 / np.sqrt(1 + (frequencies(n_fft) / microphone.corner) ** 6)
    capsule = (1 + modal_response(microphone.modes, n_fft)) * low_pass
    return (scipy.fft.rfft(room.astype(np.float32), n_fft) * capsule).astype(np.complex64)
