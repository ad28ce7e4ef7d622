"""How fast one pre-training update is, against the same update done plainly; and memory against the size of the data.

Usage: python benchmarks/pretraining.py [--part cpu|cuda|memory|all] [--threads 1] [--batch 4] [--repeats 5]

cpu : the small encoder of the demo on 6-s clips with 16 masks, with its own decoder of 2 layers and with EAT's 6. The plain
    form of the update makes a teacher pass for every mask and lets the student encode all patches, mask tokens in place of
    hidden ones. When visible patches may not look at mask tokens, both forms have the same loss (printed, and held by
    tests/test_pretrain.py); the usual plain form lets them, and is another function.
cuda : EAT-base on 10-s clips with 16 masks: clips/s and model FLOP utilisation (share of the measured bf16 matrix rate),
    against a straightforward fp16 implementation: eager, explicit softmax attention, optimiser in a loop.
memory : peak private memory of a whole pre-training run on 500 and on 5,000 clips.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from asdflow.features.front_end import FRONT_ENDS
from asdflow.features.store import FeatureWriter
from asdflow.models.eat import EAT
from asdflow.training.masking import Masks, inverse_block_masks
from asdflow.training.memory import keep_freed_memory
from asdflow.training.pretrain import make_optimiser, pretrain
from asdflow.training.progress import matrix_rate
from asdflow.training.self_distillation import (
    Decoder,
    Losses,
    Student,
    distillation_losses,
    follow,
    layer_targets,
    make_teacher,
    mask_noise,
    step_flops,
)
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

MASKS, RATIO, BLOCK = 16, 0.8, 5
SMALL: dict[str, Any] = {"width": 128, "depth": 4, "heads": 4, "pad_multiple": 16, "max_frames": 2048}
BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
DEMO_LAYERS, EAT_LAYERS = 2, 6
"""Decoder layers of the demo's recipe and of EAT's."""


class Case:
    """Student, teacher, optimiser and one batch of random clips with their masks."""

    def __init__(
        self, sizes: dict[str, Any], clips: int, frames: int, device: torch.device, decoder_layers: int
    ) -> None:
        torch.manual_seed(0)
        decoder = Decoder(sizes["width"], decoder_layers, kernel=3, groups=16)
        self.student = Student(EAT(**sizes), decoder).to(device)
        self.teacher = make_teacher(self.student.encoder)
        self.optimiser = make_optimiser(self.student, 0.05)
        for group in self.optimiser.param_groups:
            group["lr"] = 1e-4
        self.log_mel = torch.randn(clips, frames, 128, device=device)
        grid = self.student.encoder.grid(frames)
        generator = torch.Generator().manual_seed(0)
        self.masks = inverse_block_masks(clips * MASKS, grid, RATIO, BLOCK, generator).to(device)
        self.noise = mask_noise(MASKS, grid[0] * grid[1], sizes["width"], 0, device)
        kept = self.masks.kept.shape[1]
        self.flops = step_flops(self.student.encoder, self.student.decoder, frames, kept, MASKS)

    def finish(self) -> None:
        """What every form of the update does after its backward pass."""
        nn.utils.clip_grad_norm_(self.student.parameters(), 4.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        follow(self.teacher, self.student.encoder, 0.9998)


def fast_losses(case: Case) -> Losses:
    """The losses as asdflow computes them."""
    targets = layer_targets(case.teacher, case.log_mel)
    return distillation_losses(case.student(case.log_mel, case.masks, case.noise), targets, case.masks)


def naive_losses(
    student: Student, teacher: EAT, log_mel: Tensor, masks: Masks, noise: Tensor, restricted: bool
) -> Iterator[Losses]:
    """The losses of one mask after the other, each with its own teacher pass and a student over all patches.

    `restricted` keeps visible patches (and CLS) from looking at mask tokens: then the mean over masks equals `fast_losses`.
    """
    encoder, per_clip = student.encoder, len(masks.kept) // len(log_mel)
    for j in range(per_clip):
        own = Masks(masks.kept[j::per_clip], masks.hidden[j::per_clip])
        targets = layer_targets(teacher, log_mel)
        n, patches, width = targets.shape
        seen = torch.zeros(n, patches, dtype=torch.bool, device=log_mel.device).scatter_(1, own.kept, True)
        mask_tokens = encoder.positions[:patches]
        x = encoder.with_cls(torch.where(seen[..., None], encoder.patches(log_mel), mask_tokens))
        visible = F.pad(seen, (1, 0), value=True)[:, None, None] if restricted else None
        for block in encoder.blocks:
            x = block(x, visible)
        canvas = torch.where(seen[..., None], x[:, 1:], noise[j])
        rows = (own.hidden + torch.arange(n, device=log_mel.device)[:, None] * patches).view(-1)
        predicted = student.decoder(canvas, encoder.grid(log_mel.shape[1]), rows)
        scale = width**-0.5
        wanted = targets.reshape(-1, width)[rows]
        frame = (predicted.float() - wanted).square().sum(1).mean() * scale
        yield Losses(frame, (x[:, 0].float() - targets.mean(1)).square().sum(1).mean() * scale)


def fast_step(case: Case) -> float:
    """One update as asdflow makes it; returns its loss."""
    losses = fast_losses(case)
    loss = losses.frame + losses.utterance
    loss.backward()
    case.finish()
    return loss.item()


def naive_step(case: Case, restricted: bool) -> float:
    """The same update done plainly; returns its loss."""
    total = 0.0
    for losses in naive_losses(case.student, case.teacher, case.log_mel, case.masks, case.noise, restricted):
        loss = (losses.frame + losses.utterance) / MASKS
        loss.backward()
        total += loss.item()
    case.finish()
    return total


def best_seconds(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Shortest time of each form, the forms taking turns so that a busy machine is busy for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(taken[1:]) for name, taken in seconds.items()}


def benchmark_cpu(batch: int, repeats: int, decoder_layers: int) -> None:
    """The small encoder on the CPU, against the plain forms, all with the same decoder and the same allocator settings."""
    keep_freed_memory()
    device, frames = torch.device("cpu"), 608
    cases = {
        name: Case(SMALL, batch, frames, device, decoder_layers)
        for name in ("asdflow", "restricted", "plain")
    }
    losses = {
        "asdflow": fast_step(cases["asdflow"]),
        "restricted": naive_step(cases["restricted"], True),
        "plain": naive_step(cases["plain"], False),
    }
    moved = max(
        float((a - b).detach().abs().max())
        for a, b in zip(
            cases["asdflow"].student.parameters(), cases["restricted"].student.parameters(), strict=True
        )
    )
    seconds = best_seconds(
        {
            "asdflow": lambda: fast_step(cases["asdflow"]),
            "restricted": lambda: naive_step(cases["restricted"], True),
            "plain": lambda: naive_step(cases["plain"], False),
        },
        repeats,
    )
    rate = {name: batch / taken for name, taken in seconds.items()}
    print(
        f"CPU, {torch.get_num_threads()} thread(s), EAT {SMALL['width']} x {SMALL['depth']}, {frames} frames, {MASKS} masks,"
    )
    print(f"decoder of {decoder_layers} layers, {batch} clips per update, best of {repeats}:")
    gflops = cases["asdflow"].flops / 1e9
    names = {"asdflow": "asdflow", "restricted": "plain, mask tokens unseen", "plain": "plain, usual"}
    for name, text in names.items():
        print(
            f"  {text:28s}{rate[name]:8.2f} clips/s, asdflow is {rate['asdflow'] / rate[name]:.2f} times as fast"
        )
    print(f"  {gflops:.1f} GFLOP per clip and update for asdflow: {gflops * rate['asdflow']:.0f} GFLOP/s")
    print(
        f"  first loss: asdflow {losses['asdflow']:.6f}, plain with mask tokens unseen {losses['restricted']:.6f}, "
        f"plain {losses['plain']:.6f} (another function, not expected to agree)"
    )
    print(
        f"  largest difference of a weight after that update, asdflow against mask tokens unseen: {moved:.1e}"
    )


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Softmax attention written out, as straightforward code has it."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, float("-inf"))
    return weights.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


@contextmanager
def straightforward() -> Iterator[None]:
    """Attention without the fused kernel."""
    with mock.patch.object(F, "scaled_dot_product_attention", explicit_attention):
        yield


def straightforward_step(case: Case, scaler: GradScaler) -> None:
    """One update in fp16 with loss scaling, eager."""
    with straightforward(), torch.autocast("cuda", torch.float16):
        losses = fast_losses(case)
    scaler.scale(losses.frame + losses.utterance).backward()
    scaler.unscale_(case.optimiser)
    nn.utils.clip_grad_norm_(case.student.parameters(), 4.0)
    scaler.step(case.optimiser)
    scaler.update()
    case.optimiser.zero_grad()
    with torch.no_grad():
        for slow, quick in zip(case.teacher.parameters(), case.student.encoder.parameters(), strict=True):
            slow.mul_(0.9998).add_(quick, alpha=0.0002)


def compiled_step(case: Case, targets_of: Callable[[EAT, Tensor], Tensor]) -> None:
    """One update as `pretrain` makes it on CUDA: bf16, compiled, fused optimiser."""
    with torch.autocast("cuda", torch.bfloat16):
        targets = targets_of(case.teacher, case.log_mel)
        prediction = case.student(case.log_mel, case.masks, case.noise)
    losses = distillation_losses(prediction, targets, case.masks)
    (losses.frame + losses.utterance).backward()
    case.finish()


def cuda_seconds(step: Callable[[], None], repeats: int, warmup: int = 5) -> float:
    """Mean time of an update on the GPU, all queued work included."""
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def benchmark_cuda(batch: int, repeats: int) -> None:
    """EAT-base on a GPU, against a straightforward fp16 implementation; says so when there is no GPU."""
    if not torch.cuda.is_available():
        print("CUDA: PyTorch sees no CUDA device here, so the GPU part was not run.")
        return
    device, frames = torch.device("cuda"), 1024
    rate = matrix_rate(device)
    results = {}
    for name, measure in (
        ("straightforward (fp16)", straightforward_seconds),
        ("asdflow (bf16)", asdflow_seconds),
    ):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        case = Case(BASE, batch, frames, device, EAT_LAYERS)
        results[name] = measure(case, repeats), torch.cuda.max_memory_allocated() / 2**30
    print(
        f"{torch.cuda.get_device_name(device)}: EAT-base, {frames} frames, {MASKS} masks, {batch} clips per update"
    )
    print(
        f"  measured bf16 matrix rate {rate / 1e12:.0f} TFLOP/s; {case.flops / 1e12:.3f} TFLOP per clip and update"
    )
    for name, (seconds, memory) in results.items():
        share = batch / seconds * case.flops / rate
        print(
            f"  {name:24s}{batch / seconds:9.1f} clips/s  utilisation {share:.1%}  peak memory {memory:.1f} GiB"
        )
    print(f"  speed-up {results['straightforward (fp16)'][0] / results['asdflow (bf16)'][0]:.2f}")


def straightforward_seconds(case: Case, repeats: int) -> float:
    """Seconds per update of the straightforward fp16 form."""
    case.optimiser = torch.optim.AdamW(case.student.parameters(), lr=1e-5, foreach=False, fused=False)
    scaler = GradScaler("cuda")
    return cuda_seconds(lambda: straightforward_step(case, scaler), repeats)


def asdflow_seconds(case: Case, repeats: int) -> float:
    """Seconds per update of asdflow's form."""
    case.student.compile()
    targets_of = torch.compile(layer_targets)
    return cuda_seconds(lambda: compiled_step(case, targets_of), repeats)


