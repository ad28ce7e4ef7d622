"""Machines that act in strokes: solenoid valve and slide rail."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from asdflow.data.machinery.machine import Attributes, Machine, Rendering, combinations
from asdflow.data.machinery.signals import (
    SAMPLE_RATE,
    Modes,
    Signal,
    band,
    gain,
    impulses,
    order_table,
    resonate,
    rotation,
    shaped_noise,
    slow_curve,
    turn,
    unit_power,
)

# opening times and open durations in s within one period: (period, ((opens at, stays open), ...))
PATTERNS: dict[str, tuple[float, tuple[tuple[float, float], ...]]] = {
    "00": (1.00, ((0.0, 0.40),)),
    "01": (1.60, ((0.0, 0.25), (0.5, 0.25))),
    "02": (1.25, ((0.0, 0.70),)),
    "03": (2.10, ((0.0, 0.20), (0.4, 0.20), (0.8, 0.60))),
}


class Valve(Machine):
    """Solenoid valve: a sharp click as the armature opens, a duller one as it closes, air in between.

    `pat` the switching pattern (PATTERNS), `prs` pressure in bar: louder and brighter air, harder opening.
    """

    name = "valve"
    source = combinations("pat prs", "00 3", "00 5", "01 3", "01 5")
    target = combinations("pat prs", "02 4", "03 4")
    faults = ("leak", "timing", "bounce", "sticking")
    shape_faults = frozenset({"timing"})
    opening_body: ClassVar[Modes] = ((1_700, 0.03, 1.0), (3_800, 0.02, 0.9), (5_600, 0.02, 0.5))
    closing_body: ClassVar[Modes] = ((950, 0.04, 1.0), (2_300, 0.03, 0.6))

    def level_db(self, attributes: Attributes) -> float:
        return 1.5 * (float(attributes["prs"]) - 4)

    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        pressure = float(attributes["prs"])
        opens, closes = self._schedule(attributes["pat"], n_samples, rng)
        air = shaped_noise(n_samples, rng, band(500 * pressure, 900 * pressure, slope=1.5))
        blows = np.maximum(1 + 0.12 * rng.standard_normal((2, len(opens))), 0.3)
        healthy = self._strokes(opens, closes, blows, air, pressure)
        if fault == "timing":  # single strokes open late and close late
            late = (0.03 + 0.12 * grade) * (rng.uniform(size=len(opens)) < 0.6)
            return Rendering(
                healthy, self._strokes(opens + late, closes + 0.5 * late, blows, air, pressure) - healthy
            )
        return Rendering(healthy, self._fault(fault, opens, closes, n_samples, rng))

    def _schedule(self, pattern: str, n_samples: int, rng: np.random.Generator) -> tuple[Signal, Signal]:
        """Opening and closing times in s, from one period before the clip to its end."""
        period, strokes = PATTERNS[pattern]
        starts = np.arange(-rng.uniform(0, period) - period, n_samples / SAMPLE_RATE, period)
        opens = np.sort(np.concatenate([starts + at for at, _ in strokes]))
        durations = np.tile([duration for _, duration in strokes], len(starts))
        opens = opens + 0.003 * rng.standard_normal(len(opens))
        return opens, opens + durations + 0.003 * rng.standard_normal(len(opens))

    def _strokes(self, opens: Signal, closes: Signal, blows: Signal, air: Signal, pressure: float) -> Signal:
        n_samples = len(air)
        clicks = resonate(impulses(opens, blows[0] * (0.7 + 0.1 * pressure), n_samples), self.opening_body)
        clunks = resonate(impulses(closes, 0.8 * blows[1], n_samples), self.closing_body)
        return 120 * (clicks + clunks) + gain(pressure - 6) * air * open_fraction(opens, closes, n_samples)

    def _fault(
        self, fault: str | None, opens: Signal, closes: Signal, n_samples: int, rng: np.random.Generator
    ) -> Signal:
        if fault == "leak":  # air through the closed seat
            hiss = shaped_noise(n_samples, rng, band(2_500, 6_500, slope=2))
            return hiss * (1 - open_fraction(opens, closes, n_samples))
        if fault == "bounce":  # dirt on the seat: the armature strikes again
            delay = rng.uniform(0.025, 0.06)
            return resonate(impulses(closes + delay, np.ones(len(closes)), n_samples), self.closing_body)
        if fault == "sticking":  # the armature scrapes before it lets go
            scrape = shaped_noise(n_samples, rng, band(1_200, 4_000, slope=2))
            return scrape * open_fraction(opens - 0.12, opens, n_samples)
        return np.zeros(n_samples)


def open_fraction(opens: Signal, closes: Signal, n_samples: int, flank: float = 0.01) -> Signal:
    """How far the valve is open, 0 to 1, at every sample: it takes `flank` s to move."""
    times = np.stack([opens, opens + flank, closes, closes + flank], axis=1)
    times = np.maximum.accumulate(times.ravel())
    states = np.tile([0.0, 1.0, 1.0, 0.0], len(opens))
    return np.interp(np.arange(n_samples) / SAMPLE_RATE, times, states, left=0.0, right=0.0)


class Slider(Machine):
    """Slide rail on a belt drive: friction noise that follows the speed, a belt tone that glides with it, knocks.

    `vel` top speed in mm/s, `ac` acceleration in units of gravity; the carriage runs 0.6 m to and fro.
    """

    name = "slider"
    stroke: ClassVar[float] = 0.6
    dwell: ClassVar[float] = 0.08
    source = combinations("vel ac", "300 0.10", "300 0.30", "500 0.10", "500 0.30", "700 0.15", "700 0.30")
    target = combinations("vel ac", "400 0.05", "900 0.30")
    faults = ("foreign_object", "dry_rail", "loose_belt", "irregular_motion")
    shape_faults = frozenset({"irregular_motion"})
    frame: ClassVar[Modes] = ((350, 0.06, 1.0), (1_100, 0.04, 0.7), (2_400, 0.03, 0.4))
    rail: ClassVar[Modes] = ((2_100, 0.02, 1.0), (3_900, 0.02, 0.8))

    def level_db(self, attributes: Attributes) -> float:
        return 12 * np.log10(float(attributes["vel"]) / 500)

    def microphone(self, attributes: Attributes) -> str:
        return "side"

    def profile(self, attributes: Attributes) -> tuple[Signal, Signal]:
        """Corner points (times in s, speeds in m/s) of one stroke, with the pause that follows it."""
        speed = float(attributes["vel"]) / 1000
        acceleration = 9.81 * float(attributes["ac"])
        ramp = speed / acceleration
        cruise = max(self.stroke / speed - ramp, 0.0)
        times = np.cumsum([0.0, ramp, cruise, ramp, self.dwell])
        return times, np.array([0.0, speed, speed, 0.0, 0.0])

    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        corners, speeds = self.profile(attributes)
        n_strokes = int(n_samples / SAMPLE_RATE / corners[-1]) + 8
        durations = corners[-1] * (1 + 0.004 * rng.standard_normal(n_strokes))
        start = -rng.uniform(0, corners[-1]) - corners[-1]
        friction = shaped_noise(n_samples, rng, band(300, 1_200, slope=1.2))
        sheen = shaped_noise(n_samples, rng, band(1_500, 4_500, slope=1.5))
        knocks = np.maximum(1 + 0.15 * rng.standard_normal(n_strokes), 0.3)
        belt = order_table({1: 1.0, 2: 0.5, 3: 0.35, 4: 0.15}, rng)

        def run(durations: Signal) -> tuple[Signal, Signal, Signal]:
            turns = start + np.cumsum(durations) - durations
            times = (turns[:, None] + corners[None, :] * (durations / corners[-1])[:, None]).ravel()
            speed = np.interp(np.arange(n_samples) / SAMPLE_RATE, times, np.tile(speeds, n_strokes))
            glide = turn(belt, np.cumsum(speed) * 420 / SAMPLE_RATE)  # 420 belt teeth a metre
            ratio = speed / 0.5
            sliding = ratio * friction + 0.8 * ratio**2 * sheen + 0.6 * np.sqrt(ratio) * glide
            knock = resonate(impulses(turns, knocks, n_samples), self.frame)
            return sliding + 200 * knock, speed, turns

        healthy, speed, turns = run(durations)
        if fault == "irregular_motion":  # strokes too short and too long
            irregular = durations * np.exp((0.08 + 0.25 * grade) * rng.uniform(-1, 1, n_strokes))
            return Rendering(healthy, run(irregular)[0] - healthy)
        return Rendering(healthy, self._fault(fault, speed, turns, rng))

    def _fault(self, fault: str | None, speed: Signal, turns: Signal, rng: np.random.Generator) -> Signal:
        n_samples = len(speed)
        travel = np.cumsum(speed) / SAMPLE_RATE
        if fault == "foreign_object":  # something on the rail, passed in every stroke
            spot = rng.uniform(0.2, 0.8) * self.stroke
            marks = np.arange(spot - self.stroke, travel[-1], self.stroke)
            times = np.interp(marks, travel, np.arange(n_samples) / SAMPLE_RATE, left=-1.0)
            blows = np.concatenate([times, times + 0.011])
            return resonate(impulses(blows, rng.uniform(0.6, 1.0, len(blows)), n_samples), self.rail)
        if fault == "dry_rail":  # squeal whose pitch gives way with load
            pitch = rotation(rng.uniform(2_000, 3_200), n_samples, rng, wander=0.02)
            squeal = turn(order_table({1: 1.0, 2: 0.4}, rng), pitch)
            return (
                squeal * (speed / max(speed.max(), 1e-9)) ** 2 * np.exp(0.5 * slow_curve(n_samples, rng, 0.1))
            )
        if fault == "loose_belt":  # the carriage is jerked a second time
            late = turns + rng.uniform(0.06, 0.11)
            slap = resonate(impulses(late, np.ones(len(late)), n_samples), self.frame)
            return unit_power(slap)
        return np.zeros(n_samples)
