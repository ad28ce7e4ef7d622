"""Augmentation of cached log-mels in fine-tuning, vectorised over the batch on its device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asdflow.features.front_end import FrontEndConfig


@dataclass
class Mixed:
    """A batch after augmentation, and which clip of it was mixed into each clip (mixup only)."""

    log_mel: Tensor  # [B, T, F]
    partner: Tensor | None = None  # int64 [B], row of the clip mixed in
    share: Tensor | None = None  # float [B], what is left of the clip itself


def uniform(
    shape: tuple[int, ...], limits: Sequence[float], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Uniform random numbers between two limits, drawn on the CPU so that every device gets the same."""
    low, high = limits
    return (low + (high - low) * torch.rand(shape, generator=generator)).to(device)


def mixup(log_mel: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Mixup (Zhang et al. 2018): share * clip + (1 - share) * partner, per clip. log_mel [B, T, F], the rest [B]."""
    weight = share.view(-1, 1, 1)
    return weight * log_mel + (1 - weight) * log_mel[partner]


def log_mixup_exp(log_energy: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Log-mixup-exp (Niizumi et al. 2021, BYOL-A): log((1 - l) exp(x) + l exp(other)).

    log_energy, other : natural log energies [B, T, F], not normalised. strength : l, [B], 0 <= l < 1.
    """
    weight = strength.view(-1, 1, 1)
    return torch.logaddexp(log_energy + (1 - weight).log(), other + weight.log())


def random_resize_crop(
    log_mel: Tensor, frequency_scale: Tensor, time_scale: Tensor, offset: Tensor, pad_value: float
) -> Tensor:
    """Random resize crop (BYOL-A): a window of each clip's virtually larger picture, resized to the picture's size.

    log_mel [B, T, F]; scales [B] are the window's size relative to the clip, > 1 reaches beyond it into `pad_value`;
    offset [B, 2] in [0, 1) places the window along time and frequency between its two extremes.
    """
    batch = len(log_mel)
    theta = torch.zeros(batch, 2, 3, device=log_mel.device)
    theta[:, 0, 0], theta[:, 1, 1] = frequency_scale, time_scale
    theta[:, 0, 2] = (2 * offset[:, 1] - 1) * (1 - frequency_scale).abs()
    theta[:, 1, 2] = (2 * offset[:, 0] - 1) * (1 - time_scale).abs()
    picture = (log_mel - pad_value).unsqueeze(1)  # outside the picture is zero
    grid = nn.functional.affine_grid(theta, list(picture.shape), align_corners=False)
    resized = nn.functional.grid_sample(picture, grid, mode="bilinear", align_corners=False)
    return resized.squeeze(1) + pad_value


def mask_bands(log_mel: Tensor, axis: int, start: Tensor, width: Tensor, value: float) -> Tensor:
    """Set bands [start, start + width) along `axis` (1 time, 2 frequency) to `value`; start, width [B, masks]."""
    position = torch.arange(log_mel.shape[axis], device=log_mel.device)
    inside = (position >= start.unsqueeze(2)) & (
        position < (start + width).unsqueeze(2)
    )  # [B, masks, positions]
    band = inside.any(1)
    return log_mel.masked_fill(band.unsqueeze(2) if axis == 1 else band.unsqueeze(1), value)


def add_noise(log_energy: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
    """Add noise at a signal-to-noise ratio: log(exp(x) + g exp(noise)), g from the mean energies of both.

    log_energy, noise : natural log energies [B, T, F]; snr : dB [B]. Energies add as those of uncorrelated sounds do.
    """
    gap = log_energy.flatten(1).logsumexp(1) - noise.flatten(1).logsumexp(1)
    gain = gap - snr * (math.log(10) / 10)
    return torch.logaddexp(log_energy, noise + gain.view(-1, 1, 1))


def change_high_frequencies(
    log_mel: Tensor, cutoff: Tensor, shift: Tensor, noise: Tensor, masked: Tensor, floor: float
) -> Tensor:
    """Change what lies above a cut-off; bins below it are left as they are, bit for bit.

    log_mel [B, T, F]; cutoff [B]: first changed bin; shift [B]: gain added above it; noise [B, T, F]: added above it;
    masked bool [B]: set what is above to `floor` instead.
    """
    above = torch.arange(log_mel.shape[2], device=log_mel.device) >= cutoff.view(-1, 1, 1)  # [B, 1, F]
    changed = log_mel + shift.view(-1, 1, 1) + noise
    changed = torch.where(masked.view(-1, 1, 1), torch.full_like(changed, floor), changed)
    return torch.where(above, changed, log_mel)


class Augmentation(nn.Module):
    """The augmentations of a recipe, in a fixed order, each applied to a random part of the batch.

    Order: random resize crop, high frequencies, noise, log-mixup-exp, mixup, SpecAugment. Log-mixup-exp mixes in clips
    from a first-in-first-out memory of earlier inputs; the memory is part of the state, so a resumed training goes on
    with the same one. Random numbers come from the generator given to `forward` alone.
    """

    memory: Tensor
    filled: Tensor

    def __init__(self, settings: Mapping[str, Any], front_end: FrontEndConfig, frames: int) -> None:
        super().__init__()
        self.settings = settings
        self.mean, self.scale = front_end.mean, 2 * front_end.std
        self.pad_value = front_end.pad_value
        size = settings["log_mixup_exp"]["memory"] if settings["log_mixup_exp"]["probability"] > 0 else 0
        self.register_buffer("memory", torch.zeros(size, frames, front_end.bins, dtype=torch.float16))
        self.register_buffer("filled", torch.zeros(2, dtype=torch.int64))  # clips held, next place

    def forward(self, log_mel: Tensor, generator: torch.Generator, noise: Tensor | None = None) -> Mixed:
        """log_mel [B, T, F] normalised, noise [B, T, F] normalised (for `noise`) -> augmented batch."""
        plain = log_mel
        steps: list[tuple[str, Callable[[Tensor, torch.Generator], Tensor]]] = [
            ("random_resize_crop", self._resize),
            ("high_frequency", self._high_frequency),
            ("noise", lambda x, g: self._noise(x, g, noise)),
            ("log_mixup_exp", self._log_mixup_exp),
        ]
        for name, step in steps:
            if self.settings[name]["probability"] > 0:
                log_mel = torch.where(
                    self._chosen(name, log_mel, generator), step(log_mel, generator), log_mel
                )
        if len(self.memory):
            self._remember(plain)
        mixed = self._mixup(log_mel, generator)
        if self.settings["specaugment"]["probability"] > 0:
            chosen = self._chosen("specaugment", log_mel, generator)
            mixed.log_mel = torch.where(chosen, self._specaugment(mixed.log_mel, generator), mixed.log_mel)
        return mixed

    def _chosen(self, name: str, log_mel: Tensor, generator: torch.Generator) -> Tensor:
        """Which clips an augmentation changes: bool [B, 1, 1]."""
        drawn = torch.rand(len(log_mel), 1, 1, generator=generator) < self.settings[name]["probability"]
        return drawn.to(log_mel.device)

    def _energy(self, log_mel: Tensor) -> Tensor:
        """Normalised log-mel to natural log energy."""
        return log_mel * self.scale + self.mean

    def _normalised(self, log_energy: Tensor) -> Tensor:
        return (log_energy - self.mean) / self.scale

    def _resize(self, log_mel: Tensor, generator: torch.Generator) -> Tensor:
        own, batch = self.settings["random_resize_crop"], (len(log_mel),)
        frequency = uniform(batch, own["frequency_scale"], generator, log_mel.device)
        time = uniform(batch, own["time_scale"], generator, log_mel.device)
        offset = uniform((len(log_mel), 2), (0.0, 1.0), generator, log_mel.device)
        return random_resize_crop(log_mel, frequency, time, offset, self.pad_value)

    def _high_frequency(self, log_mel: Tensor, generator: torch.Generator) -> Tensor:
        own, batch = self.settings["high_frequency"], (len(log_mel),)
        cutoff = uniform(batch, own["cutoff"], generator, log_mel.device) * log_mel.shape[2]
        decibel = math.log(10) / 10 / self.scale
        shift = uniform(batch, (-own["gain"], own["gain"]), generator, log_mel.device) * decibel
        noise = torch.randn(log_mel.shape, generator=generator).to(log_mel.device)
        depth = uniform((*batch, 1, 1), (0.0, own["gain"]), generator, log_mel.device) * decibel
        number = {"gain": 0, "noise": 1, "mask": 2}.get(own["kind"], -1)
        drawn = torch.randint(0, 3, batch, generator=generator).to(log_mel.device)
        kind = drawn if number < 0 else torch.full_like(drawn, number)
        shift = torch.where(kind == 0, shift, torch.zeros_like(shift))
        noise = torch.where((kind == 1).view(-1, 1, 1), noise * depth, torch.zeros_like(noise))
        return change_high_frequencies(log_mel, cutoff.ceil(), shift, noise, kind == 2, self.pad_value)

    def _noise(self, log_mel: Tensor, generator: torch.Generator, noise: Tensor | None) -> Tensor:
        if noise is None:
            return log_mel
        snr = uniform((len(log_mel),), self.settings["noise"]["snr"], generator, log_mel.device)
        return self._normalised(add_noise(self._energy(log_mel), self._energy(noise), snr))

    def _log_mixup_exp(self, log_mel: Tensor, generator: torch.Generator) -> Tensor:
        held = int(self.filled[0])
        if held == 0:
            return log_mel
        own, batch = self.settings["log_mixup_exp"], (len(log_mel),)
        row = torch.randint(0, held, batch, generator=generator).to(log_mel.device)
        strength = uniform(batch, (0.0, own["strength"]), generator, log_mel.device)
        other = self.memory[row].to(log_mel.dtype)
        return self._normalised(log_mixup_exp(self._energy(log_mel), self._energy(other), strength))

    def _remember(self, log_mel: Tensor) -> None:
        """Put the batch into the memory, over its oldest clips."""
        clips = log_mel[-len(self.memory) :].to(self.memory.dtype)
        place = (int(self.filled[1]) + torch.arange(len(clips), device=log_mel.device)) % len(self.memory)
        self.memory[place] = clips
        self.filled[0] = min(int(self.filled[0]) + len(clips), len(self.memory))
        self.filled[1] = (int(self.filled[1]) + len(clips)) % len(self.memory)

    def _mixup(self, log_mel: Tensor, generator: torch.Generator) -> Mixed:
        own = self.settings["mixup"]
        if own["probability"] == 0:
            return Mixed(log_mel)
        partner = torch.randperm(len(log_mel), generator=generator)
        share = _beta(own["alpha"], len(log_mel), generator)
        share = torch.maximum(share, 1 - share)
        chosen = torch.rand(len(log_mel), generator=generator) < own["probability"]
        share = torch.where(chosen, share, torch.ones_like(share)).to(log_mel.device)
        partner = partner.to(log_mel.device)
        return Mixed(mixup(log_mel, partner, share), partner, share)

    def _specaugment(self, log_mel: Tensor, generator: torch.Generator) -> Tensor:
        """SpecAugment's time and frequency masks (Park et al. 2019)."""
        own = self.settings["specaugment"]
        for axis, masks, widest in (
            (1, own["time_masks"], own["time_width"]),
            (2, own["frequency_masks"], own["frequency_width"]),
        ):
            size = log_mel.shape[axis]
            shape = (len(log_mel), masks)
            width = (uniform(shape, (0, min(widest, size) + 1), generator, log_mel.device)).floor()
            start = (torch.rand(shape, generator=generator).to(log_mel.device) * (size - width + 1)).floor()
            log_mel = mask_bands(log_mel, axis, start, width, 0.0)
        return log_mel


def show_each(
    settings: Mapping[str, Any], clip: np.ndarray, other: np.ndarray, front_end: FrontEndConfig, seed: int
) -> dict[str, np.ndarray]:
    """What every augmentation does to one clip, each alone and for certain, for a figure.

    clip, other : normalised log-mels [T, F] of equal size; `other` is what is mixed in, and the noise. Returns
    {"original": clip, augmentation: changed clip [T, F] float32, ...}.
    """
    names = [name for name, part in settings.items() if "probability" in part]
    batch = torch.from_numpy(np.stack([clip, other]).astype(np.float32))
    shown = {"original": np.asarray(clip, dtype=np.float32)}
    for name in names:
        alone = {key: {**part, "probability": 1.0 if key == name else 0.0} for key, part in settings.items()}
        part = Augmentation(alone, front_end, len(clip))
        if name == "mixup":  # its random share may be nearly nothing
            shown[name] = mixup(batch, torch.tensor([1, 0]), torch.full((2,), 0.6))[0].numpy()
            continue
        part(batch.flip(0)[:1], torch.Generator().manual_seed(seed))  # fills the memory with the other clip
        mixed = part(batch, torch.Generator().manual_seed(seed), batch[1:].expand_as(batch))
        shown[name] = mixed.log_mel[0].numpy()
    return shown


def _beta(alpha: float, n: int, generator: torch.Generator) -> Tensor:
    """n draws of Beta(alpha, alpha), from two gamma draws by a numpy generator seeded from `generator`."""
    seed = int(torch.randint(0, 2**62, (1,), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, n)).float()
