"""A compact network on spectrograms and spectra, in the manner of the sub-cluster AdaCos systems (Wilkinghoff 2021-2023).

From the literature: two branches. One takes the magnitude spectrogram without its mean over time, through a 7x7 convolution,
max pooling and four stages of residual blocks; the other the magnitude spectrum of the whole clip, through three 1-D
convolutions with wide kernels and dense layers. Ours: the spectrum in bands of about 1 Hz (theirs has every bin of the Fourier
transform), so that clips of any length fit; kernels scaled down with it; one token per remaining time step, each with the
clip's spectrum embedding beside it, so that any pooling fits.
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
SPECTRUM_CONVOLUTIONS = ((64, 16), (16, 8), (16, 4))
"""Kernel and stride of the spectrum branch's convolutions, in bands (theirs: 256/64, 64/32, 16/4 on ten times as many)."""


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


class SpectrumBranch(nn.Module):
    """Magnitude spectrum of a clip [batch, bands] -> [batch, width]: convolutions along frequency, then dense layers."""

    def __init__(self, bands: int, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm1d(1)]
        before = 1
        for kernel, stride in SPECTRUM_CONVOLUTIONS:
            layers += [
                nn.Conv1d(before, channels, kernel, stride, bias=False), nn.BatchNorm1d(channels), nn.ReLU(),
            ]  # fmt: skip
            before, bands = channels, (bands - kernel) // stride + 1
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Linear(channels * bands, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )  # fmt: skip

    def forward(self, magnitude: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.dense(self.convolutions(magnitude[:, None]).flatten(1))
        return embedding


class STFTCNN(Encoder):
    """Encoder of spectrograms: [batch, rows, bins] -> [batch, ceil(frames / 32), width of a token].

    With a front end that puts the whole clip's spectrum before the frames (`stft_spectrum`) there are two branches and a
    token is twice as wide; with a plain `stft` there is the spectrogram's branch alone.

    Parameters
    ----------
    width : size of each branch's embedding.
    channels : channels of the residual stages; the spectrum's branch has as many as the last.
    """

    architecture = "stft_cnn"
    n_layers = 1

    def __init__(
        self, *, width: int = 128, channels: Sequence[int] = (16, 32, 64, 128), front_end: str = "stft"
    ) -> None:
        config = front_end_config(front_end)
        branches = 2 if config.spectrum_rows else 1
        super().__init__(front_end, branches * width, pad_multiple=1)
        self.branch_width, self.channels = width, tuple(channels)
        first = self.channels[0]
        self.stem = nn.Sequential(
            nn.BatchNorm2d(1),
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
        bands = config.bins
        for _ in range(len(self.channels) + 1):
            bands = -(-bands // 2)
        self.projection = nn.Linear(self.channels[-1] * bands, width)
        self.spectrum: SpectrumBranch | None = None
        if config.spectrum_rows:
            self.spectrum = SpectrumBranch(config.spectrum_rows * config.bins, self.channels[-1], width)

    def sizes(self) -> dict[str, Any]:
        """The keyword arguments (beside `front_end`) that build this encoder again."""
        return {"width": self.branch_width, "channels": list(self.channels)}

    def forward(
        self, log_mel: torch.Tensor, layers: Sequence[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """log_mel [batch, rows, bins] -> [batch, tokens, width], a token per time step; its one layer can be asked for.

        Raises InputError for clips of fewer than 32 frames.
        """
        config = self.front_end.config
        magnitude = ((log_mel.float() * (2 * config.std) + config.mean) / 2).exp()
        spectrum, frames = magnitude.tensor_split([config.spectrum_rows], dim=1)
        if frames.shape[1] < MIN_FRAMES:
            raise InputError(
                f"the STFT CNN cannot take {frames.shape[1]} frames",
                remedy=f"give clips of at least {MIN_FRAMES} frames",
            )
        x = (frames - frames.mean(dim=1, keepdim=True))[:, None]  # [batch, 1, frames, bins]
        x = self.stages(self.stem(x))  # [batch, channels, tokens, bands]
        tokens = self.projection(x.transpose(1, 2).flatten(2))
        if self.spectrum is not None:
            beside = self.spectrum(spectrum.flatten(1))[:, None].expand(-1, tokens.shape[1], -1)
            tokens = torch.cat([tokens, beside], dim=2)
        return tokens if layers is None else [tokens for _ in self.layer_numbers(layers)]
