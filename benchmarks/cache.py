"""Random reads of 10-s clips from the warm feature cache, on one core: clips per second.

Usage: python benchmarks/cache.py [--clips 2000] [--reads 20000]

A read maps the clip's frames and copies them (256 kB), which is what a batch does at the least. For comparison: a bare copy
of the same bytes at random places of memory (the floor), the clip's first read, which also compares its checksum, and a
batch made ready for an encoder (`collate`: float32, padded).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from asdflow.features.front_end import FRONT_ENDS
from asdflow.features.store import FeatureStore, FeatureWriter, collate

EAT = FRONT_ENDS["eat_logmel"]
N_FRAMES = EAT.n_frames(160_000)


def make_cache(path: Path, n_clips: int) -> None:
    """Write a feature file of `n_clips` 10-s clips."""
    rng = np.random.default_rng(0)
    writer = FeatureWriter(path, [f"clip_{k:06d}" for k in range(n_clips)], [N_FRAMES] * n_clips, EAT)
    frames = rng.normal(size=(N_FRAMES, EAT.bins)).astype(np.float16)
    for row in range(n_clips):
        writer.write(row, np.roll(frames, row, axis=0), f"{row:064x}")
    writer.finish()


def rate(store: FeatureStore, items: np.ndarray) -> float:
    """Clips per second of mapping and copying `items`, best of three."""
    buffer = np.empty((N_FRAMES, EAT.bins), np.float16)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for item in items:
            np.copyto(buffer, store.frames(item))
        seconds.append(time.perf_counter() - start)
    return len(items) / min(seconds)


def copy_rate(n_clips: int, items: np.ndarray) -> float:
    """Clips per second of copying the same bytes from memory, best of three."""
    memory = np.zeros((n_clips, N_FRAMES, EAT.bins), np.float16)
    memory[:, 0, 0] = 1  # so that every page exists
    buffer = np.empty((N_FRAMES, EAT.bins), np.float16)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for item in items:
            np.copyto(buffer, memory[item])
        seconds.append(time.perf_counter() - start)
    return len(items) / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--reads", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    items = np.random.default_rng(1).integers(options.clips, size=options.reads).tolist()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "machine.h5"
        make_cache(path, options.clips)
        store = FeatureStore({"benchmark": [path]})
        start = time.perf_counter()
        for item in range(options.clips):
            store.frames(item)
        first = options.clips / (time.perf_counter() - start)
        warm = rate(store, items)
        start = time.perf_counter()
        for begin in range(0, len(items) // 10, 32):
            collate([store.frames(item) for item in items[begin : begin + 32]], 64, EAT.pad_value)
        batches = len(range(0, len(items) // 10, 32)) * 32 / (time.perf_counter() - start)
    print(f"random reads, warm: {warm:.0f} clips/s ({warm * N_FRAMES * EAT.bins * 2 / 1e9:.1f} GB/s)")
    print(f"copy of the same bytes from memory: {copy_rate(options.clips, items):.0f} clips/s")
    print(f"first read of each clip, with its checksum: {first:.0f} clips/s")
    print(f"batches of 32 as an encoder takes them (float32, padded to 1024): {batches:.0f} clips/s")


if __name__ == "__main__":
    main()