def write_clips(folder: Path, n: int, frames: int = 598) -> tuple[Path, Path]:
    """A data set of `n` 6-s clips: clips.parquet and the features of its one machine."""
    ids = [f"machine/train/{k:06d}" for k in range(n)]
    writer = FeatureWriter(folder / "machine.h5", ids, [frames] * n, FRONT_ENDS["eat_logmel"])
    values = np.random.default_rng(0).normal(size=(frames, 128)).astype(np.float16)
    for row in range(n):
        writer.write(row, np.roll(values, row, axis=0), f"{row:064x}")
    writer.finish()
    table = pd.DataFrame(
        {"clip_id": ids, "machine": "machine", "split": "train", "condition": "normal", "supplement": None}
    )
    table.to_parquet(folder / "clips.parquet")
    return folder / "clips.parquet", folder / "machine.h5"


def memory_run(folder: Path) -> None:
    """A short pre-training on the data set in `folder`: as many updates as touch every clip of the larger one in part."""
    recipe: dict[str, Any] = {
        "steps": 150, "epochs": None, "batch_size": 32, "accumulate": 1, "masks": 2, "mask_ratio": RATIO, "block": BLOCK,
        "decoder": {"layers": 1, "kernel": 3, "groups": 16}, "utterance_weight": 1.0, "learning_rate": 1e-4, "warmup": 0.1,
        "weight_decay": 0.05, "clip_norm": 4.0, "ema": {"start": 0.99, "end": 0.999, "anneal_steps": None},
        "crop_frames": 64, "balance": "machines", "supplemental": True, "export": "student", "precision": "auto",
        "compile": False, "checkpoint_minutes": 60.0, "log_every": 50, "seed": 0, "front_end": "eat_logmel",
        "architecture": {"name": "eat", **SMALL},
    }  # fmt: skip
    sources = {"data": (folder / "clips.parquet", [folder / "machine.h5"])}
    pretrain(recipe, sources, None, folder / "out", folder / "checkpoints", "cpu")


