"""What changes from update to update by rule: the learning rate and the teacher's decay."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of update `step` (counted from 0) of `steps`: a linear rise to `peak`, then half a cosine to zero.

    The first update already has a rate above zero, the last one too.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def annealed_decay(update: int, start: float, end: float, anneal_steps: int) -> float:
    """The teacher's decay after `update` updates: linear from `start` to `end` over `anneal_steps`, then constant.

    Source: data2vec 2.0, as EAT uses it (0.9998 to 0.99999 over 100,000 updates).
    """
    return start + (end - start) * min(1.0, update / anneal_steps)
