"""The encoder without weights: its tokens are the front end's frames; pooled, they are log-mel statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from asdflow.features.front_end import front_end_config
from asdflow.models.encoder import Encoder


class LogMelStatistics(Encoder):
    """Tokens are frames: [batch, frames, bins] to the same, so width = bins.

    With mean + deviation pooling a clip's embedding is the mean and the standard deviation of each bin over time: the
    baseline that small data sets make hard to beat.
    """

    architecture = "logmel_statistics"
    n_layers = 1

    def __init__(self, *, front_end: str = "eat_logmel") -> None:
        super().__init__(front_end, width=front_end_config(front_end).bins, pad_multiple=1)

    def sizes(self) -> dict[str, Any]:
        """No sizes: everything follows from the front end."""
        return {}

    def forward(
        self, log_mel: torch.Tensor, layers: Sequence[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """log_mel [batch, frames, bins] -> the same tensor; its one layer can be asked for."""
        return log_mel if layers is None else [log_mel for _ in self.layer_numbers(layers)]
