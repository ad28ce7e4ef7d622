"""Embeddings of all clips from one encoder: batched by length, pooled, written as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asdflow.device import pick_device
from asdflow.errors import InputError
from asdflow.features.embeddings import embeddings_writer
from asdflow.features.store import FeatureStore, collate, front_end_digest, padded_length
from asdflow.models.encoder import Encoder
from asdflow.models.loading import load_encoder
from asdflow.models.pooling import Pooling, build_pooling

log = logging.getLogger(__name__)
LOG_SECONDS = 30.0


class Embedder(torch.nn.Module):
    """An encoder and a pooling in one: log-mel [batch, frames, bins] -> embeddings float32 [batch, width].

    Parameters
    ----------
    encoder : frozen encoder.
    pooling : settings of `build_pooling`; `layers` (optional) names blocks whose tokens are put side by side.

    Raises InputError for layers that the encoder has not and for poolings that have to be trained.
    """

    def __init__(self, encoder: Encoder, pooling: Mapping[str, Any]) -> None:
        super().__init__()
        if pooling["kind"] == "attentive_statistics" or pooling.get("projection"):
            raise InputError(
                "this pooling has weights that must be trained, a frozen encoder's embeddings cannot use it",
                [f"pooling: {dict(pooling)}"],
                "choose mean, cls, mean_deviation or generalised_mean, without projection",
            )
        self.encoder = encoder
        self.layers: list[int] | None = pooling.get("layers")
        width = encoder.width * (1 if self.layers is None else len(encoder.layer_numbers(self.layers)))
        try:
            self.pooling: Pooling = build_pooling(pooling, width, encoder.has_cls)
        except ValueError as error:
            raise InputError(
                f"the pooling does not fit the {encoder.architecture} encoder", [str(error)]
            ) from error
        self.width = self.pooling.output_width

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """log_mel [batch, frames, bins] -> [batch, width]."""
        found = self.encoder(log_mel, self.layers)
        tokens = found if self.layers is None else torch.cat(found, dim=-1)
        return self.pooling(tokens.float())


def batches_by_length(
    n_frames: npt.NDArray[np.int64], pad_multiple: int, batch_size: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Item numbers in batches of at most `batch_size` whose clips all have the same padded length.

    A clip is thus padded the same way in whatever company it comes, and needs no mask.
    """
    lengths = padded_length(n_frames, pad_multiple)
    for length in np.unique(lengths):
        items = np.flatnonzero(lengths == length)
        yield from (items[first : first + batch_size] for first in range(0, len(items), batch_size))


def embed(
    encoder_dir: Path,
    features: Sequence[Path],
    output: Path,
    pooling: Mapping[str, Any],
    device: str = "auto",
    batch_size: int = 32,
) -> None:
    """Write embeddings.h5 with one embedding per clip of the feature files, in their order.

    Parameters
    ----------
    encoder_dir : anything `load_encoder` takes.
    features : feature files of one data set.
    output : the HDF5 file, see `asdflow.features.embeddings`.
    pooling : settings of `build_pooling` and, optionally, `layers`.
    device : auto, cpu or cuda; on CUDA passes run compiled, in bf16.
    batch_size : clips per pass.

    Memory holds two batches, however many clips there are. Raises InputError when the features are of another front end
    than the encoder's.
    """
    target = pick_device(device)
    encoder = load_encoder(encoder_dir)
    store = FeatureStore({"clips": features})
    _refuse_other_front_end(store, encoder)
    embedder = Embedder(encoder, pooling).eval().to(target)
    batches = list(
        batches_by_length(store.index["n_frames"].to_numpy(np.int64), encoder.pad_multiple, batch_size)
    )
    clock = _Clock(len(store), target)
    with embeddings_writer(output, store.index["clip_id"].tolist(), embedder.width) as write:
        for items, embeddings in _passes(embedder, store, batches, target):
            if not np.isfinite(embeddings).all():
                clips = store.index["clip_id"].iloc[items[~np.isfinite(embeddings).all(axis=1)]]
                raise InputError(
                    f"{encoder_dir} gives embeddings that are not finite", clips.tolist(), "check the encoder"
                )
            write(items, embeddings)
            clock.add(len(items))
    clock.report()


def _refuse_other_front_end(store: FeatureStore, encoder: Encoder) -> None:
    if store.front_end_digest != front_end_digest(encoder.front_end.config):
        raise InputError(
            "the features were made by another front end than the encoder's",
            [f"{store.files[0][1]}: {store.front_end}", f"encoder: {encoder.front_end.name}"],
            "extract the features with the encoder's front end",
        )


def _passes(
    embedder: Embedder, store: FeatureStore, batches: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield (items, embeddings [batch, width])."""
    cuda = device.type == "cuda"
    network: Any = torch.compile(embedder) if cuda else embedder
    for items, batch in _read_ahead(store, batches, embedder.encoder, pin=cuda):
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            embeddings = network(batch.to(device, non_blocking=True))
        yield items, embeddings.float().cpu().numpy()


def _read_ahead(
    store: FeatureStore, batches: Sequence[npt.NDArray[np.int64]], encoder: Encoder, pin: bool
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """Yield (items, log-mel [batch, frames, bins]); the next batch is read while the caller works on one."""

    def load(items: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = collate([store.frames(int(item)) for item in items], encoder.pad_multiple, encoder.pad_value)
        return batch.pin_memory() if pin else batch

    with ThreadPoolExecutor(1) as reader:
        waiting: list[tuple[npt.NDArray[np.int64], Future[torch.Tensor]]] = []
        for items in batches:
            waiting.append((items, reader.submit(load, items)))
            if len(waiting) == 2:
                ready, future = waiting.pop(0)
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


class _Clock:
    """Logs clips per second now and then, and at the end with the peak memory on CUDA."""

    def __init__(self, total: int, device: torch.device) -> None:
        self.total, self.device, self.done = total, device, 0
        self.start = self.last = time.monotonic()

    def add(self, clips: int) -> None:
        self.done += clips
        now = time.monotonic()
        if now - self.last >= LOG_SECONDS:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            log.info("%d of %d clips, %.1f clips/s, %.0f s left", self.done, self.total, rate, left)

    def report(self) -> None:
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        memory = ""
        if self.device.type == "cuda":
            memory = f", peak memory {torch.cuda.max_memory_allocated(self.device) / 1e6:.0f} MB"
        log.info("%d clips embedded, %.1f clips/s%s", self.done, rate, memory)
