"""Front ends: waveforms to log-mel (Kaldi's, for EAT and BEATs) or a log spectrogram, with the whole clip's spectrum or without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from asdflow.errors import InputError

SAMPLE_RATE = 16_000
KALDI_FLOOR = float(torch.finfo(torch.float32).eps)
"""Kaldi's floor on mel energies before the logarithm: the machine epsilon of float32."""
MEL_GROUPS = 8
"""Groups of neighbouring mel filters per matrix product: fewer multiply more zeros, more start more products."""


@dataclass(frozen=True)
class FrontEndConfig:
    """Everything a front end's values depend on; stored with every feature file.

    Lengths are in samples at 16 kHz. `mel_bins` is None for a plain spectrogram. The normalised value is
    (log energy - mean) / (2 std), as EAT and BEATs do; `raw_pad_value` is the log energy that padding stands for.
    `spectrum_rows`: so many rows before the first frame hold the log energy spectrum of the whole clip, folded.
    """

    name: str
    window: str
    window_length: int
    hop: int
    n_fft: int
    mel_bins: int | None
    low_frequency: float
    high_frequency: float
    preemphasis: float
    remove_dc: bool
    subtract_clip_mean: bool
    scale: float
    floor: float
    mean: float
    std: float
    raw_pad_value: float
    spectrum_rows: int = 0

    @property
    def bins(self) -> int:
        """Number of values per frame."""
        return self.n_fft // 2 + 1 if self.mel_bins is None else self.mel_bins

    @property
    def pad_value(self) -> float:
        """The normalised value with which clips are padded at their end."""
        return (self.raw_pad_value - self.mean) / (2 * self.std)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a clip of `n_samples` at 16 kHz: whole windows only, as Kaldi with snip_edges; and the rows of its spectrum."""
        if n_samples < self.window_length:
            return 0
        return self.spectrum_rows + 1 + (n_samples - self.window_length) // self.hop

    def to_dict(self) -> dict[str, Any]:
        """The parameters as a plain dict, ready for JSON."""
        return asdict(self)


def _kaldi(
    name: str, window: str, subtract_clip_mean: bool, scale: float, mean: float, std: float
) -> FrontEndConfig:
    return FrontEndConfig(
        name=name, window=window, window_length=400, hop=160, n_fft=512, mel_bins=128, low_frequency=20.0,
        high_frequency=SAMPLE_RATE / 2, preemphasis=0.97, remove_dc=True, subtract_clip_mean=subtract_clip_mean,
        scale=scale, floor=KALDI_FLOOR, mean=mean, std=std, raw_pad_value=0.0,
    )  # fmt: skip


def _stft(name: str, spectrum_rows: int) -> FrontEndConfig:
    return FrontEndConfig(
        name=name, window="hann", window_length=1024, hop=512, n_fft=1024, mel_bins=None, low_frequency=0.0,
        high_frequency=SAMPLE_RATE / 2, preemphasis=0.0, remove_dc=False, subtract_clip_mean=False, scale=1.0,
        floor=1e-8, mean=-8.0, std=4.0, raw_pad_value=math.log(1e-8), spectrum_rows=spectrum_rows,
    )  # fmt: skip


FRONT_ENDS: dict[str, FrontEndConfig] = {
    "eat_logmel": _kaldi("eat_logmel", "hann", True, 1.0, -4.268, 4.569),
    "beats_logmel": _kaldi("beats_logmel", "povey", False, 32768.0, 15.41663, 6.55582),
    "stft": _stft("stft", spectrum_rows=0),
    "stft_spectrum": _stft("stft_spectrum", spectrum_rows=16),
}
"""The front ends by name: EAT's and BEATs's log-mel (their published parameters), a plain log-power STFT, and the same with the
whole clip's spectrum in 16 x 513 bands of about 1 Hz (ours)."""


