"""Adaptation of a frozen encoder: LoRA, fully-connected LoRA and the machine-aware group adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asdflow.errors import InputError

TARGETS = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
"""Linear layers of a block by the names that recipes use; EAT has `attn.qkv`, BEATs three projections."""


class LowRankLinear(nn.Module):
    """A frozen linear layer plus n parallel low-rank branches joined by a learnable n x n connection matrix.

    y = W x + b + (alpha / rank) sum_j B_j sum_i w_ji A_i x. The connections start as the identity and each B at zero,
    so at first the layer is the base's. With n = 1 the connection is fixed at one: exactly LoRA (Hu et al. 2022).
    Fully-connected LoRA is named in arXiv 2508.12230; this formula is our reading of it. Because the connections are
    linear the update can always be merged into the base's weight.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, branches: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(branches, rank, base.in_features))  # A_i
        self.up = nn.Parameter(torch.zeros(branches, base.out_features, rank))  # B_j
        nn.init.uniform_(
            self.down, -1 / math.sqrt(base.in_features), 1 / math.sqrt(base.in_features), generator
        )
        self.connection = nn.Parameter(torch.eye(branches), requires_grad=branches > 1)  # w_ji

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        inner = torch.einsum("nri,...i->...nr", self.down, x)
        joined = torch.einsum("mn,...nr->...mr", self.connection, inner)
        return self.base(x) + self.scale * torch.einsum("mor,...mr->...o", self.up, joined)

    def merged(self) -> nn.Linear:
        """A plain linear layer [out_features, in_features] that gives the same output."""
        update = torch.einsum("mor,mn,nri->oi", self.up, self.connection, self.down)
        linear = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        linear.to(self.base.weight.device, self.base.weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.base.weight + self.scale * update)
            if self.base.bias is not None:
                linear.bias.copy_(self.base.bias)
        return linear


def add_low_rank(encoder: nn.Module, settings: Mapping[str, Any], branches: int, seed: int) -> int:
    """Freeze `encoder` and wrap the target layers of its blocks; returns how many layers were wrapped.

    Raises InputError where the encoder has no transformer blocks with such layers.
    """
    encoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    wrapped = 0
    for parent, name, linear in list(_targets(encoder, settings["targets"])):
        setattr(parent, name, LowRankLinear(linear, settings["rank"], settings["alpha"], branches, generator))
        wrapped += 1
    if not wrapped:
        raise InputError(
            f"LoRA finds no layers {settings['targets']} to adapt in a {type(encoder).__name__} encoder",
            remedy="choose an encoder with transformer blocks (EAT, BEATs), or tuning.method full or none",
        )
    return wrapped


def merge_low_rank(encoder: nn.Module) -> None:
    """Replace every low-rank layer by its merged plain layer, for inference at the base's speed."""
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(module, name, child.merged())


def _targets(encoder: nn.Module, targets: Sequence[str]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for block in getattr(encoder, "blocks", ()):
        for path in (path for target in targets for path in TARGETS[target]):
            holder, _, name = path.rpartition(".")
            parent = getattr(block, holder, None)
            linear = getattr(parent, name, None)
            if isinstance(parent, nn.Module) and isinstance(linear, nn.Linear):
                yield parent, name, linear


class GroupAdapters(nn.Module):
    """Machine-aware group adapter: G bottleneck adapters after every block, mixed by a gate that depends on the machine.

    After block b: x + sum_g gate[machine, g] up_bg(gelu(down_bg(x))). `up` starts at zero, so at first nothing changes.
    Named in arXiv 2508.12230; the form is our reading. Set `machine` (int64 [B], -1: mean gate) before a forward pass.
    """

    machine: Tensor

    def __init__(
        self, width: int, blocks: int, machines: int, groups: int, bottleneck: int, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.empty(blocks, groups, bottleneck, width))
        self.up = nn.Parameter(torch.zeros(blocks, groups, width, bottleneck))
        self.gate = nn.Parameter(torch.empty(machines, groups))
        nn.init.normal_(self.down, std=1 / math.sqrt(width), generator=generator)
        nn.init.normal_(self.gate, std=0.02, generator=generator)
        self.register_buffer("machine", torch.zeros(0, dtype=torch.int64), persistent=False)

    def gates(self) -> Tensor:
        """Share of every group for the machines at hand [B, G]; each row sums to one."""
        gate = self.gate.softmax(1)
        unseen = (self.machine < 0).unsqueeze(1)
        return torch.where(unseen, gate.mean(0), gate[self.machine.clamp(min=0)])

    def change(self, block: int, x: Tensor) -> Tensor:
        """Output x [B, tokens, width] of `block` -> the same plus the adapters' share."""
        inner = nn.functional.gelu(torch.einsum("ghw,btw->btgh", self.down[block], x))
        return x + torch.einsum("bg,gwh,btgh->btw", self.gates().to(inner.dtype), self.up[block], inner)

    def attach(self, encoder: nn.Module) -> None:
        """Let every block's output pass through `change`; blocks that return a tuple are changed in its first member."""
        for number, block in enumerate(getattr(encoder, "blocks", ())):
            block.register_forward_hook(self._hook(number))

    def _hook(self, block: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return self.change(block, output[0]), *output[1:]
            return self.change(block, output)

        return hook


def build_group_adapters(
    encoder: nn.Module, width: int, machines: int, settings: Mapping[str, Any], seed: int
) -> GroupAdapters:
    """Attach group adapters (settings: groups, bottleneck) for `machines` machines to the encoder's blocks.

    Raises InputError where the encoder has no transformer blocks.
    """
    blocks = len(getattr(encoder, "blocks", ()))
    if not blocks:
        raise InputError(
            f"the machine-aware group adapter needs transformer blocks; a {type(encoder).__name__} encoder has none",
            remedy="choose an EAT or BEATs encoder, or set tuning.adapter.groups to 0",
        )
    adapters = GroupAdapters(width, blocks, machines, settings["groups"], settings["bottleneck"], seed)
    adapters.attach(encoder)
    return adapters
