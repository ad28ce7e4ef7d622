"""A compact residual network on the spectrogram, in the manner of the sub-cluster AdaCos systems (Wilkinghoff 2021-2023).

From the literature: temporal mean normalisation of the spectrogram, a 7x7 convolution and max pooling, four stages of
residual blocks with 3x3 convolutions. Ours: one token per remaining time step (so that any pooling fits), log power.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from asdflow.errors import InputError
from asdflow.features.front_end import front_end_config
from asdflow.models.encoder import Encoder

MIN_FRAMES = 32


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first may halve both axes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv2(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(inner) + self.shortcut(x))


class STFTCNN(Encoder):
    """Encoder of spectrograms: [batch, frames, bins] -> [batch, ceil(frames / 32), width].

    Parameters
    ----------
    width : size of a token.
    channels : channels of the four stages.
    """

    architecture = "stft_cnn"
    n_layers = 1

    def __init__(
        self, *, width: int = 128, channels: Sequence[int] = (16, 32, 64, 128), front_end: str = "stft"
    ) -> None:
        super().__init__(front_end, width, pad_multiple=1)
        self.channels = tuple(channels)
        first = self.channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        for before, channels_out in zip((first, *self.channels), self.channels, strict=False):
            stride = 1 if not stages else 2
            stages += [
                ResidualBlock(before, channels_out, stride),
                ResidualBlock(channels_out, channels_out, 1),
            ]
        self.stages = nn.Sequential(*stages)
        bands = front_end_config(front_end).bins
        for _ in range(len(self.channels) + 1):
            bands = -(-bands // 2)
        self.projection = nn.Linear(self.channels[-1] * bands, width)

    def sizes(self) -> dict[str, Any]:
        """The keyword arguments (beside `front_end`) that build this encoder again."""
        return {"width": self.width, "channels": list(self.channels)}

    def forward(
        self, log_mel: torch.Tensor, layers: Sequence[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """log_mel [batch, frames, bins] -> [batch, tokens, width], a token per time step; its one layer can be asked for.

        Raises InputError for clips of fewer than 32 frames.
        """
        if log_mel.shape[1] < MIN_FRAMES:
            raise InputError(
                f"the STFT CNN cannot take {log_mel.shape[1]} frames",
                remedy=f"give clips of at least {MIN_FRAMES} frames",
            )
        x = (log_mel - log_mel.mean(dim=1, keepdim=True))[:, None]  # [batch, 1, frames, bins]
        x = self.stages(self.stem(x))  # [batch, channels, tokens, bands]
        tokens = self.projection(x.transpose(1, 2).flatten(2))
        return tokens if layers is None else [tokens for _ in self.layer_numbers(layers)]
