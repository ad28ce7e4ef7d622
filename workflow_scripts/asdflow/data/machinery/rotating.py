"""Machines that turn: fan, gearbox, rolling bearing, pump."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from asdflow.data.machinery.machine import Attributes, Machine, Rendering, combinations
from asdflow.data.machinery.signals import (
    SAMPLE_RATE,
    Modes,
    Signal,
    audible_orders,
    band,
    crossings,
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


def number(text: str) -> float:
    """The number in an attribute value: `28V` is 28."""
    return float(text.rstrip("V"))


def ticks(
    times: Signal, n_samples: int, rng: np.random.Generator, modes: Modes, spread: float = 0.25
) -> Signal:
    """Blows at `times` whose strengths scatter by `spread`, heard through the resonances `modes`."""
    strengths = np.maximum(1 + spread * rng.standard_normal(len(times)), 0.1)
    return resonate(impulses(times, strengths, n_samples), modes)


class Fan(Machine):
    """Axial fan of seven blades: tones at the blade-pass frequency, flow noise that the passing blades modulate.

    `spd` supply voltage (speed is proportional to it), `op` opening of the damper in % (back pressure), `mic`.
    Aerodynamic sound grows with the fifth power of speed in pressure squared (the usual fan law).
    """

    name = "fan"
    blades: ClassVar[int] = 7
    source = combinations(
        "spd op mic", "24V 40 1", "28V 40 1", "32V 40 2", "24V 80 2", "28V 80 1", "32V 80 2"
    )
    target = combinations("spd op mic", "26V 60 1", "36V 60 2")
    faults = ("imbalance", "blade_damage", "foreign_object", "stall")
    reserve_db: ClassVar = {"imbalance": -10.0}
    casing: ClassVar[Modes] = ((1_200, 0.03, 1.0), (2_700, 0.02, 0.8), (4_100, 0.02, 0.5))

    def shaft_hertz(self, attributes: Attributes) -> float:
        """Revolutions a second: 0.9 per volt."""
        return 0.9 * number(attributes["spd"])

    def level_db(self, attributes: Attributes) -> float:
        return 50 * np.log10(number(attributes["spd"]) / 28)

    def microphone(self, attributes: Attributes) -> str:
        return {"1": "near", "2": "side"}[attributes["mic"]]

    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        hertz = self.shaft_hertz(attributes) * (1 + 0.008 * rng.standard_normal())
        opening = number(attributes["op"]) / 100
        angle = rotation(hertz, n_samples, rng)
        decay = 0.55 + 0.25 * (1 - opening)  # back pressure feeds the higher harmonics
        orders = {self.blades * k: decay ** (k - 1) for k in range(1, 13)} | {1: 0.12, 2: 0.06}
        tone = unit_power(turn(order_table(audible_orders(orders, hertz), rng), angle))
        hump = 14 * hertz * (1 + opening)  # the flow noise peaks at a fixed Strouhal number
        flow = shaped_noise(n_samples, rng, lambda f: (f / hump) / (1 + (f / hump) ** 2.2))
        flow = flow * (1 + 0.35 * np.cos(2 * np.pi * self.blades * angle) + 0.08 * np.cos(2 * np.pi * angle))
        healthy = gain(rng.normal(0, 1)) * tone + gain(4 * opening) * flow
        return Rendering(healthy, self._fault(fault, healthy, angle, hertz, rng))

    def _fault(
        self, fault: str | None, healthy: Signal, angle: Signal, hertz: float, rng: np.random.Generator
    ) -> Signal:
        n_samples = len(healthy)
        if fault == "imbalance":  # the rotor whirls: everything is modulated once a revolution
            return healthy * np.cos(2 * np.pi * angle)
        if fault == "blade_damage":  # blades that are not alike: the orders between the blade-pass harmonics
            orders = {k: 1 / (1 + abs(k - 14) / 8) for k in range(2, 48) if k % self.blades}
            return turn(order_table(audible_orders(orders, hertz), rng), angle)
        if fault == "foreign_object":  # something touches one blade
            return ticks(crossings(angle, 1, rng, 0.01), n_samples, rng, self.casing)
        if fault == "stall":  # cells of separated flow rotate at 0.43 of the shaft's speed
            rumble = shaped_noise(n_samples, rng, band(250, 900))
            return rumble * (1 + np.cos(2 * np.pi * 0.43 * angle))
        return np.zeros(n_samples)


class Gearbox(Machine):
    """One gear pair, 21 teeth on 34: mesh tones whose sidebands lie at both shafts' frequencies.

    `volt` motor voltage (10 revolutions a second per volt), `wt` load in g: loaded teeth bend, so that the mesh grows
    richer in harmonics and louder.
    """

    name = "gearbox"
    teeth: ClassVar[tuple[int, int]] = (21, 34)
    source = combinations("volt wt", "1.5 0", "1.5 50", "2.0 50", "2.0 100", "2.5 0", "2.5 100")
    target = combinations("volt wt", "1.75 130", "3.0 30")
    faults = ("tooth_break", "misalignment", "wear", "foreign_object")
    housing: ClassVar[Modes] = ((780, 0.05, 1.0), (1_900, 0.03, 0.9), (3_400, 0.03, 0.6))

    def shaft_hertz(self, attributes: Attributes) -> float:
        """Revolutions a second of the driving shaft: 10 per volt."""
        return 10 * number(attributes["volt"])

    def level_db(self, attributes: Attributes) -> float:
        return 20 * np.log10(number(attributes["volt"]) / 2) + number(attributes["wt"]) / 50 - 1

    def microphone(self, attributes: Attributes) -> str:
        return "housing"

    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        hertz = self.shaft_hertz(attributes) * (1 + 0.01 * rng.standard_normal())
        load = number(attributes["wt"]) / 100
        angle = rotation(hertz, n_samples, rng)
        driven = angle * self.teeth[0] / self.teeth[1]
        mesh = turn(order_table(self._mesh_orders(load, hertz), rng), angle)
        mesh = mesh * (1 + 0.2 * np.cos(2 * np.pi * driven)) * np.exp(0.1 * slow_curve(n_samples, rng, 1.0))
        rattle = shaped_noise(n_samples, rng, band(600, 3_500, slope=2))
        rattle = rattle * (1 + 0.4 * np.cos(2 * np.pi * self.teeth[0] * angle))
        healthy = unit_power(resonate(mesh, self.housing) + 0.5 * mesh) + gain(-5 - 4 * load) * rattle
        return Rendering(healthy, self._fault(fault, mesh, angle, rng))

    def _mesh_orders(self, load: float, hertz: float) -> dict[int, float]:
        teeth = self.teeth[0]
        orders: dict[int, float] = {1: 0.2, 2: 0.1}
        for k in range(1, 12):
            orders[k * teeth] = (0.5 + 0.25 * load) ** (k - 1)
            for side in (-2, -1, 1, 2):
                orders[k * teeth + side] = 0.12 / abs(side) * orders[k * teeth]
        return audible_orders(orders, hertz)

    def _fault(self, fault: str | None, mesh: Signal, angle: Signal, rng: np.random.Generator) -> Signal:
        n_samples = len(mesh)
        teeth = self.teeth[0]
        if fault == "tooth_break":  # once a revolution the mesh loses a tooth and the next one strikes
            gap = np.exp(-(((angle % 1.0 - 0.5) * teeth) ** 2))
            strike = ticks(crossings(angle + 0.5, 1, rng, 0.003), n_samples, rng, self.housing, 0.15)
            return 0.5 * unit_power(-mesh * gap) + unit_power(strike)
        if fault == "misalignment":  # twice-per-revolution modulation, and the second mesh harmonic
            second = {2 * teeth: 1.0, 2 * teeth - 2: 0.6, 2 * teeth + 2: 0.6, teeth - 2: 0.5, teeth + 2: 0.5}
            return resonate(turn(order_table(second, rng), angle), self.housing)
        if fault == "wear":  # rough flanks: noise in every tooth contact
            grind = shaped_noise(n_samples, rng, band(1_500, 5_500))
            return grind * (1 + np.cos(2 * np.pi * teeth * angle))
        if fault == "foreign_object":  # a grain goes through the mesh now and then
            return ticks(random_times(6.0, n_samples, rng), n_samples, rng, self.housing, 0.6)
        return np.zeros(n_samples)


class Bearing(Machine):
    """Rolling bearing of nine balls (geometry of a 6205): shaft orders and rolling noise through the housing.

    Defects strike at the classical kinematic frequencies, with slip of about one per cent of the period (Randall and
    Antoni 2011): ball pass outer race 3.585, inner race 5.415, ball spin 2.357, cage 0.398 times the shaft's.
    `vel` shaft speed in revolutions a second, `loc` place of the microphone.
    """

    name = "bearing"
    outer_race: ClassVar[float] = 3.585
    inner_race: ClassVar[float] = 5.415
    ball_spin: ClassVar[float] = 2.357
    cage: ClassVar[float] = 0.398
    source = combinations("vel loc", "10 A", "14 A", "18 A", "14 B", "18 B", "24 B")
    target = combinations("vel loc", "12 C", "21 D")
    faults = ("outer_race", "inner_race", "ball", "lubrication")
    housing: ClassVar[Modes] = ((1_450, 0.04, 0.7), (2_900, 0.03, 1.0), (4_600, 0.03, 0.8))

    def level_db(self, attributes: Attributes) -> float:
        return 20 * np.log10(number(attributes["vel"]) / 16)

    def microphone(self, attributes: Attributes) -> str:
        return {"A": "near", "B": "side", "C": "far", "D": "housing"}[attributes["loc"]]

    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        hertz = number(attributes["vel"]) * (1 + 0.008 * rng.standard_normal())
        angle = rotation(hertz, n_samples, rng)
        orders = {1: 1.0, 2: 0.6, 3: 0.4, 4: 0.25, 8: 0.2, 12: 0.3, 24: 0.25, 36: 0.15}
        shaft = unit_power(turn(order_table(orders, rng), angle))
        asperities = rng.standard_normal(n_samples) * (1 + 0.25 * np.cos(2 * np.pi * self.cage * angle))
        rolling = unit_power(resonate(asperities, self.housing))
        hiss = shaped_noise(n_samples, rng, band(12 * hertz, 90 * hertz, slope=1.5))
        healthy = gain(rng.normal(-3, 1)) * shaft + gain(hertz / 4 - 4) * rolling + hiss
        return Rendering(healthy, self._fault(fault, angle, rng))

    def _fault(self, fault: str | None, angle: Signal, rng: np.random.Generator) -> Signal:
        n_samples = len(angle)
        seconds = np.arange(n_samples) / SAMPLE_RATE

        def strikes(ratio: float, load_zone: Signal) -> Signal:
            times = crossings(angle, ratio, rng, 0.01)
            return resonate(impulses(times, np.interp(times, seconds, load_zone), n_samples), self.housing)

        if fault == "outer_race":  # stands still in the load zone: equal blows
            return strikes(self.outer_race, np.ones(n_samples))
        if fault == "inner_race":  # turns through the load zone once a revolution
            return strikes(self.inner_race, np.maximum(np.cos(2 * np.pi * angle), 0) + 0.1)
        if fault == "ball":  # strikes both races in every spin, carried round by the cage
            return strikes(2 * self.ball_spin, 0.6 + 0.4 * np.cos(2 * np.pi * self.cage * angle))
        if fault == "lubrication":  # dry contact: high-frequency friction in irregular swells
            dry = shaped_noise(n_samples, rng, band(3_000, 7_000))
            return dry * np.exp(0.6 * slow_curve(n_samples, rng, 0.15))
        return np.zeros(n_samples)


class Pump(Machine):
    """Centrifugal pump of five vanes: vane-pass tones, motor orders, turbulent flow.

    `spd` revolutions a second, `prs` delivery pressure in bar, `mic`.
    """

    name = "pump"
    vanes: ClassVar[int] = 5
    source = combinations("spd prs mic", "30 2 1", "40 2 1", "50 2 2", "30 4 2", "40 4 1", "50 4 2")
    target = combinations("spd prs mic", "35 3 1", "60 3 2")
    faults = ("cavitation", "leak", "impeller_damage", "clogging")
    reserve_db: ClassVar = {"clogging": -6.0}
    casing: ClassVar[Modes] = ((3_100, 0.05, 0.8), (4_700, 0.04, 1.0), (6_200, 0.04, 0.7))

    def level_db(self, attributes: Attributes) -> float:
        return 30 * np.log10(number(attributes["spd"]) / 40)

    def microphone(self, attributes: Attributes) -> str:
        return {"1": "side", "2": "near"}[attributes["mic"]]

    def render(
        self,
        attributes: Attributes,
        fault: str | None,
        grade: float,
        n_samples: int,
        rng: np.random.Generator,
    ) -> Rendering:
        hertz = number(attributes["spd"]) * (1 + 0.008 * rng.standard_normal())
        pressure = number(attributes["prs"])
        angle = rotation(hertz, n_samples, rng, wander=0.001)
        orders = {self.vanes * k: k ** -(1.6 - 0.25 * pressure) for k in range(1, 20)} | {
            1: 0.5,
            2: 0.35,
            3: 0.15,
        }
        tone = unit_power(turn(order_table(audible_orders(orders, hertz), rng), angle))
        flow = shaped_noise(n_samples, rng, band(200, 500 + 300 * pressure, slope=1.5))
        flow = flow * (1 + 0.3 * np.cos(2 * np.pi * self.vanes * angle))
        healthy = tone + gain(rng.normal(pressure - 3, 0.7)) * flow
        return Rendering(healthy, self._fault(fault, healthy, angle, hertz, rng))

    def _fault(
        self, fault: str | None, healthy: Signal, angle: Signal, hertz: float, rng: np.random.Generator
    ) -> Signal:
        n_samples = len(healthy)
        if fault == "cavitation":  # bubbles collapse where a vane passes
            times = random_times(220.0, n_samples, rng)
            passing = np.interp(
                times * SAMPLE_RATE, np.arange(n_samples), np.cos(2 * np.pi * self.vanes * angle)
            )
            blows = rng.lognormal(0.0, 0.9, len(times)) * (0.3 + np.maximum(passing, 0))
            return resonate(impulses(times, blows, n_samples), self.casing)
        if fault == "leak":  # a jet through a worn seal
            return shaped_noise(n_samples, rng, band(3_500, 7_500))
        if fault == "impeller_damage":  # vanes that are not alike
            orders = {k: 1 / (1 + abs(k - 6) / 5) for k in range(1, 30) if k % self.vanes}
            return turn(order_table(audible_orders(orders, hertz), rng), angle)
        if fault == "clogging":  # the flow surges
            return healthy * np.sin(2 * np.pi * rotation(rng.uniform(1.5, 4.0), n_samples, rng, wander=0.2))
        return np.zeros(n_samples)
