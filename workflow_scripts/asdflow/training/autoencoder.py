"""The official baseline: one autoencoder per machine on five-frame windows of the log-mel, and its two anomaly scores."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from asdflow.errors import InputError
from asdflow.features.front_end import SAMPLE_RATE, front_end_config
from asdflow.provenance import code_digest
from asdflow.training.checkpoint import Checkpoints
from asdflow.training.embedding_model import EmbeddingModel, write_model
from asdflow.training.material import TrainingMaterial

log = logging.getLogger(__name__)

FRONT_END, CONTEXT, MEL_BINS, HIDDEN, BOTTLENECK = "stft", 5, 128, 128, 8
HELD_OUT = 0.1


def official_log_mel(frames: np.ndarray) -> Tensor:
    """Cached spectrogram frames [n, 513] -> the baseline's log-mel [n, 128] in dB.

    1024-point spectrum every 512 samples, 128 Slaney mel bands, 10 log10 of the power. The one difference to the
    baseline's own is that frames are not centred: no padded half frames at the ends.
    """
    config = front_end_config(FRONT_END)
    power = (torch.from_numpy(np.array(frames, dtype=np.float32)) * (2 * config.std) + config.mean).exp()
    mel = torchaudio.functional.melscale_fbanks(
        config.bins, 0.0, SAMPLE_RATE / 2, MEL_BINS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return 10 * torch.log10((power @ mel).clamp(min=torch.finfo(torch.float64).eps))


def windows(log_mel: Tensor) -> Tensor:
    """Log-mel [n, 128] -> all runs of five frames side by side [n - 4, 640]."""
    return log_mel.unfold(0, CONTEXT, 1).transpose(1, 2).flatten(1)


class Autoencoder(nn.Module):
    """640-128-128-128-128-8-128-128-128-128-640, each hidden layer with batch normalisation and ReLU (DCASE 2023-2025)."""

    source: Tensor
    target: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        sizes = [CONTEXT * MEL_BINS, *[HIDDEN] * 4, BOTTLENECK, *[HIDDEN] * 4]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(sizes):
                layers += [
                    nn.Linear(before, after),
                    nn.BatchNorm1d(after, eps=1e-3, momentum=0.01),
                    nn.ReLU(),
                ]
            self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], sizes[0]))
        self.register_buffer("source", torch.eye(MEL_BINS))  # inverse covariances of residuals
        self.register_buffer("target", torch.eye(MEL_BINS))

    def forward(self, x: Tensor) -> Tensor:
        """Windows [n, 640] -> their reconstructions [n, 640]."""
        reconstructed: Tensor = self.layers(x)
        return reconstructed

    def mse(self, x: Tensor) -> float:
        """A clip's mean squared residual over its windows [n, 640]."""
        return float(((x - self(x)) ** 2).mean())

    def mahalanobis(self, x: Tensor) -> float:
        """A clip's squared Mahalanobis length of its mean residual, the smaller of both domains'.

        The baseline takes residuals frame by frame (128 values) and averages them over the windows [n, 640] and their
        five frames before it applies a domain's inverse covariance.
        """
        mean = (x - self(x)).view(-1, MEL_BINS).mean(0)
        return min(float(mean @ inverse @ mean) for inverse in (self.source, self.target))


def residual_covariance(batches: Sequence[Tensor]) -> Tensor:
    """The baseline's covariance [128, 128] of a domain's residuals, given per batch as [windows, 640].

    Rows are single frames, centred within each batch; the sum of products is divided by the number of windows - 1.
    """
    total, count = torch.zeros(MEL_BINS, MEL_BINS), 0
    for batch in batches:
        rows = batch.reshape(-1, MEL_BINS)
        centred = rows - rows.mean(0)
        total += centred.T @ centred
        count += len(batch)
    return total / max(count - 1, 1)


class AutoencoderModel(EmbeddingModel):
    """One autoencoder per machine; `embed` gives two values per clip, the baseline's two anomaly scores."""

    front_end = FRONT_END

    def __init__(self, machines: Sequence[str], device: torch.device, seed: int) -> None:
        self.machines, self.device = list(machines), device
        self.networks = {
            machine: Autoencoder(seed + k).to(device).eval() for k, machine in enumerate(machines)
        }

    @torch.inference_mode()
    def embed(self, frames: Sequence[np.ndarray], machines: Sequence[str]) -> np.ndarray:
        """Cached frames of clips, float16 [n_frames, 513] each -> float32 [n, 2]: mean squared error, Mahalanobis.

        Raises InputError for machines without an autoencoder and for clips of fewer than five frames.
        """
        unseen = sorted(set(machines) - set(self.machines))
        if unseen:
            raise InputError(
                "no autoencoder was trained for these machines", unseen, "train it on their recordings"
            )
        if min(len(clip) for clip in frames) < CONTEXT:
            raise InputError(
                f"a clip is shorter than the autoencoder's {CONTEXT} frames", remedy="give longer clips"
            )
        values = []
        for clip, machine in zip(frames, machines, strict=True):
            network = self.networks[machine]
            x = windows(official_log_mel(clip)).to(self.device)
            values.append((network.mse(x), network.mahalanobis(x)))
        return np.array(values, dtype=np.float32)

    def save(self, directory: Path, settings: Mapping[str, Any]) -> None:
        """Write model.safetensors and model.json."""
        weights = {
            f"{machine}.{name}": value
            for machine, network in self.networks.items()
            for name, value in network.state_dict().items()
        }
        description = {
            "stored": "all", "machines": self.machines, "classes": [],
            "encoder": None, "tuning": settings["tuning"], "pooling": settings["pooling"],
        }  # fmt: skip
        write_model(directory, description, weights)

    @classmethod
    def restore(
        cls, description: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device
    ) -> AutoencoderModel:
        """Build from what `save` stored."""
        model = cls(description["machines"], device, 0)
        for machine, network in model.networks.items():
            own = {
                k.removeprefix(f"{machine}."): v for k, v in weights.items() if k.startswith(f"{machine}.")
            }
            network.load_state_dict(own)
        return model


