"""Detection throughput: ten-second clips per minute, and memory and time of a recording of many hours.

Usage: python benchmarks/detect.py [--system attribute_aware] [--clips 200] [--workers N] [--hours 8] [--model MODEL_DIR]

Without --model a system is built as its YAML says, with random weights in the encoder (the cost is the same) and a memory
of 100 training clips; its recordings are noise. CPU seconds a clip are given beside the wall clock, because they hardly
change when other work keeps the cores busy. Peak memory is the process's own, before and after the long recording.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from asdflow.configuration import load_configuration
from asdflow.data.catalogue import build_catalogue, write_catalogue
from asdflow.detection.detect import Options, score_all
from asdflow.detection.score import score
from asdflow.detection.system import System, export_detector
from asdflow.features.embeddings import write_embeddings
from asdflow.features.front_end import build_front_end
from asdflow.models.encoder import build_encoder, save_encoder
from asdflow.training.network import TunedModel

ROOT = Path(__file__).resolve().parents[1]
RATE, SECONDS = 16_000, 10


def noise(path: Path, seconds: float, seed: int) -> Path:
    """A recording of noise, written by the minute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        minute = rng.normal(scale=0.1, size=60 * RATE)
        for start in range(0, round(seconds), 60):
            file.write(minute[: round(min(60, seconds - start) * RATE)])
    return path


def build_model(name: str, folder: Path) -> Path:
    """A system with random weights, exported."""
    configuration = load_configuration({"run": {"systems": [name]}}, ROOT)
    system = configuration["systems"][name]
    encoder = build_encoder(configuration["encoders"][system["encoder"]], 0)
    save_encoder(encoder, folder / "encoder")
    for number in range(100):
        kind = "source" if number < 90 else "target"
        noise(
            folder / f"data/fan/train/section_00_{kind}_train_normal_{number:04d}_vel_1.wav", SECONDS, number
        )
    noise(folder / "data/fan/test/section_00_source_test_normal_0000_vel_1.wav", SECONDS, 1000)
    clips, _ = build_catalogue(folder / "data", {"rules_of": 2025})
    write_catalogue(clips, folder / "clips.parquet")
    model = TunedModel(system, encoder, ["fan"], 0, torch.device("cpu"))
    model.save(folder / "model", folder / "encoder", ["fan"])
    front_end = build_front_end(model.front_end)
    vectors = []
    for path in clips["path"]:
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
        vectors.append(model.embed([front_end(samples)[0].half().numpy()], ["fan"])[0])
    write_embeddings(folder / "embeddings.h5", clips["clip_id"].tolist(), np.array(vectors))
    settings = {"backend": system["backend"], "decision": system["decision"]}
    score(folder / "clips.parquet", folder / "embeddings.h5", settings, 0, folder / "scored")
    exported = folder / "exported"
    export_detector(
        folder / "clips.parquet",
        folder / "model",
        folder / "encoder",
        folder / "scored" / "detector",
        exported,
        {},
    )
    return exported


def peak_mb() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", default="attribute_aware")
    parser.add_argument("--model", type=Path, help="an exported system of one machine")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hours", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        system = System(options.model or build_model(options.system, folder), None, None)
        paths = [noise(folder / "new" / f"{k}.wav", SECONDS, k) for k in range(options.clips)]
        score_all(system, paths[:4], Options(workers=options.workers))
        wall, cpu = time.perf_counter(), time.process_time()
        score_all(system, paths, Options(workers=options.workers))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{options.clips} clips of {SECONDS} s, {options.workers} workers: {60 * options.clips / wall:.0f} clips/min, "
            f"{1000 * cpu / options.clips:.0f} ms of CPU a clip ({60 * options.workers * options.clips / cpu:.0f} clips/min "
            f"on {options.workers} free cores)"
        )
        if options.hours:
            path, before = noise(folder / "long.wav", options.hours * 3600, 0), peak_mb()
            wall = time.perf_counter()
            row = score_all(system, [path], Options(workers=options.workers))[0].row
            wall = time.perf_counter() - wall
            print(
                f"{options.hours:g} h, {row.windows} windows, {options.workers} workers: {wall:.0f} s, peak memory {peak_mb():.0f} MiB "
                f"({peak_mb() - before:+.0f} MiB)"
            )


if __name__ == "__main__":
    main()
