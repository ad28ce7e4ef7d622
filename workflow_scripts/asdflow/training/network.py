"""The embedding network that fine-tuning leaves behind: encoder, adaptation, pooling; stored, loaded and read out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asdflow.errors import InputError
from asdflow.features.store import padded_length
from asdflow.files import file_digest
from asdflow.models.encoder import WEIGHTS, Encoder, build_encoder
from asdflow.models.loading import load_encoder
from asdflow.models.logmel_statistics import LogMelStatistics
from asdflow.models.pooling import build_pooling
from asdflow.training.adaptation import GroupAdapters, add_low_rank, build_group_adapters, merge_low_rank
from asdflow.training.autoencoder import AutoencoderModel
from asdflow.training.embedding_model import EmbeddingModel, read_model, write_model
from asdflow.training.material import crop

log = logging.getLogger(__name__)

__all__ = ["EmbeddingModel", "EmbeddingNetwork", "TunedModel", "load_model"]

FRAMES_PER_PASS = 16 * 1024
"""Frames that go through an encoder at once when clips are embedded."""


class EmbeddingNetwork(nn.Module):
    """Encoder with its adaptation, pooling and projection: log-mel [B, T, F] and machine numbers [B] -> [B, d]."""

    def __init__(self, encoder: Encoder, settings: Mapping[str, Any], machines: int, seed: int) -> None:
        super().__init__()
        tuning, pooling = settings["tuning"], settings["pooling"]
        self.encoder = encoder
        self.layers = pooling["layers"]
        if tuning["method"] in ("lora", "fully_connected_lora"):
            branches = tuning["lora"]["branches"] if tuning["method"] == "fully_connected_lora" else 1
            add_low_rank(encoder, tuning["lora"], branches, seed)
        else:
            encoder.requires_grad_(tuning["method"] == "full")
        self.adapters: GroupAdapters | None = None
        if tuning["adapter"]["groups"] and tuning["method"] != "none":
            self.adapters = build_group_adapters(
                encoder, encoder.width, machines, tuning["adapter"], seed + 1
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 2)
            width = encoder.width * (len(self.layers) if self.layers else 1)
            self.pooling = build_pooling(pooling, width, encoder.has_cls)
            projection = pooling["projection"]
            pooled = self.pooling.output_width
            self.projection = nn.Linear(pooled, projection) if projection else nn.Identity()
        self.width = projection or pooled

    def forward(self, log_mel: Tensor, machine: Tensor) -> Tensor:
        """log_mel [B, T, F] (T a multiple of the encoder's pad_multiple), machine int64 [B] (-1: unseen) -> [B, d]."""
        if self.adapters is not None:
            self.adapters.machine = machine
        tokens = self.encoder(log_mel, self.layers) if self.layers else self.encoder(log_mel)
        if isinstance(tokens, list):
            tokens = torch.cat(tokens, 2)
        embedding: Tensor = self.projection(self.pooling(tokens))
        return embedding

    def adapted(self) -> dict[str, Tensor]:
        """The weights that differ from the base encoder's: all that learn, and buffers of what was added to it."""
        learning = {name for name, weight in self.named_parameters() if weight.requires_grad}
        own = {n: v for n, v in self.state_dict().items() if not n.startswith("encoder.") or n in learning}
        if any(weight.requires_grad for weight in self.encoder.parameters()):
            own |= {f"encoder.{n}": v for n, v in self.encoder.named_buffers() if v.is_floating_point()
                    and f"encoder.{n}" in self.state_dict()}  # fmt: skip
        return own


class TunedModel(EmbeddingModel):
    """Everything between cached features and a clip's embedding: what the `finetune` stage stores.

    Parts of an embedding are the tuned network's output at unit length and, where the recipe keeps it, the untouched
    encoder's (ours, against the collapse of long fine-tuning on few clips). A part is averaged over a clip's crops,
    z-scored over its machine's training clips where `standardise` says so, and, where there are two, measured in units
    of its machine's median nearest-neighbour distance between training clips and scaled by the root of its share: a
    squared Euclidean distance is then the weighted mean of both parts' squared distances, in comparable units.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        base: Encoder,
        machines: Sequence[str],
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings, self.machines, self.device = settings, list(machines), device
        self.encoder_config, self.front_end = base.config(), base.front_end.name
        self.pad_multiple, self.pad_value = base.pad_multiple, base.pad_value
        self.spectrum_rows = base.front_end.config.spectrum_rows
        tuning = settings["tuning"]
        self.tuned: EmbeddingNetwork | None = None
        self.parts: dict[str, EmbeddingNetwork] = {}
        if tuning["method"] == "none" or tuning["frozen_share"] > 0:
            self.parts["frozen"] = _frozen_network(_untouched(base, tuning), settings).to(device).eval()
        if tuning["method"] != "none":
            self.tuned = EmbeddingNetwork(base, settings, len(machines), seed).to(device)
            self.parts["tuned"] = self.tuned
        count = len(machines)
        self.readout = {
            name: {"centre": torch.zeros(count, part.width), "spread": torch.ones(count, part.width),
                   "unit": torch.ones(count, 1)}
            for name, part in self.parts.items()
        }  # fmt: skip

    def embed(self, frames: Sequence[np.ndarray], machines: Sequence[str]) -> np.ndarray:
        """Features of clips, float16 [n_frames, bins] each, and their machines -> embeddings float32 [n, d].

        Raises InputError for machines never trained on where the system standardises or adapts by machine.
        """
        number = self._machine_numbers(machines)
        share = self.settings["tuning"]["frozen_share"]
        weight = {"frozen": math.sqrt(share), "tuned": math.sqrt(1 - share)} if len(self.parts) > 1 else {}
        parts = []
        for name, network in self.parts.items():
            part, own = self._pass(network, frames, number), self.readout[name]
            part = (part - own["centre"][number]) / (own["spread"][number] * own["unit"][number])
            parts.append(weight.get(name, 1.0) * part)
        return torch.cat(parts, 1).numpy()

    def fit_readout(self, frames: Sequence[np.ndarray], machines: Sequence[str]) -> None:
        """Fit each machine's centre, spread and unit on its training clips."""
        number = torch.tensor([self.machines.index(machine) for machine in machines])
        standardise = self.settings["pooling"]["standardise"] == "machine"
        if not standardise and len(self.parts) == 1:
            return
        for name, network in self.parts.items():
            part, own = self._pass(network, frames, number), self.readout[name]
            for machine in sorted(set(number.tolist())):
                clips = part[number == machine]
                if standardise:
                    own["centre"][machine], own["spread"][machine] = _centre_and_spread(clips)
                if len(self.parts) > 1:
                    clips = (clips - own["centre"][machine]) / own["spread"][machine]
                    own["unit"][machine] = _nearest_distance(clips)

    def _machine_numbers(self, machines: Sequence[str]) -> Tensor:
        unseen = sorted(set(machines) - set(self.machines))
        tuning = self.settings["tuning"]
        standardised = self.settings["pooling"]["standardise"] == "machine" or len(self.parts) > 1
        gated = (
            self.tuned is not None
            and self.tuned.adapters is not None
            and tuning["adapter"]["unseen"] == "error"
        )
        if unseen and (standardised or gated):
            raise InputError(
                "machines that the system was not trained on", [f"machine {name}" for name in unseen],
                "train it with their normal recordings"
                + (", or set tuning.adapter.unseen to mean" if gated and not standardised else ""),
            )  # fmt: skip
        known = {name: number for number, name in enumerate(self.machines)}
        return torch.tensor([known.get(name, -1) for name in machines], dtype=torch.int64)

    @torch.inference_mode()
    def _pass(self, network: EmbeddingNetwork, frames: Sequence[np.ndarray], machine: Tensor) -> Tensor:
        """Embeddings [n, d] of clips, in batches of equal padded length, averaged over their crops."""
        network.eval()
        result = torch.zeros(len(frames), network.width)
        views = [(row, view) for row, clip in enumerate(frames) for view in self._views(network, clip)]
        multiple = network.encoder.pad_multiple
        length = np.array([padded_length(len(view), multiple) for _, view in views])
        for frames_long in sorted(set(length.tolist())):
            rows = np.flatnonzero(length == frames_long)
            size = max(1, FRAMES_PER_PASS // frames_long)
            for start in range(0, len(rows), size):
                chosen = [views[k] for k in rows[start : start + size]]
                clip = torch.tensor([row for row, _ in chosen])
                log_mel = self._stack([view for _, view in chosen], frames_long)
                with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                    embedding = network(log_mel, machine[clip].to(self.device))
                result.index_add_(0, clip, embedding.float().cpu())
        count = torch.bincount(torch.tensor([row for row, _ in views]), minlength=len(frames))
        result /= count.unsqueeze(1)
        return nn.functional.normalize(result, dim=1) if network is self.tuned else result

    def _views(self, network: EmbeddingNetwork, clip: np.ndarray) -> list[np.ndarray]:
        """The crops of a clip that are embedded: the whole clip, or evenly spaced crops as long as in training.

        The plain log-mel, which no training has used to a length, always sees the whole clip.
        """
        number, frames = self.settings["pooling"]["crops"], self.settings["tuning"]["crop_frames"]
        plain = isinstance(network.encoder, LogMelStatistics)
        if plain or not number or not frames or len(clip) <= self.spectrum_rows + frames:
            return [clip]
        rows = self.spectrum_rows + frames
        places = [k / max(number - 1, 1) * (1 - 1e-9) for k in range(number)]
        return [crop(clip, rows, place, self.spectrum_rows) for place in places]

    def _stack(self, views: Sequence[np.ndarray], frames: int) -> Tensor:
        batch = np.full((len(views), frames, views[0].shape[1]), self.pad_value, dtype=np.float32)
        for row, view in enumerate(views):
            batch[row, : len(view)] = view
        return torch.from_numpy(batch).to(self.device)

    def save(self, directory: Path, encoder_dir: Path, classes: Sequence[str]) -> None:
        """Write model.safetensors and model.json (format: docs/architecture.md); an unchanged base is only named."""
        tuning = self.settings["tuning"]
        stored = {"none": "nothing", "full": "all"}.get(tuning["method"], "adapted")
        weights = {f"readout.{part}.{k}": v for part, own in self.readout.items() for k, v in own.items()}
        if self.tuned is not None:
            tensors = self.tuned.state_dict() if stored == "all" else self.tuned.adapted()
            weights |= {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        description = {
            "stored": stored, "machines": self.machines, "classes": list(classes),
            "encoder": {
                "path": str(encoder_dir), "digest": file_digest(encoder_dir / WEIGHTS), "config": self.encoder_config,
            },
            "tuning": tuning, "pooling": self.settings["pooling"],
        }  # fmt: skip
        write_model(directory, description, weights)


def load_model(directory: Path, encoder_dir: Path | None = None, device: str = "cpu") -> EmbeddingModel:
    """Load what the `finetune` stage stored in `directory`, for inference: low-rank updates are merged into the base's weights.

    encoder_dir : where the base encoder lies, if not where model.json says; it must be the very same encoder.
    Raises InputError for files that are missing, foreign or damaged, and for a base encoder with another digest.
    """
    description, weights = read_model(directory)
    if description["tuning"]["method"] == "autoencoder":
        return AutoencoderModel.restore(description, weights, torch.device(device))
    settings = {"tuning": description["tuning"], "pooling": description["pooling"]}
    whole = description["stored"] == "all" and description["tuning"]["frozen_share"] == 0
    base = (
        build_encoder(description["encoder"]["config"], 0)
        if whole
        else _base_encoder(description["encoder"], encoder_dir)
    )
    model = TunedModel(settings, base, description["machines"], 0, torch.device(device))
    for part, own in model.readout.items():
        own.update({key: weights.pop(f"readout.{part}.{key}") for key in list(own)})
    if model.tuned is not None:
        found = model.tuned.load_state_dict(weights, strict=description["stored"] == "all")
        if found.unexpected_keys:
            raise InputError(
                f"{directory}: model.safetensors does not fit model.json", found.unexpected_keys[:10]
            )
        merge_low_rank(model.tuned.encoder)
        model.tuned.eval()
    return model


def _base_encoder(reference: Mapping[str, Any], encoder_dir: Path | None) -> Encoder:
    """The encoder a model is built on, after checking that it is the very same."""
    directory = Path(encoder_dir) if encoder_dir is not None else Path(reference["path"])
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise InputError(
            f"the base encoder {weights} is missing",
            remedy="keep the folder results/encoders beside the model, or name the encoder's folder",
        )
    if file_digest(weights) != reference["digest"]:
        raise InputError(
            f"{weights} is not the encoder that the model was built on (its digest differs)",
            remedy="name the folder of the right encoder, or fine-tune again",
        )
    return load_encoder(directory)


def _centre_and_spread(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] of a machine's embeddings [n, d]; small deviations are lifted towards the median.

    Adding the median variance to each keeps dimensions that hardly vary between a few training clips from ruling.
    """
    variance = clips.var(0, unbiased=False)
    return clips.mean(0), (variance + variance.median() + 1e-12).sqrt()


def _nearest_distance(clips: Tensor) -> Tensor:
    """Median distance of a machine's embeddings [n, d] to the nearest other one; 1 where that is zero or n < 2."""
    if len(clips) < 2:
        return torch.ones(1)
    distance = torch.cdist(clips, clips).fill_diagonal_(math.inf).min(1).values.median()
    return distance.clamp(min=1e-6) if distance > 0 else torch.ones(1)


def _untouched(encoder: Encoder, tuning: Mapping[str, Any]) -> Encoder:
    """What stands beside the tuned encoder: the same encoder with weights of its own, or the plain log-mel."""
    if tuning["method"] != "none" and tuning["frozen_features"] == "log_mel":
        return LogMelStatistics(front_end=encoder.front_end.name)
    twin = build_encoder(encoder.config(), 0)
    twin.load_state_dict(encoder.state_dict())
    return twin


def _frozen_network(encoder: Encoder, settings: Mapping[str, Any]) -> EmbeddingNetwork:
    """The untouched encoder with a pooling that has nothing to learn."""
    tuning, pooling = settings["tuning"], settings["pooling"]
    if tuning["method"] != "none":
        pooling = {**pooling, "kind": tuning["frozen_pooling"]}
        if tuning["frozen_features"] == "log_mel":
            pooling["layers"] = None
    untouched = {**tuning, "method": "none"}
    network = EmbeddingNetwork(
        encoder, {"tuning": untouched, "pooling": {**pooling, "projection": None}}, 0, 0
    )
    return network.requires_grad_(False)
