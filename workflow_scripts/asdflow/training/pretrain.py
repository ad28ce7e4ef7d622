"""Self-supervised pre-training of an EAT encoder on machine sounds, from random weights or adapting trained ones."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from asdflow.device import pick_device
from asdflow.errors import InputError
from asdflow.features.store import FeatureStore, collate
from asdflow.files import read_json
from asdflow.models.eat import EAT
from asdflow.models.encoder import CONFIG, build_encoder, save_encoder
from asdflow.models.loading import load_encoder
from asdflow.provenance import code_digest
from asdflow.tables import read_parquet
from asdflow.training.checkpoint import Checkpoints
from asdflow.training.masking import Masks, inverse_block_masks, kept_patches, step_seed
from asdflow.training.memory import keep_freed_memory
from asdflow.training.processes import is_part, make_fabric, run_together
from asdflow.training.progress import Progress
from asdflow.training.sampling import BatchPlan, training_items
from asdflow.training.schedule import annealed_decay, cosine_with_warmup
from asdflow.training.self_distillation import (
    Decoder,
    Student,
    distillation_losses,
    follow,
    health,
    layer_targets,
    make_teacher,
    mask_noise,
    step_flops,
)

log = logging.getLogger(__name__)

SCRATCH_RATE, ADAPTATION_RATE = 5e-4, 1e-4
"""Peak learning rates: EAT's from random weights; a fifth of it for adapting trained ones (ours)."""
COLLAPSED_BELOW = {"target_variance": 0.1, "prediction_variance": 0.01}
"""Spreads below which the representation counts as collapsed (limits of data2vec 2.0)."""
AGREE_EVERY = 8
"""Updates between two checks, over all processes, whether one of them has to save or stop."""
Sources = Mapping[str, tuple[Path, Sequence[Path]]]


class Job(NamedTuple):
    """What a process needs to know."""

    settings: dict[str, Any]
    sources: dict[str, tuple[Path, tuple[Path, ...]]]
    init: Path | None
    output: Path
    checkpoint_dir: Path

    def as_plain(self) -> dict[str, Any]:
        """The same as arguments of `pretrain` that can be sent to other processes."""
        sources = {
            name: [str(clips), [str(path) for path in features]]
            for name, (clips, features) in self.sources.items()
        }
        paths = {"output": str(self.output), "checkpoint_dir": str(self.checkpoint_dir)}
        init = None if self.init is None else str(self.init)
        return {"settings": self.settings, "sources": sources, "init": init, **paths}