def mel_matrix(config: FrontEndConfig) -> torch.Tensor:
    """Kaldi's triangular mel filters as a float32 matrix [n_fft // 2 + 1, mel_bins].

    Mel scale 1127 ln(1 + f / 700), triangles linear in mel, equally spaced between the two corner frequencies
    (HTK Book, section 5.4); the Nyquist bin belongs to no filter, as in Kaldi.
    """
    if config.mel_bins is None:
        raise ValueError(f"front end {config.name} has no mel filters")
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (config.low_frequency, config.high_frequency))
    spacing = (high - low) / (config.mel_bins + 1)
    # float32 throughout, as Kaldi and torchaudio: rounding of the narrow filters' weights is then the same
    number = torch.arange(config.mel_bins, dtype=torch.float32, device="cpu")
    left, centre, right = (low + (number + edge) * spacing for edge in (0.0, 1.0, 2.0))
    frequency = (SAMPLE_RATE / config.n_fft) * torch.arange(
        config.n_fft // 2, dtype=torch.float32, device="cpu"
    )
    mel = (1127.0 * (1.0 + frequency / 700.0).log())[:, None]
    weights = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_(min=0.0)
    return nn.functional.pad(weights, (0, 0, 0, 1))


def window_values(config: FrontEndConfig) -> torch.Tensor:
    """The analysis window [window_length]: symmetric Hann, or Povey's (Hann to the power 0.85)."""
    hann = torch.hann_window(config.window_length, periodic=False, device="cpu")
    if config.window == "povey":
        return hann.pow(0.85)
    if config.window == "hann":
        return hann
    raise ValueError(f"front end {config.name}: window {config.window!r} is neither hann nor povey")


class Scratch:
    """Memory used again from clip to clip, one per thread: fresh pages for every clip cost as much as the transforms."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """A contiguous float tensor of `shape` on the device of `like`, its values arbitrary; valid until taken again."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.device != like.device or held.dtype != like.dtype:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(*shape)


