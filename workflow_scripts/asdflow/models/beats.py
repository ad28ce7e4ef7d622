"""BEATs (Chen et al. 2022): a deep-norm transformer over 16x16 patches with gated relative position bias.

The architecture and every constant follow the published model (microsoft/unilm); the code is our own. Dropout and layer
drop of its training recipe are left out: the adaptation methods here bring their own regularisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from asdflow.errors import InputError
from asdflow.models.encoder import Encoder

PATCH = 16
FIXED_OPTIONS = {
    "input_patch_size": PATCH, "conv_bias": False, "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True,
    "relative_position_embedding": True, "gru_rel_pos": True,
}  # fmt: skip
"""Options of a published `cfg` that this implementation takes for granted."""
SIZE_OPTIONS = {
    "encoder_embed_dim": "width", "encoder_layers": "depth", "encoder_attention_heads": "heads",
    "encoder_ffn_embed_dim": "feed_forward", "embed_dim": "patch_width", "conv_pos": "position_kernel",
    "conv_pos_groups": "position_groups", "num_buckets": "buckets", "max_distance": "max_distance",
}  # fmt: skip
"""Options of a published `cfg` that are sizes, and what they are called here."""
PUBLISHED_NAMES = {
    "layer_norm": "patch_norm", "post_extract_proj": "patch_projection", "encoder.pos_conv.0": "position_convolution",
    "encoder.layer_norm": "norm",
}  # fmt: skip
PUBLISHED_BLOCK_NAMES = {
    "self_attn.q_proj": "attn.q_proj", "self_attn.k_proj": "attn.k_proj", "self_attn.v_proj": "attn.v_proj",
    "self_attn.out_proj": "attn.proj", "self_attn.grep_linear": "attn.gate", "self_attn": "attn",
    "self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip


class GatedAttention(nn.Module):
    """Self-attention whose relative position bias is scaled by a gate that each query computes for each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.gate = nn.Linear(width // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x [batch, tokens, width], bias [heads, tokens, tokens] -> [batch, tokens, width]."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [batch, heads, tokens, width / heads]
        update, reset = self.gate(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, dim=-1)
        gate = update * (reset * self.grep_a - 1.0) + 2.0  # [batch, heads, tokens, 1]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=(gate * bias).to(q.dtype))
        return self.proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Post-norm block with deep norm (Wang et al. 2022): the residual is scaled up by `residual_scale`."""

    def __init__(self, width: int, heads: int, feed_forward: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.attn, self.norm1 = GatedAttention(width, heads), nn.LayerNorm(width)
        self.mlp, self.norm2 = FeedForward(width, feed_forward), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x * self.residual_scale + self.attn(x, bias))
        return self.norm2(x * self.residual_scale + self.mlp(x))


class BEATs(Encoder):
    """Encoder of log-mel patches: [batch, frames, 128] -> [batch, patches, width], frequency running fastest, no CLS.

    Frames beyond the last whole patch are dropped (10 s: 998 frames, 62 x 8 patches), as in the published model; clips
    are not padded. The defaults are the sizes of BEATs_iter3+.

    Parameters
    ----------
    width, depth, heads, feed_forward : sizes of the transformer.
    patch_width : width of a patch embedding before it is projected to `width`.
    position_kernel, position_groups : the convolution over tokens that gives positions.
    buckets, max_distance : relative positions are binned into so many buckets, logarithmic up to the largest distance.
    """

    architecture = "beats"

    def __init__(
        self,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        feed_forward: int = 3072,
        patch_width: int = 512,
        position_kernel: int = 128,
        position_groups: int = 16,
        buckets: int = 320,
        max_distance: int = 800,
        front_end: str = "beats_logmel",
    ) -> None:
        super().__init__(front_end, width, pad_multiple=1)
        self.depth, self.heads, self.feed_forward, self.patch_width = depth, heads, feed_forward, patch_width
        self.position_kernel, self.position_groups = position_kernel, position_groups
        self.buckets, self.max_distance = buckets, max_distance
        self.n_layers = depth
        self.patch_embedding = nn.Linear(PATCH * PATCH, patch_width, bias=False)
        self.patch_norm = nn.LayerNorm(patch_width)
        self.patch_projection = nn.Linear(patch_width, width) if patch_width != width else nn.Identity()
        padding = position_kernel // 2
        self.position_convolution = nn.Conv1d(
            width, width, position_kernel, padding=padding, groups=position_groups
        )
        self.norm = nn.LayerNorm(width)
        self.relative_bias = nn.Embedding(buckets, heads)
        scale = (2.0 * depth) ** 0.25
        self.blocks = nn.ModuleList(Block(width, heads, feed_forward, scale) for _ in range(depth))
        self._initialise()

    def _initialise(self) -> None:
        """Deep norm's initialisation: Xavier, with values, outputs and feed-forward scaled by (8 depth)^-1/4."""
        gain = (8.0 * self.depth) ** -0.25
        for block in self.blocks:
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Linear):
                    scaled = name.endswith(("v_proj", "attn.proj", "fc1", "fc2"))
                    nn.init.xavier_normal_(layer.weight, gain if scaled else 1.0)
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(
            self.position_convolution.weight, std=math.sqrt(4.0 / (self.position_kernel * self.width))
        )

    def sizes(self) -> dict[str, Any]:
        """The keyword arguments (beside `front_end`) that build this encoder again."""
        return {name: getattr(self, name) for name in SIZE_OPTIONS.values()}

    def forward(
        self, log_mel: torch.Tensor, layers: Sequence[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """log_mel [batch, frames, 128] -> [batch, patches, width], or the outputs of the blocks in `layers`."""
        wanted = None if layers is None else self.layer_numbers(layers)
        x = self.patch_projection(self.patch_norm(self.patch_embedding(cut_patches(log_mel))))
        x = self.norm(x + self._positions(x))
        bias = self.position_bias(x.shape[1])
        outputs = []
        for block in self.blocks:
            x = block(x, bias)
            outputs.append(x)
        return x if wanted is None else [outputs[layer] for layer in wanted]

    def _positions(self, x: torch.Tensor) -> torch.Tensor:
        """Convolution over tokens, [batch, tokens, width] to the same; an even kernel gives one token too many."""
        return F.gelu(self.position_convolution(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)

    def position_bias(self, tokens: int) -> torch.Tensor:
        """The relative position bias before gating, [heads, tokens, tokens] (query, key); one for all blocks."""
        distance = torch.arange(1 - tokens, tokens, device=self.relative_bias.weight.device)  # key - query
        values = self.relative_bias(relative_buckets(distance, self.buckets, self.max_distance))
        return values.T.unfold(1, tokens, 1).flip(1)

    @classmethod
    def from_published(cls, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> BEATs:
        """Build the encoder of a published checkpoint from its `cfg` and `model`.

        A classifier (`predictor`) is dropped; the weight norm of the position convolution is multiplied out. Raises
        InputError naming every option that this BEATs lacks and every missing, unknown or misshapen key.
        """
        encoder = cls(**_published_sizes(config))
        own = encoder.state_dict()
        problems: list[str] = []
        state: dict[str, torch.Tensor] = {}
        origin: dict[str, str] = {}
        for name, key, tensor in _translate(weights):
            if name in state and not torch.equal(state[name], tensor):
                problems.append(f"{key} differs from {origin[name]}, with which it is shared")
            state[name], origin[name] = tensor, key
            if name not in own:
                problems.append(f"unknown key: {key}")
            elif tensor.shape != own[name].shape:
                problems.append(
                    f"{key} has shape {list(weights[key].shape)}, which does not fit {list(own[name].shape)}"
                )
            elif not torch.isfinite(tensor).all():
                problems.append(f"{key} holds values that are not finite")
        problems += [f"missing key: {_published_name(name)}" for name in own if name not in state]
        if problems:
            raise InputError(
                "this is not a whole BEATs checkpoint", problems, "fetch the published file again"
            )
        encoder.load_state_dict(state)
        return encoder


def cut_patches(log_mel: torch.Tensor) -> torch.Tensor:
    """[batch, frames, bins] -> [batch, patches, 256], frequency running fastest; a last part of a patch is dropped.

    Raises InputError for clips shorter than one patch.
    """
    batch, frames, bins = log_mel.shape
    if frames < PATCH:
        raise InputError(
            f"BEATs cannot take a log-mel of {frames} frames",
            remedy=f"give clips of at least {PATCH} frames (0.18 s)",
        )
    whole = log_mel[:, : frames // PATCH * PATCH, : bins // PATCH * PATCH]
    patches = whole.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH)).transpose(2, 3)
    return patches.reshape(batch, -1, PATCH * PATCH)


def relative_buckets(distance: torch.Tensor, buckets: int, max_distance: int) -> torch.Tensor:
    """Bin relative positions (T5, Raffel et al. 2020): half the buckets per sign, half of these exact, then logarithmic."""
    per_sign = buckets // 2
    exact = per_sign // 2
    size = distance.abs()
    share = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (per_sign - exact)).long()).clamp(max=per_sign - 1)
    return (distance > 0).long() * per_sign + torch.where(size < exact, size, far)


def _published_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our sizes from a published `cfg`; raises InputError for variants that this BEATs does not have."""
    problems = [f"cfg lacks {key}" for key in SIZE_OPTIONS if key not in config]
    problems += [
        f"cfg: {key} is {config[key]}, only {value} is supported"
        for key, value in FIXED_OPTIONS.items()
        if key in config and config[key] != value
    ]
    if problems:
        raise InputError(
            "this is not a BEATs checkpoint that asdflow can read",
            problems,
            "take BEATs_iter3_plus_AS2M.pt as published",
        )
    return {ours: config[theirs] for theirs, ours in SIZE_OPTIONS.items()}


def _translate(weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield (our name, published key, tensor) for every published tensor that belongs to the encoder."""
    for key, tensor in weights.items():
        module, _, leaf = key.rpartition(".")
        if module == "predictor" or key == "encoder.pos_conv.0.weight_g":
            continue
        if key == "encoder.pos_conv.0.weight_v":
            yield "position_convolution.weight", key, _without_weight_norm(tensor, weights)
        elif key == "patch_embedding.weight":
            yield "patch_embedding.weight", key, tensor.flatten(1)
        elif leaf == "weight" and module.endswith("self_attn.relative_attention_bias"):
            yield "relative_bias.weight", key, tensor  # stored with each block, one table for all of them
        elif key.startswith("encoder.layers."):
            number, _, part = module.removeprefix("encoder.layers.").partition(".")
            yield f"blocks.{number}.{PUBLISHED_BLOCK_NAMES.get(part, part)}.{leaf}", key, tensor
        else:
            yield f"{PUBLISHED_NAMES.get(module, module)}.{leaf}", key, tensor


def _without_weight_norm(direction: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The position convolution's weights; its weight norm keeps one length per tap (the last axis)."""
    length = weights.get("encoder.pos_conv.0.weight_g")
    if length is None or length.numel() != direction.shape[-1]:
        raise InputError(
            "this is not a whole BEATs checkpoint",
            ["missing or misshapen key: encoder.pos_conv.0.weight_g"],
            "fetch the published file again",
        )
    return direction * (length / direction.norm(dim=(0, 1), keepdim=True))


def _published_name(name: str) -> str:
    """The published key of one of our names, for messages."""
    module, _, leaf = name.rpartition(".")
    if module.startswith("blocks."):
        number, _, part = module.removeprefix("blocks.").partition(".")
        published = {ours: theirs for theirs, ours in PUBLISHED_BLOCK_NAMES.items()}
        return f"encoder.layers.{number}.{published.get(part, part)}.{leaf}"
    if module == "relative_bias":
        return "encoder.layers.0.self_attn.relative_attention_bias.weight"
    if name == "position_convolution.weight":
        return "encoder.pos_conv.0.weight_v"
    return (
        f"{ {ours: theirs for theirs, ours in PUBLISHED_NAMES.items()}.get(module, module) }.{leaf}".strip()
    )