def pretrain(
    settings: Mapping[str, Any],
    sources: Sources,
    init: Path | str | None,
    output: Path | str,
    checkpoint_dir: Path | str,
    device: str,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Pre-train an encoder as EAT is pre-trained; write encoder.safetensors, config.json, history.parquet into `output`.

    Parameters
    ----------
    settings : the recipe (every key of the schema's `pretraining`) and `seed`; also `front_end` and `architecture`
        when `init` is None.
    sources : data set -> (its clips.parquet, its feature files). Only training clips are used, each recording once.
    init : directory of the encoder to start from; None starts from random weights.
    checkpoint_dir : where an interrupted run finds its checkpoints; emptied when the run has ended.
    device : "auto", "cpu" or "cuda". devices, nodes : processes per node and nodes; the result is that of one
        process with the same batch_size, up to rounding. Several nodes need a SLURM allocation.

    Raises InputError for settings that do not fit together, missing training clips, foreign encoders, divergence;
    SystemExit after SIGTERM or SIGINT, with a checkpoint written.

    Source: EAT (Chen et al., IJCAI 2024) and its code for the objective; balanced sampling, duplicates and resuming
    are ours.
    """
    _check_settings(settings, devices * nodes)
    plain = {name: (Path(clips), tuple(map(Path, features))) for name, (clips, features) in sources.items()}
    job = Job(dict(settings), plain, Path(init) if init else None, Path(output), Path(checkpoint_dir))
    if devices * nodes > 1 and not is_part():
        _check_devices(device, devices)
        arguments = {**job.as_plain(), "device": device, "devices": devices, "nodes": nodes}
        return run_together(f"{__name__}:pretrain", arguments, devices, nodes, job.output)
    target = pick_device(device)
    bf16 = settings["precision"] == "bf16" or (settings["precision"] == "auto" and target.type == "cuda")
    fabric = make_fabric(target, devices, nodes, "bf16-mixed" if bf16 else "32-true")
    launch: Callable[..., Any] = fabric.launch  # Lightning's annotation forgets the function's own arguments
    launch(_train, job)


def _check_devices(device: str, devices: int) -> None:
    there = torch.cuda.device_count()
    if pick_device(device).type == "cuda" and there < devices:
        raise InputError(
            f"training_devices: {devices}, and this job sees {there} GPU{'' if there == 1 else 's'}",
            remedy=f"let jobs have them with --resources gpu={devices}, or lower training_devices",
        )


def _check_settings(settings: Mapping[str, Any], processes: int) -> None:
    problems = []
    if (settings["steps"] is None) == (settings["epochs"] is None):
        problems.append(f"steps: {settings['steps']}, epochs: {settings['epochs']}: give exactly one of them")
    if settings["batch_size"] % (processes * settings["accumulate"]):
        problems.append(
            f"batch_size {settings['batch_size']} cannot be split evenly over {processes} processes "
            f"x accumulate {settings['accumulate']}"
        )
    if settings["decoder"]["kernel"] % 2 == 0:
        problems.append(f"decoder.kernel {settings['decoder']['kernel']} is even")
    if problems:
        raise InputError("the pre-training recipe does not fit together", problems, "mend the recipe")


def _train(fabric: Fabric, job: Job) -> None:
    """One process's whole run."""
    if fabric.device.type == "cpu":
        keep_freed_memory()
    if fabric.global_rank > 0:
        logging.getLogger("asdflow").setLevel(logging.WARNING)
    encoder, rate = _starting_point(job)
    data = Batches(job, encoder, fabric)
    identity = _identity(job, encoder, data)
    run = Run(fabric, job.settings, encoder, rate, data)
    with Checkpoints(job.checkpoint_dir, identity, job.settings["checkpoint_minutes"]) as checkpoints:
        run.resume(checkpoints.load())
        for step in range(run.first_step, data.steps):
            run.update(step)
            _save_if_due(fabric, checkpoints, run, step + 1)
    if fabric.is_global_zero:
        save_encoder(run.exported(), job.output)
        run.progress.write(job.output / "history.parquet")
        checkpoints.clear()
    fabric.barrier()


def _save_if_due(fabric: Fabric, checkpoints: Checkpoints, run: Run, step: int) -> None:
    """Save in the first process when due in it, or when any process was told to stop; then stop in all of them."""
    if fabric.world_size == 1:
        checkpoints.after_step(step, run.state)
        return
    if step % AGREE_EVERY:
        return
    wishes = torch.tensor([float(checkpoints.due), float(checkpoints.signal or 0)], device=fabric.device)
    gathered = fabric.all_gather(wishes)
    assert isinstance(gathered, Tensor)
    checkpoints.signal = int(gathered[:, 1].max()) or None
    if gathered[0, 0] or checkpoints.signal:
        if fabric.is_global_zero:
            checkpoints.save(step, run.state())
        fabric.barrier()
    checkpoints.stop_if_asked(step)


def _starting_point(job: Job) -> tuple[EAT, float]:
    """The encoder to train and its peak learning rate."""
    settings = job.settings
    if job.init is None:
        encoder, trained = build_encoder(settings, settings["seed"]), False
    else:
        encoder = load_encoder(job.init)
        trained = not _has_random_weights(job.init)
    if not isinstance(encoder, EAT):
        raise InputError(
            f"pre-training is for EAT encoders; this one is {encoder.architecture}",
            remedy="give the encoder an architecture `name: eat`, or `pretraining: null`",
        )
    width, groups = encoder.width, settings["decoder"]["groups"]
    if width % groups:
        raise InputError(
            f"decoder.groups {groups} does not divide the encoder's width {width}", remedy="mend the recipe"
        )
    rate = settings["learning_rate"] or (ADAPTATION_RATE if trained else SCRATCH_RATE)
    log.info(
        "%s weights, learning rate up to %g", "Adapting trained" if trained else "Starting from random", rate
    )
    return encoder, rate


def _has_random_weights(init: Path) -> bool:
    """Whether an encoder's config.json says that nothing has trained it yet."""
    config = init / CONFIG
    return (
        config.is_file() and read_json(config, "make or fetch the encoder again").get("weights") == "random"
    )


def _identity(job: Job, encoder: EAT, data: Batches) -> dict[str, Any]:
    """What makes this run this run: a checkpoint with another identity is not continued."""
    settings = {
        key: value for key, value in job.settings.items() if key not in ("log_every", "checkpoint_minutes")
    }
    weights = hashlib.sha256()
    for tensor in encoder.state_dict().values():
        weights.update(tensor.contiguous().numpy().tobytes())
    return {
        "settings": settings,
        "code": code_digest(Path(__file__)),
        "first weights": weights.hexdigest()[:16],
        "clips": data.digest,
    }


@dataclass(frozen=True)
class Batch:
    """One process's part of an update: log_mel float32 [clips, frames, bins] and clips * masks masks."""

    log_mel: Tensor
    masks: Masks

    def split(self, parts: int, device: torch.device) -> list[Batch]:
        """Equal parts on `device`."""
        size, n = len(self.log_mel) // parts, len(self.masks.kept) // parts
        pieces = []
        for i in range(parts):
            log_mel = self.log_mel[i * size : (i + 1) * size].to(device, non_blocking=True)
            pieces.append(Batch(log_mel, self.masks.part(i * n, (i + 1) * n).to(device)))
        return pieces


class Batches:
    """Reads this process's share of each update from the feature cache, one update ahead, in a thread."""

    def __init__(self, job: Job, encoder: EAT, fabric: Fabric) -> None:
        settings = job.settings
        self.settings, self.encoder = settings, encoder
        self.store = FeatureStore({name: features for name, (_, features) in job.sources.items()})
        clips = {name: read_parquet(path) for name, (path, _) in job.sources.items()}
        items = training_items(self.store.index, clips, settings["supplemental"])
        self.digest = hashlib.sha256(
            "".join(self.store.index["content_hash"].iloc[items]).encode()
        ).hexdigest()[:16]
        self._check_front_end()
        size = settings["batch_size"]
        self.steps: int = settings["steps"] or max(1, round(settings["epochs"] * len(items) / size))
        crop = settings["crop_frames"]
        whole = crop is None or crop % encoder.pad_multiple == 0
        multiple = encoder.pad_multiple if whole else encoder.patch
        self.plan = BatchPlan(
            self.store.index, items, batch_size=size, steps=self.steps, seed=settings["seed"],
            balance=settings["balance"], crop_frames=crop, pad_multiple=multiple,
        )  # fmt: skip
        self.pad_multiple = multiple
        self.share = size // fabric.world_size
        self.first = fabric.global_rank * self.share
        self.pin = fabric.device.type == "cuda"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Batch]] | None = None
        log.info("%d training clips, %d updates of %d clips", len(items), self.steps, size)

    def _check_front_end(self) -> None:
        if self.store.front_end != self.encoder.front_end.name:
            raise InputError(
                f"the features are {self.store.front_end}, the encoder takes {self.encoder.front_end.name}",
                remedy="give both the same front_end",
            )

    def batch(self, step: int) -> Batch:
        """This process's part of update `step`; reading of the next one begins at once."""
        ahead, self._next = self._next, None
        batch = ahead[1].result() if ahead and ahead[0] == step else self.read(step)
        if step + 1 < self.steps:
            self._next = (step + 1, self._thread.submit(self.read, step + 1))
        return batch

    def read(self, step: int) -> Batch:
        """Read this process's part of update `step`: a function of seed and step alone."""
        settings, encoder = self.settings, self.encoder
        spans = self.plan.spans(step)[self.first : self.first + self.share]
        frames = [self.store.frames(item)[first:last] for item, first, last in spans]
        log_mel = collate(frames, self.pad_multiple, encoder.pad_value)
        generator = torch.Generator().manual_seed(step_seed(settings["seed"], step, "masks"))
        n = settings["batch_size"] * settings["masks"]
        grid = encoder.grid(log_mel.shape[1])
        masks = inverse_block_masks(n, grid, settings["mask_ratio"], settings["block"], generator)
        own = masks.part(self.first * settings["masks"], (self.first + self.share) * settings["masks"])
        return Batch(log_mel.pin_memory(), own.pin()) if self.pin else Batch(log_mel, own)


