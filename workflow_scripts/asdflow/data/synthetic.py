"""Synthetic recordings in the official DCASE 2025 layout: plan the clips, mix machine and factory, write WAV files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import soundfile

from asdflow.data.machinery.acting import Slider, Valve
from asdflow.data.machinery.background import factory_background
from asdflow.data.machinery.machine import Machine, microphone_response
from asdflow.data.machinery.rotating import Bearing, Fan, Gearbox, Pump
from asdflow.data.machinery.signals import (
    SAMPLE_RATE,
    Signal,
    apply_response,
    frequencies,
    gain,
    padded_length,
    root_mean_square,
)
from asdflow.data.naming import HIDDEN, attribute_label, attribute_text
from asdflow.errors import InputError
from asdflow.files import atomic_path

MACHINES: dict[str, Machine] = {m.name: m for m in (Bearing(), Fan(), Gearbox(), Pump(), Slider(), Valve())}
BACKGROUND_DB = -42.0  # root mean square of the background below full scale: leaves 36 dB for peaks
BAND_EDGES = np.geomspace(50, 8_000, 23)  # about a third of an octave each


@dataclass(frozen=True)
class Clip:
    """One clip to be made; `content` is what it holds: machine and factory (`mixture`), or one of the two."""

    machine: str
    split: str
    domain: str
    condition: str
    number: int
    content: str
    attributes: tuple[tuple[str, str], ...]
    fault: str | None
    stem: str

    @property
    def clip_id(self) -> str:
        return f"{self.machine}/{self.split}/{self.stem}"

    def random_state(self, seed: int) -> np.random.Generator:
        """A generator that depends on the seed and this clip's own place only."""
        key = f"{seed}/{self.machine}/{self.split}/{self.domain}/{self.condition}/{self.number}"
        return np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))


@dataclass(frozen=True)
class Mixture:
    """The parts of a recording, each [n] in units of full scale, as they reach the microphone."""

    healthy: Signal
    fault: Signal
    background: Signal

    @property
    def samples(self) -> Signal:
        return self.healthy + self.fault + self.background


def synthesize(
    target: Path, hidden_attributes: Path, settings: Mapping[str, Any], seed: int, workers: int
) -> int:
    """Write the synthetic data set `settings` describes below `target`; return the number of clips.

    Parameters
    ----------
    target : folder for `<machine>/{train,test,supplemental}/*.wav` (16 kHz, 16 bit, mono) and
        `<machine>/attributes_00.csv`, laid out and named as the development set of DCASE 2025 Task 2.
    hidden_attributes : CSV file (clip_id, attribute_label) with the attributes of every clip whose name hides them.
    settings : `clip_seconds`, `counts` and `machines` as in `configs/datasets/demo.yaml`, validated.
    seed : same seed, same bytes. A clip depends on the seed and its own machine, split and number only.
    workers : processes that render clips side by side.

    Raises
    ------
    InputError : a machine type that does not exist here, or a range written upside down.
    """
    check_settings(settings)
    clips = list(plan_clips(settings))
    for folder in {Path(clip.clip_id).parent for clip in clips}:
        (Path(target) / folder).mkdir(parents=True, exist_ok=True)
    work = partial(write_clip, target=Path(target), settings=settings, seed=seed)
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(work, clips, chunksize=16))
    else:
        for clip in clips:
            work(clip)
    hidden = []
    for machine, options in settings["machines"].items():
        own = [clip for clip in clips if clip.machine == machine]
        write_attributes(Path(target), machine, own, options["hide_attributes"])
        hidden += [clip for clip in own if clip.attributes and options["hide_attributes"]]
    write_hidden_attributes(hidden_attributes, hidden)
    return len(clips)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what a schema cannot see: unknown machine types and ranges whose first value is the larger."""
    problems = [
        f"machines.{name}: no such machine type (there are {', '.join(MACHINES)})"
        for name in settings["machines"]
        if name not in MACHINES
    ]
    problems += [
        f"machines.{name}.fault_db: {options['fault_db']} runs downwards"
        for name, options in settings["machines"].items()
        if options["fault_db"][0] > options["fault_db"][1]
    ]
    if problems:
        raise InputError(
            "The synthetic data set cannot be made.", problems, "Mend these settings of the data set."
        )


def plan_clips(settings: Mapping[str, Any]) -> Iterator[Clip]:
    """Every clip of the data set. Attribute combinations and kinds of fault take turns by the clip's number."""
    counts = settings["counts"]
    for name, options in settings["machines"].items():
        hide = options["hide_attributes"]
        for domain in ("source", "target"):
            for number in range(counts[f"train_{domain}"]):
                yield _plan(name, "train", domain, "normal", number, hide)
            for condition in ("normal", "anomaly"):
                for number in range(counts["test"]):
                    yield _plan(name, "test", domain, condition, number, hide)
        for number in range(counts["supplemental_clean"]):
            yield _plan(name, "supplemental", "source", "machine", number, hide)
        for number in range(counts["supplemental_noise"]):
            stem = f"section_00_noise_supplemental_normal_{number:04d}"
            yield Clip(name, "supplemental", "noise", "normal", number, "background", (), None, stem)


