"""Pooling: an encoder's patch embeddings [batch, tokens, width] to one embedding per clip [batch, d]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """Base: drops the CLS token (where the encoder has one) before `pool` sees the patches."""

    def __init__(self, width: int, has_cls: bool) -> None:
        super().__init__()
        self.width = width
        self.has_cls = has_cls

    @property
    def output_width(self) -> int:
        """Width d of the pooled embedding."""
        return self.width

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, tokens, width] -> [B, output_width]."""
        return self.pool(tokens[:, 1:] if self.has_cls else tokens)

    def pool(self, patches: Tensor) -> Tensor:
        """patches [B, N, width] -> [B, output_width]."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """Mean over all patches (the 2025 challenge winner's choice)."""

    def pool(self, patches: Tensor) -> Tensor:
        return patches.mean(1)


class ClsPooling(Pooling):
    """The CLS token alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, tokens, width] -> [B, width]."""
        return tokens[:, 0]


class MeanDeviationPooling(Pooling):
    """Mean and standard deviation over patches, concatenated: keeps short events that a mean washes out."""

    @property
    def output_width(self) -> int:
        return 2 * self.width

    def pool(self, patches: Tensor) -> Tensor:
        return torch.cat([patches.mean(1), _deviation(patches, patches.mean(1, keepdim=True))], 1)


class DeviationPooling(Pooling):
    """Standard deviation over patches alone: how a sound moves, without the level and colour that its place gives it.

    Ours in this form; that deviations from a clip's mean tell more than the mean is known from training-free systems.
    """

    def pool(self, patches: Tensor) -> Tensor:
        return _deviation(patches, patches.mean(1, keepdim=True))


class MaxPooling(Pooling):
    """Largest value over patches: what the loudest moments of short, rare events look like (a valve's clicks).

    The limit of global weighted ranking pooling (Kolesnikov and Lampert 2016), which systems of DCASE 2022 use over time.
    """

    def pool(self, patches: Tensor) -> Tensor:
        return patches.amax(1)


class GeneralisedMeanPooling(Pooling):
    """Signed power mean over patches: with z the mean of sign(x)|x|^p it gives sign(z)|z|^(1/p).

    p = 1 is the mean; a large p is ruled by each channel's most extreme patches. Generalised-mean pooling is Radenovic
    et al. 2019, for non-negative activations; keeping the sign is ours, as a transformer's outputs have both.
    """

    def __init__(self, width: int, has_cls: bool, power: float) -> None:
        super().__init__(width, has_cls)
        self.power = power

    def pool(self, patches: Tensor) -> Tensor:
        mean = (patches.sign() * patches.abs().clamp(min=1e-6) ** self.power).mean(1)
        return mean.sign() * mean.abs().clamp(min=1e-6**self.power) ** (1 / self.power)


class AttentiveStatisticsPooling(Pooling):
    """Attention-weighted mean and standard deviation over patches (Okabe et al. 2018), trained with the network."""

    def __init__(self, width: int, has_cls: bool, hidden: int) -> None:
        super().__init__(width, has_cls)
        self.attention = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    @property
    def output_width(self) -> int:
        return 2 * self.width

    def pool(self, patches: Tensor) -> Tensor:
        weight = self.attention(patches).softmax(1)  # [B, N, 1]
        mean = (weight * patches).sum(1, keepdim=True)
        deviation = ((weight * (patches - mean) ** 2).sum(1) + 1e-8).sqrt()
        return torch.cat([mean[:, 0], deviation], 1)


def _deviation(patches: Tensor, mean: Tensor) -> Tensor:
    """Population standard deviation over patches [B, width], with a finite slope at zero."""
    return (((patches - mean) ** 2).mean(1) + 1e-8).sqrt()


def build_pooling(settings: Mapping[str, Any], width: int, has_cls: bool) -> Pooling:
    """The pooling module for `settings` (keys: kind; power or hidden where the kind has them).

    `width` is the width of the tokens it will be given, `has_cls` whether the first token is a CLS token. Attentive
    statistics has weights; they come from torch's random generator, so build it inside a seeded fork.
    Raises ValueError for an unknown kind, and for `cls` with an encoder that has no CLS token.
    """
    kind = settings["kind"]
    if kind == "cls" and not has_cls:
        raise ValueError("pooling kind cls needs an encoder with a CLS token; this one has none")
    if kind == "generalised_mean":
        return GeneralisedMeanPooling(width, has_cls, settings.get("power", 3.0))
    if kind == "attentive_statistics":
        return AttentiveStatisticsPooling(width, has_cls, settings.get("hidden", 128))
    simple = {
        "mean": MeanPooling, "cls": ClsPooling, "deviation": DeviationPooling, "mean_deviation": MeanDeviationPooling,
        "max": MaxPooling,
    }  # fmt: skip
    if kind not in simple:
        raise ValueError(
            f"unknown pooling kind {kind!r}; there are {[*simple, 'generalised_mean', 'attentive_statistics']}"
        )
    return simple[kind](width, has_cls)
