"""How long a catalogue of many clips takes, and how much memory: generated clips, every header inspected.

usage: python benchmarks/catalogue.py [--clips 100000] [--workers 2] [--seconds 10] [--flac]

The clips lie in a temporary folder (hard links to a few generated recordings, so that a hundred thousand fit on any
disk: every name is opened, read and checked on its own). Prints one JSON object.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from asdflow.data.catalogue import build_catalogue, write_catalogue

CLIPS_PER_MACHINE = 1000
RATE = 16000


def write_clips(root: Path, count: int, seconds: float, suffix: str) -> None:
    """Lay out `count` clips as machines of a thousand training clips each."""
    originals = root / ".originals"
    originals.mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        soundfile.write(originals / f"{i}{suffix}", rng.normal(0, 0.1, int(seconds * RATE)), RATE)
    for i in range(count):
        folder = root / f"machine{i // CLIPS_PER_MACHINE:03d}" / "train"
        if i % CLIPS_PER_MACHINE == 0:
            folder.mkdir(parents=True)
        domain = "target" if i % 100 == 0 else "source"
        name = f"section_00_{domain}_train_normal_{i % CLIPS_PER_MACHINE:04d}_vel_{i % 7}_loc_A{suffix}"
        os.link(originals / f"{i % 16}{suffix}", folder / name)


def main() -> None:
    """Measure one catalogue."""
    parser = argparse.ArgumentParser(description="Measure the catalogue of many clips.")
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--flac", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_clips(root, options.clips, options.seconds, ".flac" if options.flac else ".wav")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        catalogue, _ = build_catalogue(root, {}, workers=options.workers)
        write_catalogue(catalogue, root / "clips.parquet")
        elapsed = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {
            "clips": len(catalogue),
            "workers": options.workers,
            "seconds": round(elapsed, 2),
            "clips_per_second": round(len(catalogue) / elapsed),
            "peak_memory_mb": round(peak / 1024),
            "memory_before_mb": round(before / 1024),
            "parquet_kb": round((root / "clips.parquet").stat().st_size / 1024),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
