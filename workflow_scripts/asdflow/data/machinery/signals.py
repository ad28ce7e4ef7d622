"""Building blocks of synthetic machine sound: wandering rotation, wave tables, impulses, resonances, shaped noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft

SAMPLE_RATE = 16_000
TABLE_SIZE = 16_384  # entries of one revolution, a power of two: linear interpolation stays 60 dB clean up to order 200
TAIL = 4_800  # samples of silence behind a clip, so that a filter's ringing does not wrap around to its start

Signal = npt.NDArray[np.floating]
Modes = tuple[tuple[float, float, float], ...]  # (frequency in Hz, damping ratio, gain) per resonance


@lru_cache(maxsize=4)
def frequencies(n_fft: int) -> Signal:
    """Frequencies in Hz of the real Fourier transform of `n_fft` samples: float32 [n_fft // 2 + 1]."""
    return np.asarray(scipy.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE), dtype=np.float32)


def padded_length(n_samples: int) -> int:
    """A fast transform length that leaves room for a filter's tail behind `n_samples`."""
    return int(scipy.fft.next_fast_len(n_samples + TAIL, real=True))


def apply_response(signal: Signal, response: npt.NDArray[np.complexfloating]) -> Signal:
    """Filter `signal` [n] with a frequency response on the grid of `padded_length(n)`; same length out."""
    n_fft = padded_length(len(signal))
    spectrum = scipy.fft.rfft(np.asarray(signal, dtype=np.float32), n_fft)
    return np.asarray(scipy.fft.irfft(spectrum * response, n_fft)[: len(signal)])


@lru_cache(maxsize=64)
def modal_response(modes: Modes, n_fft: int) -> npt.NDArray[np.complexfloating]:
    """Response of parallel resonances, each of gain `gain` at its peak: complex64 [n_fft // 2 + 1]."""
    f = frequencies(n_fft)
    total = np.zeros(len(f), dtype=np.complex64)
    for centre, damping, gain in modes:
        total += gain * 2j * damping * centre * f / (centre**2 - f**2 + 2j * damping * centre * f)
    return total


def resonate(signal: Signal, modes: Modes) -> Signal:
    """Let a structure with the given resonances ring to `signal` [n]."""
    return apply_response(signal, modal_response(modes, padded_length(len(signal))))


def shaped_noise(n_samples: int, rng: np.random.Generator, shape: Callable[[Signal], Signal]) -> Signal:
    """Gaussian noise [n] whose amplitude spectrum is `shape(frequencies in Hz)`, of unit power."""
    n_fft = padded_length(n_samples)
    amplitude = shape(np.maximum(frequencies(n_fft), np.float32(20.0)))
    parts = rng.standard_normal((2, len(amplitude)), dtype=np.float32)
    noise = scipy.fft.irfft((parts[0] + 1j * parts[1]) * amplitude, n_fft)[:n_samples]
    return unit_power(noise)


def band(low: float, high: float, slope: float = 4.0) -> Callable[[Signal], Signal]:
    """Amplitude shape that is flat from `low` to `high` Hz and falls with `slope` (power of frequency) outside."""

    def shape(f: Signal) -> Signal:
        return 1 / np.sqrt((1 + (low / f) ** (2 * slope)) * (1 + (f / high) ** (2 * slope)))

    return shape


def slow_curve(n_samples: int, rng: np.random.Generator, seconds: float) -> Signal:
    """A random curve [n] of about unit variance whose knots lie `seconds` apart: load and speed wander like this."""
    step = seconds * SAMPLE_RATE
    knots = rng.standard_normal(int(n_samples / step) + 3)
    return np.interp(np.arange(n_samples), (np.arange(len(knots)) - rng.uniform()) * step, knots)


def rotation(hertz: float, n_samples: int, rng: np.random.Generator, wander: float = 0.002) -> Signal:
    """Angle of a shaft in revolutions, float64 [n]: random start, speed wandering by the relative `wander`."""
    speed = hertz * (1 + wander * slow_curve(n_samples, rng, 0.7))
    return rng.uniform() + np.cumsum(speed) / SAMPLE_RATE


def order_table(orders: Mapping[int, float], rng: np.random.Generator) -> Signal:
    """One revolution [TABLE_SIZE] of a sum of shaft orders with the given amplitudes and random phases."""
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
    for order, amplitude in orders.items():
        spectrum[order] = amplitude * np.exp(2j * np.pi * rng.uniform()) * TABLE_SIZE / 2
    return np.asarray(scipy.fft.irfft(spectrum, TABLE_SIZE))


def turn(table: Signal, revolutions: Signal) -> Signal:
    """Read a one-revolution wave `table` at the angles `revolutions` [n] (not negative), interpolating linearly."""
    position = revolutions * len(table)
    index = position.astype(np.int64)
    fraction = position - index
    index &= len(table) - 1  # the length is a power of two: the remainder without a division
    return table[index] + fraction * (np.roll(table, -1) - table)[index]


def audible_orders(orders: Mapping[int, float], hertz: float) -> dict[int, float]:
    """Keep the orders that stay below 7.5 kHz at `hertz` revolutions a second, so that nothing aliases."""
    return {order: amplitude for order, amplitude in orders.items() if order * hertz < 7_500}


def impulses(times: Signal, amplitudes: Signal, n_samples: int) -> Signal:
    """Impulses at `times` in s (any real number; those outside the clip are dropped): float64 [n].

    Each one is shared between its two neighbouring samples, so that periods need not be whole samples.
    """
    position = np.asarray(times) * SAMPLE_RATE
    inside = (position >= 0) & (position < n_samples - 1)
    position, weight = position[inside], np.broadcast_to(amplitudes, np.shape(times))[inside]
    index = position.astype(np.int64)
    fraction = position - index
    train = np.zeros(n_samples)
    np.add.at(train, index, weight * (1 - fraction))
    np.add.at(train, index + 1, weight * fraction)
    return train


def crossings(revolutions: Signal, per_revolution: float, rng: np.random.Generator, jitter: float) -> Signal:
    """Times in s at which a shaft at `revolutions` [n] passes each of `per_revolution` marks.

    `jitter` is the standard deviation of a single passage as a fraction of the period (rolling elements slip).
    """
    angle = revolutions * per_revolution
    marks = np.arange(np.ceil(angle[0]), angle[-1])
    marks = marks + jitter * rng.standard_normal(len(marks))
    return np.interp(marks, angle, np.arange(len(angle)) / SAMPLE_RATE)


def random_times(rate: float, n_samples: int, rng: np.random.Generator) -> Signal:
    """Times in s of a Poisson process of `rate` events a second over the clip."""
    seconds = n_samples / SAMPLE_RATE
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def root_mean_square(signal: Signal) -> float:
    return float(np.sqrt(np.mean(np.square(signal, dtype=np.float64))))


def unit_power(signal: Signal) -> Signal:
    """`signal` scaled to a root mean square of one; silence stays silence."""
    level = root_mean_square(signal)
    return signal / level if level > 0 else signal


def gain(decibel: float) -> float:
    """Amplitude factor of a level in dB."""
    return float(10 ** (decibel / 20))
