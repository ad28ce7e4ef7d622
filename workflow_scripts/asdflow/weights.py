"""Weights on disk: the one writer and reader of a safetensors file and of the JSON beside it, which holds its SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asdflow.errors import InputError
from asdflow.files import atomic_path, file_digest, read_json, write_json

Tensors = Mapping[str, torch.Tensor]


def write_weights(
    weights: Path, description: Path, tensors: Tensors, content: Mapping[str, Any], **notes: str
) -> None:
    """Write the safetensors file `weights`, then `content` and the file's SHA-256 to the JSON file `description`, each atomically.

    `notes` (at most one, for several are written in no certain order) stand in the safetensors file itself.
    """
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(weights) as temporary:
        save_file(stored, temporary, notes or None)
    write_json(description, {**content, "sha256": file_digest(weights)})


def read_tensors(path: Path, remedy: str, sha256: str | None, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; raises InputError where it is missing, damaged, or its SHA-256 is not `sha256`.

    sha256 : as the description beside the file says; None where there is none, as with published checkpoints, which are compared
        with their published digest when they are fetched.
    """
    try:
        found = file_digest(path)
        tensors: dict[str, torch.Tensor] = load_file(path, device=device)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or no safetensors file", [str(error)], remedy) from error
    if sha256 is not None and found != sha256:
        raise InputError(
            f"{path} is damaged", [f"its SHA-256 is {found}, not {sha256} as told beside it"], remedy
        )
    return tensors


def read_weights(
    weights: Path, description: Path, remedy: str, device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `write_weights` wrote: (content, tensors); raises InputError for missing and damaged files."""
    content = read_json(description, remedy)
    return content, read_tensors(weights, remedy, content.pop("sha256", None), device)