class Run:
    """Student, teacher, optimiser and clock of a run, and one update of them."""

    def __init__(
        self, fabric: Fabric, settings: Mapping[str, Any], encoder: EAT, rate: float, data: Batches
    ) -> None:
        self.fabric, self.settings, self.rate, self.data = fabric, settings, rate, data
        self.first_step = self.done = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["seed"])
            self.student = Student(encoder, Decoder(encoder.width, **settings["decoder"]))
        self.student.to(fabric.device).train()
        self.teacher = make_teacher(self.student.encoder)
        self.optimiser = make_optimiser(self.student, settings["weight_decay"])
        compiled = settings["compile"] is True or (
            settings["compile"] == "auto" and fabric.device.type == "cuda"
        )
        student = self.student
        if compiled:
            student.compile()
        self.targets = torch.compile(layer_targets) if compiled else layer_targets
        self.model = fabric.setup_module(student)
        self.progress = self._clock([])

    def _clock(self, rows: list[Any]) -> Progress:
        settings, encoder = self.settings, self.student.encoder
        frames = int(self.data.plan.lengths.max())
        kept = kept_patches(frames // encoder.patch * (encoder.bins // encoder.patch), settings["mask_ratio"])
        flops = step_flops(encoder, self.student.decoder, frames, kept, settings["masks"])
        return Progress(
            self.data.steps, settings["log_every"], self.fabric.device, settings["batch_size"],
            flops_per_step=flops * self.data.share, rows=rows,
        )  # fmt: skip

    def update(self, step: int) -> None:
        """One update of student and teacher; `step` counts from 0."""
        self.done = step + 1
        settings = self.settings
        rate = cosine_with_warmup(
            step, self.data.steps, round(settings["warmup"] * self.data.steps), self.rate
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        metrics: dict[str, Tensor | float] = {}
        parts = self.data.batch(step).split(settings["accumulate"], self.fabric.device)
        for i, part in enumerate(parts):
            with self.fabric.no_backward_sync(self.model, enabled=i + 1 < len(parts)):
                for name, value in self._forward_backward(step, part, 1.0 / len(parts)).items():
                    metrics[name] = metrics.get(name, 0.0) + value / len(parts)
        metrics = self._over_all_clips(metrics)
        metrics["gradient_norm"] = nn.utils.clip_grad_norm_(self.student.parameters(), settings["clip_norm"])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        ema = settings["ema"]
        decay = annealed_decay(step + 1, ema["start"], ema["end"], ema["anneal_steps"] or self.data.steps)
        follow(self.teacher, self.student.encoder, decay)
        averages = self.progress.after_step(
            step + 1, {**metrics, "learning_rate": rate, "teacher_decay": decay}
        )
        if averages is not None:
            name_collapse(averages)

    def _over_all_clips(self, metrics: dict[str, Tensor | float]) -> dict[str, Tensor | float]:
        """The mean over the processes of what each has measured on its share of the batch."""
        if self.fabric.world_size == 1:
            return metrics
        values = torch.stack(
            [torch.as_tensor(value, device=self.fabric.device) for value in metrics.values()]
        )
        mean = self.fabric.all_reduce(values, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return dict(zip(metrics, mean.unbind(), strict=True))

    def _forward_backward(self, step: int, part: Batch, weight: float) -> dict[str, Tensor]:
        """Add a part's gradients; returns its figures."""
        settings, encoder = self.settings, self.student.encoder
        with self.fabric.autocast():
            targets = self.targets(self.teacher, part.log_mel)
        seed = step_seed(settings["seed"], step, "noise")
        noise = mask_noise(settings["masks"], targets.shape[1], encoder.width, seed, part.log_mel.device)
        prediction = self.model(part.log_mel, part.masks, noise)
        losses = distillation_losses(prediction, targets, part.masks)
        loss = losses.frame + settings["utterance_weight"] * losses.utterance
        self.fabric.backward(loss * weight)
        figures = {"loss": loss, "loss_frame": losses.frame, "loss_utterance": losses.utterance}
        return {name: value.detach() for name, value in figures.items()} | health(
            prediction, targets, part.masks
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs: the sampler, the masks and the noise are functions of seed and `step`."""
        return {
            "step": self.done,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rows": self.progress.rows,
        }

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Continue from a checkpoint's state, if there is one."""
        if state is None:
            return
        self.first_step = self.done = state["step"]
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = self._clock(state["rows"])

    def exported(self) -> EAT:
        """The encoder that the run is for; EAT publishes the student's weights."""
        return self.teacher if self.settings["export"] == "teacher" else self.student.encoder


def make_optimiser(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Adam(0.9, 0.95) with decoupled weight decay on matrices only, in its fused form."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)


def name_collapse(figures: Mapping[str, float]) -> list[str]:
    """Warn about, and return, the figures that say that all patches have come to look alike."""
    low = [
        f"{name} {figures[name]:.3g} (below {limit})"
        for name, limit in COLLAPSED_BELOW.items()
        if figures[name] < limit
    ]
    if low:
        log.warning(
            "The representation has collapsed: %s; lower the learning rate or raise the teacher's decay",
            ", ".join(low),
        )
    return low
