"""Fine-tuning: an encoder learns to tell classes of normal clips apart; then every clip of the data set is embedded."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asdflow.device import pick_device
from asdflow.errors import InputError
from asdflow.features.embeddings import embeddings_writer
from asdflow.features.store import FeatureStore, padded_length
from asdflow.files import file_digest
from asdflow.models.encoder import WEIGHTS
from asdflow.models.loading import load_encoder
from asdflow.provenance import code_digest
from asdflow.training.augmentation import Augmentation
from asdflow.training.autoencoder import train_autoencoders
from asdflow.training.checkpoint import Checkpoints
from asdflow.training.material import Batch, TrainingMaterial
from asdflow.training.network import EmbeddingModel, EmbeddingNetwork, TunedModel
from asdflow.training.objectives import Objective, Targets, build_objective, views_needed
from asdflow.training.progress import Progress
from asdflow.training.schedule import cosine_with_warmup

log = logging.getLogger(__name__)

CLIPS_PER_READ = 256
"""Clips whose features are held in memory at once when the data set is embedded."""


def finetune(
    settings: Mapping[str, Any],
    sources: Mapping[str, Sequence[Path]],
    labels: Path,
    clips: Path,
    encoder_dir: Path,
    seed: int,
    output: Path,
    checkpoint_dir: Path,
    device: str,
) -> None:
    """Fine-tune an encoder as a system's recipe says, and embed all clips of the scored data set.

    Parameters
    ----------
    settings : the parts `tuning`, `objective`, `augmentation` and `pooling` of a system.
    sources : data set -> its machines' feature files; the first data set is the scored one.
    labels : labels.parquet of the system. clips : clips.parquet of the scored data set.
    encoder_dir : folder of the encoder to start from; it is never written to.
    output : folder for model.safetensors, model.json, history.parquet and embeddings.h5.
    checkpoint_dir : where an interrupted training leaves its state and finds it again.
    device : auto, cpu or cuda.

    With method `none` nothing is trained; the encoder's own embeddings are pooled. With method `autoencoder` the official
    baseline is trained instead, and each clip's two values are its anomaly scores.
    """
    chosen = pick_device(device)
    tuning = settings["tuning"]
    material = TrainingMaterial(sources, labels, clips, tuning["balance"], seed, tuning.get("held_out", 0.0))
    own_clips = {material.scored: sources[material.scored]}
    if tuning["method"] == "autoencoder":
        baseline, rows = train_autoencoders(settings, material, seed, checkpoint_dir, chosen)
        baseline.save(output, settings)
        Progress(1, 1, chosen, 1, rows=rows).write(output / "history.parquet")
        _embed_all(baseline, own_clips, output / "embeddings.h5")
        return
    model = TunedModel(settings, load_encoder(encoder_dir), material.machines, seed, chosen)
    progress = Progress(tuning["steps"], tuning["log_every"], chosen, tuning["batch_size"])
    if model.tuned is not None:
        digest = file_digest(encoder_dir / WEIGHTS)
        progress = _Training(settings, material, model, seed, checkpoint_dir).run({"encoder": digest})
    _fit_readout(model, material)
    model.save(output, encoder_dir, material.classes)
    progress.write(output / "history.parquet")
    _embed_all(model, own_clips, output / "embeddings.h5")


class _Training:
    """One training run: networks, optimiser, the loop, and its state for checkpoints."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        material: TrainingMaterial,
        model: TunedModel,
        seed: int,
        checkpoints: Path,
    ) -> None:
        assert model.tuned is not None
        _refuse_hopeless(settings, material)
        self.settings, self.tuning, self.material, self.seed = settings, settings["tuning"], material, seed
        self.network, self.device, self.checkpoint_dir = model.tuned, model.device, checkpoints
        self.views = max(views_needed(settings["objective"]), settings["augmentation"]["segments"]["count"])
        crop_frames = self.tuning["crop_frames"]
        longest = material.spectrum_rows + crop_frames if crop_frames else material.longest
        self.frames = padded_length(longest, model.pad_multiple)
        self.objective = build_objective(
            settings["objective"], self.network.width, len(material.classes), material.unattributed, seed + 10
        ).to(self.device)
        front_end = self.network.encoder.front_end.config
        self.augmentation = Augmentation(settings["augmentation"], front_end, self.frames).to(self.device)
        self.optimiser = _optimiser(self.network, self.objective, self.tuning)
        self.average = _MovingAverage(self.network, self.tuning["weight_average"])

    def run(self, start: Mapping[str, Any]) -> Progress:
        """Train (or go on from a checkpoint of the same `start`); leaves the averaged weights in the network."""
        tuning, identity = self.tuning, {**start, **self._identity()}
        with Checkpoints(self.checkpoint_dir, identity, tuning["checkpoint_minutes"]) as checkpoints:
            state = checkpoints.load()
            first = self._restore(state) if state else 0
            rows = state["rows"] if state else []
            clips = tuning["batch_size"] * self.views
            flops = clips * training_flops(self.network, self.frames) if self.device.type == "cuda" else None
            progress = Progress(
                tuning["steps"], tuning["log_every"], self.device, clips, flops_per_step=flops, first_step=first, rows=rows
            )  # fmt: skip
            for step, batch in self._batches(first):
                progress.after_step(step + 1, self._update(step, batch))
                checkpoints.after_step(step + 1, functools.partial(self._state, step + 1, progress))
        self.average.apply(self.network)
        return progress

    def _identity(self) -> dict[str, Any]:
        """What makes this run this run: a checkpoint with another identity is not continued."""
        tuning = {k: v for k, v in self.tuning.items() if k not in ("log_every", "checkpoint_minutes")}
        return {
            "settings": {**self.settings, "tuning": tuning}, "seed": self.seed, "code": code_digest(Path(__file__)),
            "data": self.material.digest,
        }  # fmt: skip

    def _batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        """Batches from step `first` on; the next one is read while the device works on the last."""
        noise = self.settings["augmentation"]["noise"]["probability"] > 0

        def read(step: int) -> Batch:
            return self.material.batch(step, self.tuning["batch_size"], self.frames, self.views, noise)

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, first)
            for step in range(first, self.tuning["steps"]):
                batch = ahead.result()
                if step + 1 < self.tuning["steps"]:
                    ahead = reader.submit(read, step + 1)
                yield step, batch

    def _update(self, step: int, batch: Batch) -> dict[str, Tensor | float]:
        """One optimiser step; returns what the history records."""
        share = cosine_with_warmup(
            step, self.tuning["steps"], round(self.tuning["warmup"] * self.tuning["steps"]), 1.0
        )
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        self.network.train()
        self.objective.train()
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([self.seed, step, 1]).integers(2**62))
        )
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(0, 2**62, (1,), generator=generator)))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                embeddings, targets = self._embed(batch, generator)
            loss, parts = self.objective(embeddings, targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(
            [p for g in self.optimiser.param_groups for p in g["params"]], self.tuning["clip_norm"]
        )
        self.optimiser.step()
        self.average.update(self.network)
        return {"loss": loss.detach(), "learning_rate": share * self.tuning["learning_rate"]} | {
            f"loss_{name}": value for name, value in parts.items() if len(parts) > 1
        }

    def _embed(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Targets]:
        """Embeddings [V, B, d] of a batch's augmented views and what is known about its clips."""
        views, clips = batch.frames.shape[:2]
        machine = torch.from_numpy(batch.machine).to(self.device)
        label, attributed = torch.from_numpy(batch.label), torch.from_numpy(batch.attributed)
        targets = Targets(label.to(self.device), machine, attributed.to(self.device))
        log_mel = torch.from_numpy(batch.frames).to(self.device).float().flatten(0, 1)  # [V B, T, F]
        noise = (
            None
            if batch.noise is None
            else torch.from_numpy(batch.noise).to(self.device).float().flatten(0, 1)
        )
        mixed = self.augmentation(log_mel, generator, noise)
        if mixed.partner is not None and mixed.share is not None:
            targets.partner = targets.label.repeat(views)[mixed.partner]
            targets.share = mixed.share
        embeddings = self.network(mixed.log_mel, machine.repeat(views))
        return embeddings.view(views, clips, -1), targets

    def _state(self, step: int, progress: Progress) -> dict[str, Any]:
        return {
            "step": step, "rows": progress.rows, "network": self.network.adapted(), "average": self.average.weights,
            "updates": self.average.updates,
            "objective": self.objective.state_dict(), "augmentation": self.augmentation.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip

    def _restore(self, state: Mapping[str, Any]) -> int:
        self.network.load_state_dict(state["network"], strict=False)
        self.average.updates = state["updates"]
        self.average.weights = {k: v.to(self.device) for k, v in state["average"].items()}
        self.objective.load_state_dict(state["objective"])
        self.augmentation.load_state_dict(state["augmentation"])
        self.optimiser.load_state_dict(state["optimiser"])
        step: int = state["step"]
        return step


def _refuse_hopeless(settings: Mapping[str, Any], material: TrainingMaterial) -> None:
    """Refuse what only the recordings show to be impossible; say so where an augmentation finds nothing to work with."""
    problems = []
    if (
        settings["objective"].get("vector_quantised", {"weight": 0})["weight"] > 0
        and not material.unattributed
    ):
        problems.append(
            "objective.vector_quantised clusters clips without attributes, and every clip has its own"
        )
    if settings["tuning"]["adapter"]["groups"] > 0 and len(material.machines) < 2:
        problems.append("tuning.adapter mixes its groups by machine, and there is only one machine")
    if len(material.classes) < 2:
        problems.append(f"there is only one class to tell apart: {material.classes[0]}")
    if problems:
        raise InputError(
            "this system cannot be tuned on these recordings",
            problems,
            "change the system's labels or objective, or add data sets by extra_datasets",
        )
    if settings["augmentation"]["noise"]["probability"] > 0 and not len(material.noise_items):
        log.warning("augmentation.noise is skipped: %s has no supplemental noise clips", material.scored)


def training_flops(network: EmbeddingNetwork, frames: int) -> int:
    """Floating-point operations to learn from one crop of `frames` frames: a forward pass, and twice that backwards."""
    bins = network.encoder.front_end.bins
    device = next(network.parameters()).device
    # fused attention kernels of the CPU are not counted; the plain products are
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, frames, bins, device=device), torch.zeros(1, dtype=torch.int64, device=device))
    return 3 * int(counter.get_total_flops())


