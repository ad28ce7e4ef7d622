"""Encoders from files: published checkpoints of EAT and BEATs, and our own; nothing is unpickled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from asdflow.errors import InputError
from asdflow.files import read_json
from asdflow.models.encoder import CONFIG, WEIGHTS, Encoder, architecture_class, build_encoder
from asdflow.weights import read_tensors

log = logging.getLogger(__name__)
REMEDY = "fetch or make the file again"
PUBLISHED_EAT = "model.safetensors"
TORCH_SUFFIXES = (".pt", ".pth")
LAYOUTS = (
    f"give a folder with {WEIGHTS} and {CONFIG} (ours) or {PUBLISHED_EAT} and {CONFIG} (EAT), "
    "or a BEATs checkpoint file (.pt)"
)
EAT_HEADS = {768: 12, 1024: 16}
"""Attention heads of the published EATs by width, for checkpoints without their config.json."""


def load_encoder(path: str | Path) -> Encoder:
    """Load an encoder in evaluation mode, on the CPU.

    `path` is a folder or the file inside it: one of ours (encoder.safetensors + config.json), EAT as published
    (model.safetensors, config.json beside it or not) or BEATs as published (.pt with `cfg` and `model`). Raises InputError
    saying what is missing, damaged, of another kind, or which key or shape is wrong.
    """
    weights = weights_file(Path(path))
    if weights.suffix in TORCH_SUFFIXES:
        return _load_beats(weights).eval()
    path = weights.with_name(CONFIG)
    config = read_json(path, REMEDY) if path.is_file() else None
    tensors = read_tensors(weights, REMEDY, (config or {}).get("sha256"))
    if config is not None and isinstance(config.get("architecture"), dict):
        return _load_own(weights, config, tensors).eval()
    eat: Any = architecture_class("eat")
    try:
        encoder: Encoder = eat.from_published(
            _published_eat_config(tensors) if config is None else config, tensors
        )
    except InputError as error:
        raise _about(weights, error) from error
    return encoder.eval()


def weights_file(path: Path) -> Path:
    """The file with the weights for a file or folder."""
    if path.is_dir():
        found = [path / name for name in (WEIGHTS, PUBLISHED_EAT) if (path / name).is_file()]
        found = found or sorted(file for file in path.iterdir() if file.suffix in TORCH_SUFFIXES)
        if len(found) != 1:
            contents = sorted(file.name for file in path.iterdir())[:10]
            raise InputError(f"{path} is not the folder of one encoder", [f"it holds {contents}"], LAYOUTS)
        return found[0]
    if not path.is_file():
        raise InputError(f"{path} does not exist", remedy=LAYOUTS)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise InputError(
            f"{path} is not a checkpoint that asdflow knows", [f"its suffix is {path.suffix!r}"], LAYOUTS
        )
    return path


def _about(path: Path, error: InputError) -> InputError:
    """The same error with the file's name in front."""
    return InputError(f"{path}: {error.summary}", error.problems, error.remedy)


def _load_own(weights: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Encoder:
    """One of ours; compares every key and shape."""
    remedy = "run the step that makes this encoder again"
    missing = [f"{CONFIG} lacks {key}" for key in ("front_end",) if key not in config]
    missing += [f"{CONFIG} lacks architecture.name"] * ("name" not in config["architecture"])
    if missing:
        raise InputError(f"{weights.parent} is not a whole encoder", missing, remedy)
    encoder = build_encoder(config, seed=0)
    own = encoder.state_dict()
    problems = [f"missing key: {key}" for key in own if key not in tensors]
    problems += [f"unknown key: {key}" for key in tensors if key not in own]
    problems += [
        f"{key} has shape {list(tensors[key].shape)}, {list(own[key].shape)} is wanted"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if problems:
        raise InputError(f"{weights} does not fit its {CONFIG}", problems, remedy)
    encoder.load_state_dict(dict(tensors))
    return encoder


def _published_eat_config(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a missing config.json of a published EAT would say, told from the shapes of its weights."""
    projection, positions = (
        tensors.get("model.local_encoder.proj.weight"),
        tensors.get("model.fixed_positional_encoder.positions"),
    )
    if projection is None or positions is None or projection.ndim != 4 or positions.ndim != 3:
        keys = list(tensors)[:5]
        raise InputError(
            "this is neither one of asdflow's encoders nor a published EAT",
            [f"no {CONFIG} beside it, and its keys begin with {keys}"],
            LAYOUTS,
        )
    width, _, patch, _ = projection.shape
    if width not in EAT_HEADS:
        raise InputError(
            f"an EAT of width {width} needs its {CONFIG}", remedy=f"put {CONFIG} beside the weights"
        )
    first = tensors.get("model.blocks.0.mlp.fc1.bias", projection.new_zeros(4 * width))
    return {
        "embed_dim": width,
        "depth": len({key.split(".")[2] for key in tensors if key.startswith("model.blocks.")}),
        "num_heads": EAT_HEADS[width],
        "mlp_ratio": len(first) / width,
        "patch_size": patch,
        "mel_bins": 128,
        "max_length": positions.shape[1] // (128 // patch),
    }


def _load_beats(path: Path) -> Encoder:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a damaged or unsafe file has no common class
        raise InputError(
            f"{path} is damaged, or holds more than weights",
            [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"],
            "fetch the published file again",
        ) from error
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys():
        keys = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f"{path} is not a BEATs checkpoint", [f"cfg and model are wanted, it holds {keys}"], LAYOUTS
        )
    beats: Any = architecture_class("beats")
    try:
        encoder: Encoder = beats.from_published(content["cfg"], content["model"])
    except InputError as error:
        raise _about(path, error) from error
    return encoder
