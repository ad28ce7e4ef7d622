"""The factory around the machine: pink noise, mains hum, neighbouring machines, clatter."""

from __future__ import annotations

import numpy as np

from asdflow.data.machinery.signals import (
    Signal,
    audible_orders,
    gain,
    impulses,
    order_table,
    random_times,
    resonate,
    rotation,
    shaped_noise,
    slow_curve,
    turn,
    unit_power,
)

MAINS_HERTZ = 50.0
NEIGHBOURS = (
    (24.5, 6),
    (48.2, 11),
)  # (shaft speed in Hz, blades or teeth) of the machines that always run nearby
CLATTER_PER_SECOND = 0.8


def _hum(n_samples: int, rng: np.random.Generator) -> Signal:
    """Transformer and motor hum: even harmonics of the mains are the strong ones."""
    table = order_table({1: 0.4, 2: 1.0, 3: 0.25, 4: 0.5, 6: 0.35, 8: 0.15}, rng)
    return unit_power(turn(table, rotation(MAINS_HERTZ, n_samples, rng, wander=0.0003)))


def _neighbour(hertz: float, blades: int, n_samples: int, rng: np.random.Generator) -> Signal:
    """Another machine at about `hertz` revolutions a second, its load coming and going."""
    hertz *= 1 + 0.03 * rng.standard_normal()
    orders = {blades * k: 1 / k for k in range(1, 13)} | {1: 0.5, 2: 0.3}
    tone = turn(
        order_table(audible_orders(orders, hertz), rng), rotation(hertz, n_samples, rng, wander=0.004)
    )
    return unit_power(tone * np.exp(0.3 * slow_curve(n_samples, rng, 1.5)))


def _clatter(n_samples: int, rng: np.random.Generator) -> Signal:
    """Things put down, dropped and knocked together, at random times and of random loudness."""
    times = random_times(CLATTER_PER_SECOND, n_samples, rng)
    train = impulses(times, rng.lognormal(0.0, 0.7, len(times)), n_samples)
    centres = rng.uniform((500, 1300, 2600), (1300, 2600, 5000))
    dampings = rng.uniform(0.01, 0.04, 3)
    return resonate(train, tuple((float(c), float(d), 1.0) for c, d in zip(centres, dampings, strict=True)))


def factory_background(n_samples: int, rng: np.random.Generator) -> Signal:
    """Background of one clip, [n], of unit power; every clip has its own mixture of the four ingredients."""
    tilt = rng.normal(0.5, 0.06)  # amplitude falls with frequency to this power: 0.5 is pink
    pink = shaped_noise(n_samples, rng, lambda f: f**-tilt)
    mixture = pink * np.exp(0.1 * slow_curve(n_samples, rng, 0.8))
    mixture = mixture + gain(rng.normal(-9, 2)) * _hum(n_samples, rng)
    for hertz, blades in NEIGHBOURS:
        mixture = mixture + gain(rng.normal(-8, 2)) * _neighbour(hertz, blades, n_samples, rng)
    clatter = _clatter(n_samples, rng)
    return unit_power(mixture + gain(rng.normal(-8, 2)) * unit_power(clatter))