class _MelFilters(nn.Module):
    """The mel product without its zeros: each group of neighbouring filters meets only the bins it covers.

    Works on squared real and imaginary parts side by side, [rows, 2 (n_fft // 2 + 1)], so that their sum costs nothing.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        doubled = matrix.repeat_interleave(2, dim=0)
        self.n_filters = matrix.shape[1]
        self.ranges: list[tuple[int, int]] = []
        for group, weights in enumerate(doubled.split(-(-self.n_filters // MEL_GROUPS), dim=1)):
            covered = weights.any(dim=1).nonzero()
            first, last = int(covered[0]), int(covered[-1]) + 1
            self.ranges.append((first, last))
            self.register_buffer(f"weights_{group}", weights[first:last].contiguous(), persistent=False)

    def forward(self, squares: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """squares [rows, 2 (n_fft // 2 + 1)] -> mel energies [rows, filters]."""
        energies = scratch.take("energies", (len(squares), self.n_filters), squares)
        start = 0
        for (first, last), weights in zip(self.ranges, self.buffers(), strict=True):
            end = start + weights.shape[1]
            torch.mm(squares[:, first:last], weights, out=energies[:, start:end])
            start = end
        return energies


class FrontEnd(nn.Module):
    """Waveform float32 [batch, samples] in [-1, 1] at 16 kHz -> normalised log energies [batch, frames, bins], unpadded.

    Equals `torchaudio.compliance.kaldi.fbank` (htk_compat, no dither, no energy) up to rounding for the log-mel
    front ends. All clips of a call have the same length. Not differentiable: a fixed transform of recordings.
    """

    window: torch.Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        self.name, self.bins, self.pad_value = config.name, config.bins, config.pad_value
        self.mel = None if config.mel_bins is None else _MelFilters(mel_matrix(config))
        self.register_buffer("window", window_values(config), persistent=False)

    @torch.no_grad()
    def forward(self, waveform: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
        """waveform [batch, samples] -> [batch, frames, bins] float32.

        A caller with many clips gives a `scratch` of its own. Raises InputError for clips shorter than one window.
        """
        if waveform.shape[-1] < self.config.window_length:
            raise InputError(
                f"front end {self.name}: a clip of {waveform.shape[-1]} samples is shorter than one window",
                remedy=f"give clips of at least {self.config.window_length} samples at 16 kHz",
            )
        # one clip's frames stay in a CPU's cache, a whole batch's do not
        block = 1 if waveform.device.type == "cpu" else len(waveform)
        n_frames = self.config.n_frames(waveform.shape[-1])
        result = waveform.new_empty(len(waveform), n_frames, self.bins, dtype=torch.float32)
        scratch = Scratch() if scratch is None else scratch
        with torch.autocast(
            waveform.device.type, enabled=False
        ):  # single precision inside mixed precision, too
            for clips, rows in zip(waveform.float().split(block), result.split(block), strict=True):
                spectrum, frames = rows.tensor_split([self.config.spectrum_rows], dim=1)
                frames.copy_(self._log_energies(clips, scratch))
                if self.config.spectrum_rows:
                    spectrum.copy_(self._clip_spectrum(clips))
        return result

    def _clip_spectrum(self, waveform: torch.Tensor) -> torch.Tensor:
        """waveform [batch, samples] -> [batch, spectrum rows, bins]: one spectrum of the whole clip, read row by row.

        The mean energy in bands of equal width, however long the clip; a noise is at the level it has in the frames.
        """
        config = self.config
        energies = torch.fft.rfft(waveform * config.scale).abs().square()
        energies *= self.window.square().sum() / waveform.shape[-1]
        bands = nn.functional.adaptive_avg_pool1d(energies, config.spectrum_rows * config.bins)
        normalised = (bands.clamp_(min=config.floor).log_() - config.mean) / (2 * config.std)
        return normalised.view(len(waveform), config.spectrum_rows, config.bins)

    def _log_energies(self, waveform: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """waveform [batch, samples] -> [batch, frames, bins], in the scratch memory."""
        config = self.config
        frames = self._windowed(waveform, scratch)
        batch, n_frames = frames.shape[:2]
        parts = torch.view_as_real(torch.fft.rfft(frames))  # `out` would only add a copy
        parts.mul_(parts)
        if self.mel is None:
            energies = torch.sum(parts, -1, out=scratch.take("energies", parts.shape[:-1], parts))
        else:
            energies = self.mel(parts.view(batch * n_frames, -1), scratch).view(batch, n_frames, self.bins)
        return energies.clamp_(min=config.floor).log_().sub_(config.mean).div_(2 * config.std)

    def _windowed(self, waveform: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """Cut into frames and window them: [batch, samples] -> [batch, frames, n_fft], zeros after each window.

        Each rounding happens where Kaldi's does (mean off the frame, then the filter, then the window): in bins far
        below a frame's peak the rounding of float32 alone moves the logarithm by more than 1e-3.
        """
        config = self.config
        clip = torch.mul(waveform, config.scale, out=scratch.take("clip", waveform.shape, waveform))
        if config.subtract_clip_mean:
            clip -= clip.mean(dim=-1, keepdim=True)
        cut = clip.unfold(-1, config.window_length, config.hop)
        padded = scratch.take("padded", (*cut.shape[:2], config.n_fft), clip)
        padded[..., config.window_length :] = 0.0
        frames = padded[..., : config.window_length]
        if config.remove_dc:
            torch.sub(cut, cut.mean(dim=-1, keepdim=True), out=frames)
        else:
            frames.copy_(cut)
        if config.preemphasis:
            before = scratch.take("before", (*cut.shape[:2], config.window_length - 1), clip)
            torch.mul(frames[..., :-1], config.preemphasis, out=before)
            frames[..., 1:] -= before
            frames[..., 0] -= before[..., 0]
        frames.mul_(self.window)
        return padded


def front_end_config(name: str) -> FrontEndConfig:
    """The parameters of the front end called `name`; raises InputError for an unknown name."""
    if name not in FRONT_ENDS:
        raise InputError(f"front end {name!r} is unknown", remedy=f"choose one of: {', '.join(FRONT_ENDS)}")
    return FRONT_ENDS[name]


def build_front_end(name: str) -> FrontEnd:
    """Build the front end called `name`; raises InputError for an unknown name."""
    return FrontEnd(front_end_config(name))


class PaddedFrontEnd(FrontEnd):
    """An encoder's own front end: the same frames, padded at the end to a multiple of `pad_multiple` frames.

    Padding stands for a raw log energy of 0 before normalisation, as the published EAT code pads its input; a multiple
    of 64 frames turns the 998 frames of a 10-s clip into EAT's 1024. A multiple of 1 pads nothing (BEATs).
    """

    def __init__(self, config: FrontEndConfig, pad_multiple: int) -> None:
        super().__init__(config)
        self.pad_multiple = pad_multiple

    def forward(self, waveform: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
        """waveform [batch, samples] -> [batch, padded frames, bins] float32."""
        frames = super().forward(waveform, scratch)
        missing = -frames.shape[-2] % self.pad_multiple
        return nn.functional.pad(frames, (0, 0, 0, missing), value=self.pad_value)