def private_memory(command: list[str]) -> float:
    """Highest private memory (resident, without pages of mapped files) of a process while it runs, in MiB."""
    process = subprocess.Popen(command)
    peak = 0.0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
        peak = max([peak, *(int(value) / 1024 for value in found)])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the measured run failed with exit code {process.returncode}")
    return peak


def benchmark_memory() -> None:
    """Peak private memory of a run on 500 clips and on ten times as many."""
    peaks: dict[int, float] = {}
    for n in (500, 5000):
        with tempfile.TemporaryDirectory() as name:
            write_clips(Path(name), n)
            peaks[n] = private_memory([sys.executable, __file__, "--memory-run", name])
    growth = peaks[5000] / peaks[500] - 1
    print(json.dumps({f"{n} clips": f"{peak:.0f} MiB" for n, peak in peaks.items()}))
    print(f"Peak private memory grows by {growth:.1%} when the data set grows tenfold.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["cpu", "cuda", "memory", "all"], default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--batch", type=int, default=None, help="clips per update (default: 4 on the CPU, 24 on CUDA)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-run", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_run is not None:
        memory_run(options.memory_run)
        return
    if options.part in ("cpu", "all"):
        for layers in (DEMO_LAYERS, EAT_LAYERS):
            benchmark_cpu(options.batch or 4, options.repeats, layers)
    if options.part in ("cuda", "all"):
        benchmark_cuda(options.batch or 24, 4 * options.repeats)
    if options.part in ("memory", "all"):
        benchmark_memory()


if __name__ == "__main__":
    main()
