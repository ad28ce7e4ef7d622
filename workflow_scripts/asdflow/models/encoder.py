"""What every encoder is: the base class, the registry of architectures, building, saving."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from asdflow.errors import InputError
from asdflow.features.front_end import PaddedFrontEnd, front_end_config
from asdflow.weights import write_weights

ARCHITECTURES: dict[str, str] = {
    "eat": "asdflow.models.eat:EAT",
    "beats": "asdflow.models.beats:BEATs",
    "stft_cnn": "asdflow.models.stft_cnn:STFTCNN",
    "logmel_statistics": "asdflow.models.logmel_statistics:LogMelStatistics",
}
"""Architectures by name: module and class, imported when first asked for."""

WEIGHTS, CONFIG = "encoder.safetensors", "config.json"


class Encoder(nn.Module):
    """A network from normalised log-mel to patch embeddings.

    Subclasses set the class attributes, call `super().__init__(front_end, width, pad_multiple)`, take their sizes as keyword
    arguments of the constructor and give them back from `sizes()`.

    Attributes
    ----------
    width : size of a token.
    pad_multiple : clips are padded to a multiple of so many frames, with `pad_value` (a normalised log-mel value).
    has_cls : whether the first token is a CLS token.
    n_layers : number of intermediate layers that `forward(layers=...)` can give.
    front_end : module, waveform float32 [batch, samples] in [-1, 1] at 16 kHz -> log-mel [batch, frames, bins], padded.
    """

    architecture: str
    has_cls: bool = False
    n_layers: int = 0

    def __init__(self, front_end: str, width: int, pad_multiple: int) -> None:
        super().__init__()
        self.front_end = PaddedFrontEnd(front_end_config(front_end), pad_multiple)
        self.width, self.pad_multiple = width, pad_multiple
        self.pad_value = self.front_end.pad_value

    def forward(
        self, log_mel: torch.Tensor, layers: Sequence[int] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """log_mel [batch, frames, bins] -> [batch, tokens, width], or a list of such, one per layer asked for.

        Layers count from 0; negative numbers count from the end, as in Python.
        """
        raise NotImplementedError

    def sizes(self) -> dict[str, Any]:
        """The keyword arguments (beside `front_end`) that build this encoder again."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """{'front_end': name, 'architecture': {'name': ..., sizes}}: what `build_encoder` takes."""
        return {"front_end": self.front_end.name, "architecture": {"name": self.architecture, **self.sizes()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from `config()`; raises InputError naming unknown or missing sizes."""
        sizes = {key: value for key, value in config["architecture"].items() if key != "name"}
        known = inspect.signature(cls.__init__).parameters
        wrong = [f"unknown key: architecture.{key}" for key in sizes if key not in known]
        wrong += [
            f"missing key: architecture.{key}"
            for key, value in known.items()
            if value.default is value.empty and key not in ("self", "front_end", *sizes)
        ]
        if wrong:
            raise InputError(
                f"the sizes of a {cls.architecture} encoder are wrong",
                wrong,
                "see configs/encoders/ for examples",
            )
        return cls(front_end=config["front_end"], **sizes)

    def layer_numbers(self, layers: Sequence[int]) -> list[int]:
        """Layer numbers counted from 0; raises InputError for layers that the encoder has not."""
        wrong = [f"layer {layer}" for layer in layers if not -self.n_layers <= layer < self.n_layers]
        if wrong:
            raise InputError(
                f"the {self.architecture} encoder has {self.n_layers} layers", wrong, "ask for layers it has"
            )
        return [layer % self.n_layers for layer in layers]


def architecture_class(name: str) -> type[Encoder]:
    """The class registered as `name`; raises InputError for an unknown architecture."""
    if name not in ARCHITECTURES:
        raise InputError(
            f"encoder architecture {name!r} is unknown", remedy=f"choose one of: {', '.join(ARCHITECTURES)}"
        )
    module, _, member = ARCHITECTURES[name].partition(":")
    found: type[Encoder] = getattr(importlib.import_module(module), member)
    return found


def build_encoder(config: Mapping[str, Any], seed: int) -> Encoder:
    """Build an encoder with random weights that depend on `seed` only (the global random state is left alone).

    `config` is {'front_end': name, 'architecture': {'name': ..., sizes}}; other keys (init, pretraining) are not read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture_class(config["architecture"]["name"]).from_config(config)


def save_encoder(encoder: Encoder, directory: str | Path, **notes: str) -> None:
    """Write encoder.safetensors and config.json into `directory`, each atomically.

    `notes` (such as weights="random") stand in config.json beside the encoder's configuration and the SHA-256 of the
    weights, by which `load_encoder` finds damage.
    """
    directory = Path(directory)
    write_weights(
        directory / WEIGHTS,
        directory / CONFIG,
        encoder.state_dict(),
        {**encoder.config(), **notes},
        architecture=encoder.architecture,
    )
