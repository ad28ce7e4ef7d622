"""Inverse block masks: which patches the student sees, drawn for all clips and masks of a batch at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SPARE_SHARE = 0.07
"""Blocks are drawn for this share of patches more than are kept, for blocks overlap (the published recipe's value)."""


class Masks(NamedTuple):
    """Patches of each mask, both ascending: `kept` int64 [n, k] that the student sees, `hidden` int64 [n, patches - k]."""

    kept: Tensor
    hidden: Tensor

    def part(self, first: int, last: int) -> Masks:
        """The masks numbered first to last - 1."""
        return Masks(self.kept[first:last], self.hidden[first:last])

    def to(self, device: torch.device) -> Masks:
        """The same masks on `device`, without waiting for the copy."""
        return Masks(self.kept.to(device, non_blocking=True), self.hidden.to(device, non_blocking=True))

    def pin(self) -> Masks:
        """The same masks in page-locked memory."""
        return Masks(self.kept.pin_memory(), self.hidden.pin_memory())


def kept_patches(patches: int, ratio: float) -> int:
    """How many of `patches` the student sees when a share `ratio` is hidden: at least one, and never all."""
    return min(max(1, int(patches * (1.0 - ratio))), patches - 1)


def inverse_block_masks(
    n: int, grid: tuple[int, int], ratio: float, block: int, generator: torch.Generator
) -> Masks:
    """Draw `n` masks over a grid of (times, frequencies) patches that all keep equally many patches.

    Squares of `block` x `block` patches around random centres are kept (cut off at the borders) and the rest is
    hidden; a random choice among the covered patches, or among the others, makes the number come out exactly.
    Source: inverse block masking of data2vec 2.0 in EAT's form, here without a loop over masks.
    """
    times, frequencies = grid
    patches = times * frequencies
    keep = kept_patches(patches, ratio)
    blocks = max(1, int(patches * (1.0 - ratio + SPARE_SHARE) / block**2))
    centres = torch.randint(patches, (n, blocks), generator=generator)
    near_time = _near(centres // frequencies, times, block)  # [n, blocks, times]
    near_frequency = _near(centres % frequencies, frequencies, block)  # [n, blocks, frequencies]
    covered = (near_time.transpose(1, 2) @ near_frequency).clamp_(max=1.0).view(n, patches)
    order = covered + torch.rand(n, patches, generator=generator)
    kept = order.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values
    seen = torch.zeros(n, patches, dtype=torch.bool).scatter_(1, kept, True)
    hidden = (~seen).nonzero()[:, 1].view(n, patches - keep)
    return Masks(kept, hidden)


def _near(centres: Tensor, length: int, block: int) -> Tensor:
    """1.0 where a position on an axis lies in the block around a centre: int [n, blocks] -> [n, blocks, length]."""
    distance = torch.arange(length) - centres[..., None]
    return ((distance >= -(block // 2)) & (distance < block - block // 2)).float()


def step_seed(seed: int, step: int, purpose: str) -> int:
    """A seed below 2^63 for one purpose in one update: whatever is drawn depends on these three alone."""
    entropy = [seed, step, *purpose.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