def train_autoencoders(
    settings: Mapping[str, Any],
    material: TrainingMaterial,
    seed: int,
    checkpoint_dir: Path,
    device: torch.device,
) -> tuple[AutoencoderModel, list[tuple[int, str, float]]]:
    """Train one autoencoder per machine as the official baseline does; returns the model and history rows.

    Adam on the squared error of shuffled windows, a tenth of them held out; then the residuals' covariance of each
    domain. Other data sets' clips are not used. An interrupted run goes on with the first machine not finished.
    """
    own = settings["tuning"]["autoencoder"]
    if material.store.front_end != FRONT_END:
        raise InputError(
            f"the autoencoder needs features of the {FRONT_END} front end, not {material.store.front_end}",
            remedy=f"name an encoder with front_end {FRONT_END}",
        )
    table = material.table[material.table["dataset"] == material.scored]
    machines = sorted(set(table["machine"]))
    model = AutoencoderModel(machines, device, seed)
    identity = {
        "settings": dict(own),
        "seed": seed,
        "code": code_digest(Path(__file__)),
        "data": material.digest,
    }
    rows: list[tuple[int, str, float]] = []
    with Checkpoints(checkpoint_dir, identity, 1e-9) as checkpoints:
        state = checkpoints.load() or {"rows": [], "networks": {}}
        rows += [tuple(row) for row in state["rows"]]
        for number, machine in enumerate(machines):
            if machine in state["networks"]:
                model.networks[machine].load_state_dict(state["networks"][machine])
                continue
            clips = table[table["machine"] == machine]
            rows += _train_one(model.networks[machine], material, clips, own, seed + number, device)
            state["networks"][machine] = model.networks[machine].state_dict()
            state["rows"] = [list(row) for row in rows]
            checkpoints.after_step(number + 1, lambda: state)
    return model, rows


def _train_one(
    network: Autoencoder,
    material: TrainingMaterial,
    clips: Any,
    own: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> list[tuple[int, str, float]]:
    """Train one machine's autoencoder and set its inverse covariances; returns history rows (epoch, metric, value)."""
    per_clip = [windows(official_log_mel(material.store.frames(item))) for item in clips["item"].tolist()]
    domain = clips["domain"].fillna("source").to_numpy() == "target"
    x = torch.cat(per_clip).to(device)
    is_target = torch.from_numpy(np.repeat(domain, [len(part) for part in per_clip]))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    held, learnt = order[: int(HELD_OUT * len(x))], order[int(HELD_OUT * len(x)) :]
    optimiser = torch.optim.Adam(network.parameters(), lr=own["learning_rate"])
    machine, rows = clips["machine"].iloc[0], []
    for epoch in range(own["epochs"]):
        network.train()
        total, seen = 0.0, 0
        for batch in learnt[torch.randperm(len(learnt), generator=generator)].split(own["batch_size"]):
            if len(batch) > 1:
                loss = nn.functional.mse_loss(network(x[batch]), x[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total, seen = total + loss.item() * len(batch), seen + len(batch)
        rows.append((epoch + 1, f"loss_{machine}", total / max(seen, 1)))
    network.eval()
    with torch.inference_mode():
        residual = (x - network(x)).cpu()
        if len(held):
            rows.append((own["epochs"], f"held_out_loss_{machine}", float((residual[held] ** 2).mean())))
        batches = learnt[torch.randperm(len(learnt), generator=generator)].split(own["batch_size"])
        _set_covariances(network, [(residual[b][~is_target[b]], residual[b][is_target[b]]) for b in batches])
    log.info("%s: %d windows, loss %.3f after %d epochs", machine, len(x), rows[-1][2], own["epochs"])
    return rows


def _set_covariances(network: Autoencoder, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Inverse covariances of both domains' residuals; without target clips the source's serves for both."""
    source = residual_covariance([s for s, _ in batches if len(s)])
    targets = [t for _, t in batches if len(t)]
    target = residual_covariance(targets) if targets else source
    network.source.copy_(torch.linalg.inv(source.double()).float())
    network.target.copy_(torch.linalg.inv(target.double()).float())