class _MovingAverage:
    """Exponential moving average of the weights that learn: the last steps' noise averages out of the embeddings."""

    def __init__(self, network: EmbeddingNetwork, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: value.detach().clone() for name, value in network.adapted().items()}

    @torch.no_grad()
    def update(self, network: EmbeddingNetwork) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        for name, value in network.adapted().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def apply(self, network: EmbeddingNetwork) -> None:
        network.load_state_dict(self.weights, strict=False)


def _optimiser(
    network: EmbeddingNetwork, objective: Objective, tuning: Mapping[str, Any]
) -> torch.optim.AdamW:
    """AdamW with one learning rate for the encoder and one for all that starts from nothing; no decay on vectors."""
    new = [(name, weight) for name, weight in network.named_parameters() if not name.startswith("encoder.")]
    new += list(objective.named_parameters())
    old = [(name, weight) for name, weight in network.named_parameters() if name.startswith("encoder.")]
    groups = []
    for members, rate in ((old, tuning["learning_rate"]), (new, tuning["head_learning_rate"])):
        for matrices in (True, False):
            chosen = [w for _, w in members if w.requires_grad and (w.ndim > 1) == matrices]
            decay = tuning["weight_decay"] if matrices else 0.0
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _fit_readout(model: TunedModel, material: TrainingMaterial) -> None:
    """Fit what embeddings are standardised with, on the scored data set's training clips."""
    own = material.table.loc[(material.table["dataset"] == material.scored) & ~material.table["supplemental"]]
    frames = [material.store.frames(item) for item in own["item"].tolist()]
    model.fit_readout(frames, own["machine"].tolist())


def _embed_all(model: EmbeddingModel, sources: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Embed every clip of the scored data set and write embeddings.h5, some clips at a time."""
    store = FeatureStore(sources)
    index, start = store.index, time.perf_counter()
    first = model.embed([store.frames(0)], [index["machine"].iloc[0]])
    with embeddings_writer(path, index["clip_id"].tolist(), first.shape[1]) as write:
        for begin in range(0, len(store), CLIPS_PER_READ):
            rows = list(range(begin, min(begin + CLIPS_PER_READ, len(store))))
            frames = [store.frames(row) for row in rows]
            write(rows, model.embed(frames, index["machine"].iloc[rows].tolist()))
    log.info("%d clips embedded, %.0f clips/s", len(store), len(store) / (time.perf_counter() - start))
