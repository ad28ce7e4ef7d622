"""The clock of a training loop: averages since the last line, clips/s, time left, memory, FLOP utilisation, history."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from asdflow.errors import InputError
from asdflow.tables import write_parquet

log = logging.getLogger(__name__)
Row = tuple[int, str, float]


class Progress:
    """Averages what a loop reports and logs one line every `log_every` updates.

    Parameters
    ----------
    steps : updates of the whole run. first_step : updates made before (a resumed run).
    device : where peak memory is read.
    clips_per_step : clips per update, for the rate.
    flops_per_step : operations per update, for the model FLOP utilisation (printed on CUDA only).
    rows : history so far: (step, metric, value); goes into checkpoints.
    """

    def __init__(
        self,
        steps: int,
        log_every: int,
        device: torch.device,
        clips_per_step: int,
        *,
        flops_per_step: float | None = None,
        first_step: int = 0,
        rows: list[Row] | None = None,
    ) -> None:
        self.steps, self.log_every, self.device = steps, log_every, device
        self.clips_per_step, self.flops_per_step = clips_per_step, flops_per_step
        self.rows: list[Row] = [(int(s), str(m), float(v)) for s, m, v in rows or []]
        self._sums: dict[str, torch.Tensor | float] = {}
        self._count = 0
        self._since = time.perf_counter()
        self.matrix_rate = matrix_rate(device) if flops_per_step and device.type == "cuda" else None

    def after_step(self, step: int, metrics: Mapping[str, torch.Tensor | float]) -> dict[str, float] | None:
        """Take in an update's figures; `step` counts the updates made so far.

        Tensors stay on their device until a line is due, so that a GPU is not waited for. Returns the averages when a
        line was logged, else None. Raises InputError when a figure is not finite: the run has diverged.
        """
        for name, value in metrics.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.log_every and step != self.steps:
            return None
        values = {name: float(total) / self._count for name, total in self._sums.items()}
        values |= self._machine_figures()
        self._sums, self._count, self._since = {}, 0, time.perf_counter()
        self.rows += [(step, name, value) for name, value in values.items()]
        log.info("%s", self._line(step, values))
        _refuse_divergence(step, values)
        return values

    def _machine_figures(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {"clips_per_second": self._count * self.clips_per_step / seconds}
        values["peak_memory_mb"] = peak_memory_mb(self.device)
        if self.flops_per_step and self.matrix_rate:
            values["flop_utilisation"] = self._count * self.flops_per_step / seconds / self.matrix_rate
        return values

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        rate = values["clips_per_second"]
        left = (self.steps - step) * self.clips_per_step / rate
        shown = {
            k: v
            for k, v in values.items()
            if k not in ("clips_per_second", "peak_memory_mb", "flop_utilisation")
        }
        parts = [f"update {step}/{self.steps}", f"{rate:.4g} clips/s", f"{format_seconds(left)} left"]
        parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()]
        parts.append(f"peak memory {values['peak_memory_mb']:.0f} MB")
        if "flop_utilisation" in values:
            parts.append(f"model FLOP utilisation {values['flop_utilisation']:.0%}")
        return ", ".join(parts)

    def write(self, path: Path) -> None:
        """Write history.parquet: step (int64), metric (string), value (float64)."""
        table = pd.DataFrame(self.rows, columns=["step", "metric", "value"])
        table = table.astype({"step": "int64", "metric": "string", "value": "float64"})
        write_parquet(table, path)


def _refuse_divergence(step: int, values: Mapping[str, float]) -> None:
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise InputError(
            f"training has diverged by update {step}",
            wrong,
            "lower the learning rate or lengthen the warm-up",
        )


def format_seconds(seconds: float) -> str:
    """'2 h 05 min', '3 min 20 s' or '12 s'."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m:02d} min"
    return f"{m} min {s:02d} s" if m else f"{s} s"


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory of the process so far in MiB: of the GPU's allocator on CUDA, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matrix_rate(device: torch.device, size: int = 8192, repeats: int = 10) -> float:
    """Measured bf16 rate of a large square matrix product on a CUDA device, in floating-point operations per second.

    This, not the data sheet, is what model FLOP utilisation is a share of.
    """
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        a @ a
    end.record()
    torch.cuda.synchronize(device)
    return repeats * 2 * size**3 / (start.elapsed_time(end) / 1000)
