"""EAT's training objective: a student that sees few patches predicts what its slow-moving teacher sees in all of them."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asdflow.models.eat import EAT, Block
from asdflow.training.masking import Masks

MASK_NOISE = 0.01
"""Standard deviation of what stands in for hidden patches in the decoder (published recipe)."""
INSTANCE_EPS = 1e-5


class Decoder(nn.Module):
    """Light decoder over the patch grid: grouped convolutions with residuals, then a projection of the hidden patches.

    Each layer is convolution, normalisation over channels without parameters, GELU, plus its input (EAT's 2-D decoder:
    6 layers, 16 groups, kernel 3).
    """

    def __init__(self, width: int, layers: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolutions = [
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups) for _ in range(layers)
        ]
        for layer in convolutions:  # [N, times, frequencies, width] in memory: no copies between layers
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        self.layers = nn.ModuleList(convolutions)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, grid: tuple[int, int], hidden_rows: Tensor) -> Tensor:
        """x [N, patches, width], rows of hidden patches in [N * patches] -> predictions [rows, width]."""
        n, patches, width = x.shape
        x = x.view(n, *grid, width)
        for layer in self.layers:
            y = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = x + F.gelu(F.layer_norm(y, (width,)))
        return self.proj(F.embedding(hidden_rows, x.reshape(n * patches, width)))


class Prediction(NamedTuple):
    """What the student made of a batch: predictions of hidden patches [clips * masks * hidden, width], CLS [clips * masks, width]."""

    patches: Tensor
    cls: Tensor


class Student(nn.Module):
    """The encoder in training and its decoder."""

    def __init__(self, encoder: EAT, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, log_mel: Tensor, masks: Masks, noise: Tensor) -> Prediction:
        """Encode the visible patches only, all masks of all clips as one batch, and predict the hidden ones.

        Parameters
        ----------
        log_mel : [clips, frames, bins].
        masks : clips * masks of them, those of one clip side by side.
        noise : [masks, patches, width], what the decoder gets in place of hidden patches (the same for every clip).
        """
        tokens = self.encoder.patches(log_mel)
        clips, patches, width = tokens.shape
        n, kept = masks.kept.shape
        rows = masks.kept + _first_rows(n, n // clips, patches, masks.kept.device)
        visible = F.embedding(rows, tokens.reshape(clips * patches, width))  # [n, kept, width]
        x = self.encoder.with_cls(visible)
        for block in self.encoder.blocks:
            x = block(x)
        own_rows = _first_rows(n, 1, patches, masks.kept.device)
        canvas = noise.to(x.dtype).repeat(clips, 1, 1).view(n * patches, width)
        canvas = canvas.index_copy_(0, (masks.kept + own_rows).view(-1), x[:, 1:].reshape(n * kept, width))
        hidden_rows = (masks.hidden + own_rows).view(-1)
        grid = self.encoder.grid(log_mel.shape[1])
        return Prediction(self.decoder(canvas.view(n, patches, width), grid, hidden_rows), x[:, 0])


def _first_rows(n: int, per_clip: int, patches: int, device: torch.device) -> Tensor:
    """Row of the first patch of each mask's clip when `per_clip` masks share one, int64 [n, 1]."""
    return (torch.arange(n, device=device) // per_clip * patches)[:, None]


def mask_noise(masks: int, patches: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Noise [masks, patches, width] that stands in for hidden patches; depends on the seed only (and the kind of device)."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(masks, patches, width, generator=generator, device=device) * MASK_NOISE


def make_teacher(encoder: EAT) -> EAT:
    """A copy of the encoder, patch embedding included, that no gradient reaches."""
    return copy.deepcopy(encoder).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: EAT, encoder: EAT, decay: float) -> None:
    """Move the teacher's weights towards the student's: teacher = decay * teacher + (1 - decay) * student."""
    torch._foreach_lerp_(list(teacher.parameters()), list(encoder.parameters()), 1.0 - decay)


@torch.no_grad()
def layer_targets(teacher: EAT, log_mel: Tensor) -> Tensor:
    """What the student has to predict: [clips, frames, bins] -> float32 [clips, patches, width], one pass for all masks.

    The feed-forward outputs of all blocks before their residual sums, without CLS, each normalised per clip and channel
    over the patches, averaged over the blocks, then normalised over the channels.
    """
    x = teacher.with_cls(teacher.patches(log_mel))
    total = torch.zeros((), device=log_mel.device)
    for block in teacher.blocks:
        assert isinstance(block, Block)
        x, feed_forward = block.with_feed_forward(x)
        layer = feed_forward[:, 1:].float()
        variance, mean = torch.var_mean(layer, dim=1, correction=0, keepdim=True)
        total = total + (layer - mean) * (variance + INSTANCE_EPS).rsqrt()
    return F.layer_norm(total / len(teacher.blocks), total.shape[-1:])


class Losses(NamedTuple):
    """Frame loss (hidden patches) and utterance loss (CLS), each the mean of squared distances over sqrt(width)."""

    frame: Tensor
    utterance: Tensor


def distillation_losses(prediction: Prediction, targets: Tensor, masks: Masks) -> Losses:
    """Squared error of hidden patches against their targets and of CLS against the clip's mean target.

    `targets` [clips, patches, width] serve all masks of a clip. Both are sums over channels over sqrt(width), averaged
    over the vectors compared: the published loss for patches. (The published code sums the CLS part over the batch
    instead of averaging it; the paper's weight of 1 is of averages, and so is ours.)
    """
    clips, patches, width = targets.shape
    n = len(masks.hidden)
    rows = masks.hidden + _first_rows(n, n // clips, patches, targets.device)
    wanted = targets.reshape(clips * patches, width)[rows.view(-1)]
    scale = 1.0 / math.sqrt(width)
    frame = F.mse_loss(prediction.patches.float(), wanted) * width * scale
    clip_targets = targets.mean(dim=1).repeat_interleave(n // clips, dim=0)
    utterance = F.mse_loss(prediction.cls.float(), clip_targets) * width * scale
    return Losses(frame, utterance)


@torch.no_grad()
def health(prediction: Prediction, targets: Tensor, masks: Masks) -> dict[str, Tensor]:
    """Figures that show collapse, from the first mask of each clip: scalars on the targets' device.

    similarity : mean cosine of predictions and targets of hidden patches.
    target_variance, prediction_variance : spread of a channel over patches and clips (standard deviation, mean over
        channels); near zero when all patches look alike to the teacher or to the student.
    """
    clips, patches, width = targets.shape
    hidden = masks.hidden.view(clips, -1, masks.hidden.shape[1])[:, 0]
    wanted = targets.reshape(clips * patches, width)[
        (hidden + _first_rows(clips, 1, patches, targets.device)).view(-1)
    ]
    guessed = prediction.patches.view(clips, -1, hidden.shape[1], width)[:, 0].reshape(-1, width).float()
    return {
        "similarity": F.cosine_similarity(guessed, wanted, dim=1).mean(),
        "target_variance": wanted.std(dim=0).mean(),
        "prediction_variance": guessed.std(dim=0).mean(),
    }


def step_flops(encoder: EAT, decoder: Decoder, frames: int, kept: int, masks: int) -> float:
    """Floating-point operations of one update per clip, counted from the matrix products (a multiply-add is two).

    Teacher: one forward pass over all patches. Student: forward and backward (three forward passes' worth) over the
    kept patches of every mask, with the decoder over the whole grid and its projection over the hidden patches. The
    patch embedding is computed once per clip by each. Element-wise work is not counted.
    """
    times, frequencies = encoder.grid(frames)
    patches, width = times * frequencies, encoder.width
    embedding = 2 * patches * width * encoder.patch**2

    def transformer(tokens: int) -> float:
        linear = 2 * tokens * width**2 * (4 + 2 * encoder.mlp_ratio)
        return encoder.depth * (linear + 4 * tokens**2 * width)

    first = decoder.layers[0]
    assert isinstance(first, nn.Conv2d)
    convolutions = len(decoder.layers) * 2 * patches * first.weight.numel()
    projection = 2 * (patches - kept) * width**2
    student = embedding + masks * (transformer(kept + 1) + convolutions + projection)
    return embedding + transformer(patches + 1) + 3 * student
