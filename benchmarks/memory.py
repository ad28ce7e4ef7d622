"""Peak memory of feature extraction and of embedding, for a data set and for one ten times as large.

Usage: python benchmarks/memory.py [--clips 40]

Every measurement is a process of its own (peak resident memory of the process, from the operating system). The clips are
10 s of noise, one file read again and again; the encoder is the small EAT.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from asdflow.features.extract import extract_features
from asdflow.models.embed import embed
from asdflow.models.encoder import build_encoder, save_encoder

ENCODER = {
    "front_end": "eat_logmel",
    "architecture": {"name": "eat", "width": 64, "depth": 2, "heads": 2, "pad_multiple": 16},
}


def run_stage(stage: str, n_clips: int, folder: Path) -> None:
    """Run one stage over `n_clips` clips and print the process's peak memory in MB."""
    torch.set_num_threads(1)
    features = folder / f"{n_clips}" / "machine.h5"
    if stage == "extract":
        names = [f"machine/train/{k:06d}" for k in range(n_clips)]
        clips = pd.DataFrame({"clip_id": names, "path": str(folder / "clip.wav"), "n_samples": 160_000})
        extract_features(clips.assign(sample_rate=16_000), "eat_logmel", {}, features, workers=1)
    else:
        embed(
            folder / "encoder", [features], features.with_name("e.h5"), {"kind": "mean"}, "cpu", batch_size=8
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def peak(stage: str, n_clips: int, folder: Path) -> float:
    """Peak memory in MB of a stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--clips", str(n_clips), "--folder", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--stage", choices=["extract", "embed"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.clips, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).normal(scale=0.1, size=160_000)
        soundfile.write(folder / "clip.wav", noise, 16_000, subtype="PCM_16")
        save_encoder(build_encoder(ENCODER, 0), folder / "encoder")
        for stage in ("extract", "embed"):
            small, large = (peak(stage, n_clips, folder) for n_clips in (options.clips, 10 * options.clips))
            print(
                f"{stage}: {small:.0f} MB for {options.clips} clips, {large:.0f} MB for {10 * options.clips}: {large / small - 1:+.1%}"
            )


if __name__ == "__main__":
    main()
