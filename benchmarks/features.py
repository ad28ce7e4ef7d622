"""Feature extraction against a loop over torchaudio's Kaldi log-mel: read, log-mel, write, in one run.

Usage: python benchmarks/features.py [--clips 200] [--repeats 5] [--recordings FOLDER]

Without --recordings, noise in 10-s WAV files. The loop reads with soundfile, calls torchaudio.compliance.kaldi.fbank for
each clip and writes its frames into an HDF5 file, flushed to the disk and renamed as ours is; it runs with one torch
thread and with one per core, and the better setting counts. Ours is `extract_features` with one worker, with one per core,
and as the workflow runs it: one job (process, started before) per core, each with a machine of its own. All variants take
turns, the best of the repeats counts: other work on the machine can only slow a run down. Processor time is that of the
measuring process, so it is not given for jobs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import soundfile
import torch
import torchaudio
from asdflow.features.extract import extract_features
from asdflow.features.front_end import FRONT_ENDS, mel_matrix
from asdflow.files import atomic_path

EAT = FRONT_ENDS["eat_logmel"]


def recordings(folder: Path | None, n_clips: int, scratch: Path) -> pd.DataFrame:
    """Catalogue rows of `n_clips` clips: those of a folder, repeated as needed, or noise."""
    if folder is None:
        rng = np.random.default_rng(0)
        found = [scratch / f"{k:05d}.wav" for k in range(n_clips)]
        for path in found:
            soundfile.write(path, rng.normal(scale=0.1, size=160_000), 16_000, subtype="PCM_16")
    else:
        found = sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))
    paths = [found[k % len(found)] for k in range(n_clips)]
    lengths = [soundfile.info(path).frames for path in paths]
    names = [f"clip_{k:05d}" for k in range(n_clips)]
    return pd.DataFrame(
        {"clip_id": names, "path": [str(path) for path in paths], "n_samples": lengths, "sample_rate": 16_000}
    )


def kaldi_loop(clips: pd.DataFrame, output: Path, threads: int) -> None:
    """What one writes first: clip by clip, each frame matrix appended to one dataset."""
    torch.set_num_threads(threads)
    with atomic_path(output) as temporary, h5py.File(temporary, "w") as file:
        frames = file.create_dataset("frames", (0, 128), np.float16, maxshape=(None, 128), chunks=(1000, 128))
        for path in clips["path"]:
            samples, _ = soundfile.read(path, dtype="float32")
            waveform = torch.from_numpy(samples)
            log_mel = torchaudio.compliance.kaldi.fbank(
                (waveform - waveform.mean())[None],
                htk_compat=True,
                window_type="hanning",
                num_mel_bins=128,
                dither=0.0,
            )
            values = ((log_mel - EAT.mean) / (2 * EAT.std)).half().numpy()
            frames.resize(len(frames) + len(values), axis=0)
            frames[-len(values) :] = values


def run_jobs(pool: ProcessPoolExecutor, clips: pd.DataFrame, output: Path, jobs: int) -> None:
    """Extract `jobs` machines at once, each a share of the clips, each in a process of the pool."""
    shares = [clips.iloc[first::jobs] for first in range(jobs)]
    started = [
        pool.submit(extract_features, share, "eat_logmel", {}, output.with_stem(f"machine_{number}"), 1)
        for number, share in enumerate(shares)
    ]
    for job in started:
        job.result()


def best_times(variants: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds (elapsed, of processors) of the best of `repeats` runs of each variant; they take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, run in variants.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - busy))
    warm = {name: np.array(measured[1:]).min(axis=0) for name, measured in times.items()}
    return {name: (float(elapsed), float(busy)) for name, (elapsed, busy) in warm.items()}


def print_floor() -> None:
    """What one 10-s clip costs at least: arithmetic and bytes."""
    frames, bins = EAT.n_frames(160_000), EAT.n_fft // 2 + 1
    transform = 2.5 * EAT.n_fft * np.log2(EAT.n_fft) * frames / 1e6
    weights = int((mel_matrix(EAT) != 0).sum())
    print(f"one 10-s clip: {frames} real FFTs of {EAT.n_fft} points, {transform:.1f} MFLOP;")
    print(
        f"mel product: {2 * weights * frames / 1e6:.1f} MFLOP on the {weights} weights that are not zero "
        f"({2 * bins * 128 * frames / 1e6:.1f} MFLOP on all {bins * 128});"
    )
    print(f"320 kB of 16-bit samples read, {frames * 128 * 2 / 1e3:.0f} kB of float16 frames written")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recordings", type=Path, help="folder of WAV or FLAC files at 16 kHz, one channel")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        clips = recordings(options.recordings, options.clips, scratch)
        output = scratch / "machine.h5"
        settings = sorted({1, cores})
        variants: dict[str, Callable[[], None]] = {}
        for threads in settings:
            variants[f"loop over kaldi.fbank, {threads} torch threads"] = partial(
                kaldi_loop, clips, output, threads
            )
        for workers in settings:
            variants[f"extract_features, {workers} workers"] = partial(
                extract_features, clips, "eat_logmel", {}, output, workers
            )
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
            variants[f"extract_features, {cores} jobs"] = partial(run_jobs, pool, clips, output, cores)
            seconds = best_times(variants, options.repeats)
    for variant, (elapsed, busy) in seconds.items():
        processor = (
            "" if variant.endswith("jobs") else f", {busy / len(clips) * 1e3:.2f} ms of processor time"
        )
        print(
            f"{variant}: {len(clips) / elapsed:.0f} clips/s ({elapsed / len(clips) * 1e3:.2f} ms per clip{processor})"
        )
    loop = min(elapsed for variant, (elapsed, _) in seconds.items() if variant.startswith("loop"))
    for kind in ("workers", "jobs"):
        ours = min(elapsed for variant, (elapsed, _) in seconds.items() if variant.endswith(kind))
        print(f"best with {kind}: {loop / ours:.2f} times the clips/s of the loop at its best setting")
    print_floor()


if __name__ == "__main__":
    main()