def _plan(name: str, split: str, domain: str, condition: str, number: int, hide: bool) -> Clip:
    machine = MACHINES[name]
    choices = machine.source if domain == "source" else machine.target
    attributes = choices[number % len(choices)]
    fault = machine.faults[(number + number // len(choices)) % len(machine.faults)]
    stem = f"section_00_{domain}_{split}_{condition}_{number:04d}"
    if split != "supplemental":  # the names of the clean clips carry no attributes
        stem += "_" + (HIDDEN if hide else attribute_text(attributes))
    content = "machine" if split == "supplemental" else "mixture"
    wanted = fault if condition == "anomaly" else None
    return Clip(name, split, domain, condition, number, content, tuple(attributes.items()), wanted, stem)


def mix(clip: Clip, settings: Mapping[str, Any], seed: int) -> Mixture:
    """Render one clip's parts at their levels.

    The healthy machine stands `snr_db` above the background at its nominal operating point, more or less by what the
    attributes do to its loudness (`Machine.level_db`) and by a standard deviation of 0.7 dB from clip to clip; a fault
    stands a level drawn uniformly from `fault_db` above all the rest, within the fault's own frequency bands. In clips
    of less than 3 s a fault that acts once a stroke may stay silent.
    """
    options = settings["machines"][clip.machine]
    machine = MACHINES[clip.machine]
    n_samples = round(settings["clip_seconds"] * SAMPLE_RATE)
    rng = clip.random_state(seed)
    factory, dry = rng.spawn(2)
    level = BACKGROUND_DB + rng.normal(0, 1)
    machine_level = level + options["snr_db"] + rng.normal(0, 0.7)
    grade = rng.uniform()
    silence = np.zeros(n_samples)
    background = (
        silence if clip.content == "machine" else gain(level) * factory_background(n_samples, factory)
    )
    if clip.content == "background":
        return Mixture(silence, silence, background)
    attributes = dict(clip.attributes)
    sound = machine.render(attributes, clip.fault, grade, n_samples, dry)
    response = microphone_response(machine.microphone(attributes), padded_length(n_samples))
    healthy = apply_response(sound.healthy, response)
    scale = gain(machine_level + machine.level_db(attributes)) / root_mean_square(healthy)
    if clip.fault is None:
        return Mixture(scale * healthy, silence, background)
    fault = scale * apply_response(sound.fault, response)
    if clip.fault not in machine.shape_faults and fault.any():
        low, high = options["fault_db"]
        wanted = low + grade * (high - low) + machine.reserve_db.get(clip.fault, 0.0)
        fault = fault * gain(wanted - level_in_band(fault, scale * healthy + background))
    return Mixture(scale * healthy, fault, background)


def band_powers(signal: Signal) -> Signal:
    """Power of `signal` [n] in each band of BAND_EDGES."""
    n_fft = padded_length(len(signal))
    power = np.abs(scipy.fft.rfft(np.asarray(signal, dtype=np.float64), n_fft)) ** 2
    edges = np.searchsorted(frequencies(n_fft), BAND_EDGES)
    return np.asarray(np.add.reduceat(power, edges[:-1]))


def level_in_band(fault: Signal, rest: Signal) -> float:
    """Level in dB of `fault` above `rest`, both [n], within the bands that hold nine tenths of the fault's power."""
    powers = band_powers(fault)
    order = np.argsort(powers)[::-1]
    share = np.cumsum(powers[order]) / powers.sum()
    bands = order[: int(np.searchsorted(share, 0.9)) + 1]
    return float(10 * np.log10(powers[bands].sum() / band_powers(rest)[bands].sum()))


def write_clip(clip: Clip, target: Path, settings: Mapping[str, Any], seed: int) -> None:
    """Render one clip and write it as 16-bit WAV."""
    samples = mix(clip, settings, seed).samples
    path = target / f"{clip.clip_id}.wav"
    with atomic_path(path) as temporary:
        soundfile.write(
            temporary, np.clip(samples, -1, 1 - 2**-15), SAMPLE_RATE, subtype="PCM_16", format="WAV"
        )


def write_attributes(target: Path, machine: str, clips: list[Clip], hide: bool) -> None:
    """Write the machine's `attributes_00.csv`: file_name, d1p, d1v, d2p, d2v, ... (file names alone where hidden).

    The clean supplemental clips are listed too: their names cannot tell what they were recorded under.
    """
    rows = [clip for clip in clips if clip.attributes]
    pairs = [() if hide else clip.attributes for clip in rows]
    width = max(map(len, pairs), default=0)
    header = ["file_name"] + [f"d{i}{part}" for i in range(1, width + 1) for part in "pv"]
    with (
        atomic_path(target / machine / "attributes_00.csv") as temporary,
        temporary.open("w", newline="") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        for clip, shown in zip(rows, pairs, strict=True):
            writer.writerow([f"{clip.clip_id}.wav", *(text for pair in shown for text in pair)])


def write_hidden_attributes(path: Path, clips: list[Clip]) -> None:
    """Write the truth that the names hide: clip_id, attribute_label."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["clip_id", "attribute_label"])
        writer.writerows([clip.clip_id, attribute_label(dict(clip.attributes))] for clip in clips)
