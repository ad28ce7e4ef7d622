"""EAT, the Efficient Audio Transformer: patches of log-mel, fixed positions, CLS token, post-norm blocks.

Architecture of Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer" (IJCAI 2024);
`EAT.from_published` reads the layout of the weights on Hugging Face. Nothing here knows how the encoder is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asdflow.errors import InputError
from asdflow.models.encoder import Encoder

NORM_EPS = 1e-6
POSITION_TOLERANCE = 1e-4
POSITIONS_KEY = "fixed_positional_encoder.positions"
PUBLISHED_NAMES = {
    "extra_tokens": "cls_token",
    "local_encoder.proj.weight": "patch_embed.proj.weight",
    "local_encoder.proj.bias": "patch_embed.proj.bias",
}
"""Published names (after `model.`) whose tensors are called otherwise here."""


def sincos_positions(times: int, frequencies: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions, float32 [times * frequencies, width], frequency running fastest.

    The first half of the channels encodes the frequency index, the second half the time index, each as sines then
    cosines of the index times 10000^-(k / (width / 4)). Tables of different `times` agree on their common part, so
    clips of every length share them. `width` is a multiple of 4.
    """
    rates = 10000.0 ** -(np.arange(width // 4) / (width / 4))

    def one_axis(index: np.ndarray) -> np.ndarray:
        angle = index[:, None] * rates
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    frequency = one_axis(np.tile(np.arange(frequencies), times))
    time = one_axis(np.repeat(np.arange(times), frequencies))
    return torch.from_numpy(np.concatenate([frequency, time], axis=1).astype(np.float32))


class Attention(nn.Module):
    """Multi-head self-attention, [N, tokens, width] -> the same, by PyTorch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """`visible`, bool broadcastable to [N, heads, tokens, tokens]: which keys a query may see (default: all)."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, tokens, width / heads]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, width))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Post-norm transformer block: normalisation follows each residual sum."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = FeedForward(width, int(width * mlp_ratio))
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)

    def with_feed_forward(self, x: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the block's output and its feed-forward output before the residual sum, EAT's training target."""
        x = self.norm1(x + self.attn(x, visible))
        feed_forward = self.mlp(x)
        return self.norm2(x + feed_forward), feed_forward

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        return self.with_feed_forward(x, visible)[0]


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of the log-mel through one matrix product."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(patch * patch, width)

    def forward(self, log_mel: Tensor) -> Tensor:
        """[B, T, bins] -> [B, T / patch * bins / patch, width], frequency running fastest."""
        b, frames, bins = log_mel.shape
        p = self.patch
        patches = log_mel.view(b, frames // p, p, bins // p, p).transpose(2, 3)
        return self.proj(patches.reshape(b, -1, p * p))


class EAT(Encoder):
    """Encoder of log-mel patches: [B, frames, bins] -> [B, 1 + patches, width], CLS first.

    Parameters
    ----------
    width, depth, heads, mlp_ratio : sizes of the transformer (base: 768, 12, 12, 4; large: 1024, 24, 16, 4).
    patch : side of the square patches, in frames and bins.
    max_frames : longest input the position table covers (the published one reaches two minutes).
    pad_multiple : clips are padded to a multiple of so many frames; 64 turns 10 s into EAT's 1024 frames.
    """

    architecture = "eat"
    has_cls = True
    positions: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        patch: int = 16,
        bins: int = 128,
        max_frames: int = 12288,
        pad_multiple: int = 64,
        front_end: str = "eat_logmel",
    ) -> None:
        _check_sizes(width, heads, patch, bins, pad_multiple)
        super().__init__(front_end, width, pad_multiple)
        self.depth, self.heads, self.mlp_ratio = depth, heads, mlp_ratio
        self.patch, self.bins, self.max_frames = patch, bins, max_frames
        self.n_layers = depth
        self.patch_embed = PatchEmbedding(patch, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pre_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        table = sincos_positions(max_frames // patch, bins // patch, width)
        self.register_buffer("positions", table, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Start as EAT does: normal 0.02 in the transformer, Xavier in the patch embedding, a unit normal CLS."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight)
        nn.init.normal_(self.cls_token)

    def sizes(self) -> dict[str, Any]:
        """The keyword arguments (beside `front_end`) that build this encoder again."""
        names = ("width", "depth", "heads", "mlp_ratio", "patch", "bins", "max_frames", "pad_multiple")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_published(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> EAT:
        """Build the encoder of a published checkpoint from its config.json and its tensors `model.*`.

        The fixed positions are compared with ours and dropped, a classification head is dropped. Raises InputError
        naming every option that this EAT lacks, every missing, unknown or misshapen key, and positions that are not
        the sine-cosine table.
        """
        encoder = cls(**_published_sizes(config))
        own = encoder.state_dict()
        problems, state = [], {}
        for key, tensor in weights.items():
            name = key.removeprefix("model.")
            if name == POSITIONS_KEY:
                problems += _position_problems(tensor, encoder.positions, key)
            elif not name.startswith(("head.", "fc_norm.")):
                name = PUBLISHED_NAMES.get(name, name)
                # the convolution [width, 1, 16, 16] is our matrix [width, 256]
                state[name] = tensor.flatten(1) if name == "patch_embed.proj.weight" else tensor
                problems += _tensor_problems(tensor, state[name], own.get(name), key)
        published = {ours: theirs for theirs, ours in PUBLISHED_NAMES.items()}
        problems += [f"missing key: model.{published.get(name, name)}" for name in own if name not in state]
        if problems:
            raise InputError("this is not a whole EAT checkpoint", problems, "fetch the published file again")
        encoder.load_state_dict(state)
        return encoder

    def grid(self, frames: int) -> tuple[int, int]:
        """Return how many patches there are in time and in frequency for clips of `frames` frames."""
        return frames // self.patch, self.bins // self.patch

    def patches(self, log_mel: Tensor) -> Tensor:
        """Embed patches and add their positions: [B, frames, bins] -> [B, patches, width], without CLS.

        Raises InputError for bins other than the encoder's, frames that are no multiple of `patch`, or too many.
        """
        frames, bins = log_mel.shape[1:]
        if bins != self.bins or frames % self.patch or not 0 < frames <= self.max_frames:
            raise InputError(
                f"EAT cannot take a log-mel of {frames} frames x {bins} bins",
                [
                    f"it wants a multiple of {self.patch} frames, at most {self.max_frames}, and {self.bins} bins"
                ],
                "pad the clips (features.store.collate) or take the encoder's own front end",
            )
        x = self.patch_embed(log_mel)
        return x + self.positions[: x.shape[1]].to(x.dtype)

    def with_cls(self, patches: Tensor) -> Tensor:
        """Put the CLS token first and normalise: [N, patches, width] -> [N, 1 + patches, width]."""
        cls = self.cls_token.to(patches.dtype).expand(len(patches), -1, -1)
        return self.pre_norm(torch.cat([cls, patches], dim=1))

    def forward(self, log_mel: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Encode: [B, frames, bins] -> [B, 1 + patches, width], or a list of the outputs of the blocks in `layers`.

        Blocks count from 0, negative numbers from the end (-1 is the last).
        """
        wanted = None if layers is None else self.layer_numbers(layers)
        x = self.with_cls(self.patches(log_mel))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return x if wanted is None else [outputs[layer] for layer in wanted]


def _check_sizes(width: int, heads: int, patch: int, bins: int, pad_multiple: int) -> None:
    problems = []
    if width % 4:
        problems.append(f"width {width} is no multiple of 4 (2-D sine-cosine positions need it)")
    if width % heads:
        problems.append(f"width {width} is no multiple of heads {heads}")
    if bins % patch:
        problems.append(f"bins {bins} is no multiple of patch {patch}")
    if pad_multiple % patch:
        problems.append(f"pad_multiple {pad_multiple} is no multiple of patch {patch}")
    if problems:
        raise InputError(
            "the sizes of an EAT encoder do not fit together", problems, "mend its architecture entry"
        )


def _published_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our sizes from a published config.json; raises InputError for variants that this EAT does not have."""
    wanted = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "mel_bins", "max_length")
    missing = [f"config.json lacks {key}" for key in wanted if key not in config]
    fixed: dict[str, Any] = {
        "layer_norm_first": False,
        "qkv_bias": True,
        "norm_affine": True,
        "norm_eps": NORM_EPS,
        "in_chans": 1,
    }
    fixed |= {"fixed_positions": True, "stride": config.get("patch_size")}
    other = [
        f"config.json: {key} is {config[key]}, only {value} is supported"
        for key, value in fixed.items()
        if key in config and config[key] != value
    ]
    if missing or other:
        raise InputError(
            "this is not an EAT checkpoint that asdflow can read",
            missing + other,
            "take EAT-base_epoch30_pretrain or EAT-large_epoch20_pretrain as published",
        )
    return {
        "width": config["embed_dim"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "patch": config["patch_size"],
        "bins": config["mel_bins"],
        "max_frames": config["max_length"] * config["patch_size"],
    }


def _tensor_problems(published: Tensor, tensor: Tensor, own: Tensor | None, key: str) -> list[str]:
    if own is None:
        return [f"unknown key: {key}"]
    if tensor.shape != own.shape:
        return [f"{key} has shape {list(published.shape)}, which does not fit {list(own.shape)}"]
    if not torch.isfinite(tensor).all():
        return [f"{key} holds values that are not finite"]
    return []


def _position_problems(published: Tensor, table: Tensor, key: str) -> list[str]:
    if published.shape != (1, *table.shape):
        return [f"{key} has shape {list(published.shape)}, expected {[1, *table.shape]}"]
    difference = (published[0].float() - table).abs().max().item()
    if difference < POSITION_TOLERANCE:
        return []
    return [f"{key} differs from the fixed sine-cosine positions by up to {difference:.2g}"]
