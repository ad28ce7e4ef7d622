"""What every trained system offers scoring and detection: clips' cached features in, one embedding per clip out; and its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from asdflow.errors import InputError
from asdflow.weights import read_weights, write_weights

FORMAT, VERSION = "asdflow-model", 1
MODEL, DESCRIPTION = "model.safetensors", "model.json"


class EmbeddingModel(ABC):
    """A trained system up to its embeddings. `front_end` names the features it takes, `machines` those it was trained on."""

    front_end: str
    machines: list[str]

    @abstractmethod
    def embed(self, frames: Sequence[np.ndarray], machines: Sequence[str]) -> np.ndarray:
        """Features of clips, float16 [n_frames, bins] each, and their machines -> embeddings float32 [n, d].

        Raises InputError for machines that it needs to have been trained on and was not.
        """


def write_model(directory: Path, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors and model.json into `directory`, each atomically."""
    whole = {"format": FORMAT, "version": VERSION, **description}
    write_weights(directory / MODEL, directory / DESCRIPTION, weights, whole)


def read_model(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights that `write_model` wrote; raises InputError for missing, foreign or damaged files."""
    path, remedy = Path(directory) / DESCRIPTION, "run the finetune step again"
    description, weights = read_weights(Path(directory) / MODEL, path, remedy)
    if description.get("format") != FORMAT or description.get("version") != VERSION:
        raise InputError(f"{path} is not of a form that this asdflow reads", remedy=remedy)
    return description, weights
