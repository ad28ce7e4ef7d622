"""Made-up results folders, laid out as docs/architecture.md says, for tests of the report and of `compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import soundfile
from asdflow.detection.official import official_metrics
from asdflow.features.embeddings import write_embeddings
from asdflow.report.inputs import DatasetFiles, ReportInputs, dataset_files
from scipy.cluster.hierarchy import fcluster, linkage

ODD_NAMES = ('fan "left" <b>', "насос&", "<script>alert(1)</script>")
PARTS = {
    "encoder": "eat_small", "labels": {"kind": "pseudo_attributes", "clusters": "silhouette"}, "tuning": {"method": "full"},
    "objective": {"kind": "arcface", "margin": 0.3}, "augmentation": None, "pooling": "mean",
    "backend": {"kind": "nearest_neighbour"},
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much to make up: normal test clips and anomalies per domain, training clips, length of the recordings."""

    systems: Sequence[str] = ("attribute_aware", "frozen", "logmel_knn")
    machines: Sequence[str] = ("bearing", "fan", "valve")
    seeds: Sequence[int] = (0, 1)
    test: int = 12
    train: int = 24
    seconds: float = 1.0
    width: int = 8


BIG = Size(
    systems=tuple(f"system_{i:02d}" for i in range(10)), machines=tuple(f"machine{i:02d}" for i in range(16)),
    seeds=(0, 1, 2, 3), test=50, train=100, seconds=10.0, width=64,
)  # fmt: skip


def make_clips(folder: Path, size: Size, rng: np.random.Generator) -> pd.DataFrame:
    """clips.parquet's table, with two recordings per machine that its clips share."""
    rows = []
    for number, machine in enumerate(size.machines):
        paths = _recordings(folder, number, size.seconds, rng)
        for split, count in (("train", size.train), ("test", 4 * size.test)):
            for i in range(count):
                rows.append(_clip(machine, split, i, count, paths, size))
    return pd.DataFrame(rows).sort_values(["machine", "split", "path"], kind="stable").reset_index(drop=True)


def _recordings(folder: Path, number: int, seconds: float, rng: np.random.Generator) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(16000 * seconds)) / 16000
    paths = []
    for index in range(2):
        tone = np.sin(2 * np.pi * (110 + 37 * number) * (1 + index * 0.2) * time) * (
            1 + 0.5 * np.sin(2 * np.pi * 3 * time)
        )
        path = folder / f"recording_{number}_{index}.wav"
        soundfile.write(path, 0.1 * tone + 0.02 * rng.normal(size=len(time)), 16000)
        paths.append(path)
    return paths


def _clip(machine: str, split: str, i: int, count: int, paths: list[Path], size: Size) -> dict[str, object]:
    target = i >= count // 2 if split == "test" else i >= count - max(count // 8, 1)
    anomaly = split == "test" and i % 2 == 1
    domain, condition = ("target" if target else "source"), ("anomaly" if anomaly else "normal")
    hidden = machine == size.machines[0]
    label = None if hidden else f"speed={'fast' if i % 3 else 'slow'}"
    return {
        "clip_id": f"{machine}/{split}/section_00_{domain}_{split}_{condition}_{i:04d}", "path": str(paths[int(anomaly)]),
        "machine": machine, "section": "00", "domain": domain, "split": split, "condition": condition,
        "attributes": "{}" if hidden else json.dumps({"speed": "fast" if i % 3 else "slow"}), "attribute_label": label,
        "n_samples": int(16000 * size.seconds), "sample_rate": 16000, "channels": 1, "supplement": None,
    }  # fmt: skip


def make_run(
    results: Path, size: Size = Size(), name: str = "made_up", seed: int = 0, skill: float = 0.0
) -> DatasetFiles:
    """Write results/<name> and return its files; `skill` is added to every system's separation."""
    rng = np.random.default_rng(seed)
    root = results / name
    root.mkdir(parents=True, exist_ok=True)
    clips = make_clips(results / "recordings" / name, size, rng)
    clips.to_parquet(root / "clips.parquet")
    _features(root / "features" / "eat_logmel", clips, rng)
    matrix = (
        rng.normal(size=(len(clips), size.width))
        + clips["machine"].astype("category").cat.codes.to_numpy()[:, None]
    )
    for encoder in ("eat_small", "eat_small_unadapted"):
        (root / "embeddings").mkdir(exist_ok=True)
        write_embeddings(root / "embeddings" / f"{encoder}.h5", clips["clip_id"].tolist(), matrix)
    metrics = [
        _one_run(
            root / system,
            number,
            clips,
            matrix,
            0.4 + skill + 1.2 * (len(size.systems) - place) / len(size.systems),
            rng,
        )
        for place, system in enumerate(size.systems)
        for number in size.seeds
    ]
    _labels(root / size.systems[0], clips, size, rng)
    _tables(root, metrics, size)
    _history(results / "encoders" / "eat_small" / "history.parquet", rng)
    return dataset_files(
        results, name, {s: list(size.seeds) for s in size.systems}, {s: "eat_small" for s in size.systems},
        {s: "eat_small_unadapted" for s in size.systems}, "eat_logmel", synthetic=True,
    )  # fmt: skip


def _features(folder: Path, clips: pd.DataFrame, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for machine, group in clips.groupby("machine"):
        frames = int(group["n_samples"].iloc[0] / 160)
        shape = np.sin(np.linspace(0, 9, 128)) + rng.normal(size=(frames, 128)) * 0.4
        with h5py.File(folder / f"{str(machine).replace('/', '_')}.h5", "w") as file:
            file["frames"] = shape.astype(np.float16)
            file["clip_id"] = np.array(
                [c.encode() for c in group["clip_id"]], dtype=h5py.string_dtype("utf-8")
            )
            file["offset"] = np.zeros(len(group), dtype=np.int64)
            file["n_frames"] = np.full(len(group), frames, dtype=np.int64)


def _one_run(
    folder: Path, number: int, clips: pd.DataFrame, matrix: np.ndarray, skill: float, rng: np.random.Generator
) -> pd.DataFrame:
    run = folder / f"seed_{number}"
    run.mkdir(parents=True, exist_ok=True)
    test = clips[clips["split"] == "test"]
    ease = dict(
        zip(sorted(test["machine"].unique()), rng.uniform(0.3, 1.7, test["machine"].nunique()), strict=True)
    )
    anomaly = (test["condition"] == "anomaly").to_numpy()
    values = rng.normal(size=len(test)) + anomaly * skill * test["machine"].map(ease).to_numpy()
    scores = pd.DataFrame(
        {
            "clip_id": test["clip_id"].to_numpy(),
            "anomaly_score": values,
            "decision": (values > 1.0).astype(np.int64),
        }
    )
    scores.to_parquet(run / "scores.parquet")
    write_embeddings(
        run / "embeddings.h5", clips["clip_id"].tolist(), matrix + rng.normal(size=matrix.shape) * 0.2
    )
    _history(run / "history.parquet", rng)
    _detector(run / "detector" / "detector.json", sorted(test["machine"].unique()))
    table = test.merge(scores, on="clip_id").assign(label=anomaly.astype(np.int64))
    found = official_metrics(table, 2025)
    return found.assign(system=folder.name, seed=number)[
        ["system", "seed", "machine", "section", "metric", "value"]
    ]


def _detector(path: Path, machines: Sequence[str]) -> None:
    """The part of detector.json that the report reads; normal scores are standard normal, so 1 is exceeded by 16 %."""
    path.parent.mkdir(exist_ok=True)
    threshold = {"threshold": 1.0, "expected_false_alarm_rate": 0.16}
    units = [{"machine": machine, "section": "00", "threshold": threshold} for machine in machines]
    path.write_text(json.dumps({"settings": {"backend": {"name": "knn"}}, "units": units}), encoding="utf-8")


def _history(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.arange(0, 1000, 10)
    curves = {
        "loss": 3 * np.exp(-steps / 300) + 0.1 * rng.random(len(steps)), "learning_rate": 1e-4 * np.sin(np.pi * steps / 1000),
        "clips_per_second": 90 + 5 * rng.random(len(steps)), "similarity": 1 - np.exp(-steps / 200),
    }  # fmt: skip
    parts = [
        pd.DataFrame({"step": steps, "metric": metric, "value": values}) for metric, values in curves.items()
    ]
    pd.concat(parts, ignore_index=True).to_parquet(path)


def _labels(folder: Path, clips: pd.DataFrame, size: Size, rng: np.random.Generator) -> None:
    """Pseudo labels of the first machine by Ward clustering, true attributes elsewhere."""
    train = clips[clips["split"] == "train"].reset_index(drop=True)
    names = train["machine"] + "|" + train["attribute_label"].fillna("") + "|" + train["domain"]
    arrays: dict[str, np.ndarray] = {}
    for domain, group in train[train["machine"] == size.machines[0]].groupby("domain"):
        if len(group) < 3:
            continue
        points = rng.normal(size=(len(group), 4)) + rng.integers(0, 3, len(group))[:, None] * 5
        tree = linkage(points, "ward")
        clusters = fcluster(tree, 3, "maxclust")
        key = f"{size.machines[0]}|{domain}"
        arrays |= {
            f"linkage/{key}": tree, f"labels/{key}": clusters.astype(np.int64) - 1,
            f"clip_ids/{key}": group["clip_id"].to_numpy(dtype=str), f"cut/{key}": np.array(tree[-3:-1, 2].mean()),
            f"silhouette/{key}": np.array([[2, 0.4], [3, 0.7], [4, 0.5]]),
        }  # fmt: skip
        names[group.index] = [f"{key}|{c}" for c in clusters]
    np.savez(folder / "clusters.npz", **arrays)  # type: ignore[arg-type]
    origin = np.where(train["machine"] == size.machines[0], "pseudo", "attributes")
    table = pd.DataFrame({"clip_id": train["clip_id"], "label": names.astype("category").cat.codes.astype(np.int64), "label_name": names,
                          "origin": origin, "machine": train["machine"], "domain": train["domain"]})  # fmt: skip
    table.to_parquet(folder / "labels.parquet")


def _tables(root: Path, runs: list[pd.DataFrame], size: Size) -> None:
    metrics = pd.concat(runs, ignore_index=True)
    first = size.systems[0]
    agreement = [
        {
            "system": first,
            "seed": 0,
            "machine": size.machines[0],
            "section": "",
            "metric": metric + suffix,
            "value": value - 0.2 * bool(suffix),
        }
        for metric, value in (("nmi", 0.71), ("ari", 0.52), ("homogeneity", 0.8))
        for suffix in ("", "_unadapted")
    ]
    pd.concat([metrics, pd.DataFrame(agreement)], ignore_index=True).to_csv(root / "metrics.csv", index=False)
    percent = metrics[metrics["metric"] == "official_score"].assign(value=lambda t: 100 * t["value"])
    grouped = percent.groupby("system", sort=False)["value"]
    official = pd.DataFrame({"system": list(grouped.groups), "mean": grouped.mean().to_numpy(), "std": grouped.std().to_numpy(),
                             "n": grouped.count().to_numpy()})  # fmt: skip
    official.to_csv(root / "official_scores.csv", index=False)


def make_provenance(path: Path, size: Size = Size(), **changes: object) -> Path:
    """A provenance.json with every key that the report knows; `changes` replace keys."""
    record: dict[str, object] = {
        "title": "Made-up machines", "created": "2026-11-21T09:00:00", "command": "snakemake --cores 2",
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False, "branch": "main"},
        "configuration": {"run": {"seeds": list(size.seeds), "baseline": size.systems[-1]}, "device": "cpu"},
        "systems": {s: PARTS | {"pooling": "mean" if i % 2 else "attentive"} for i, s in enumerate(size.systems)},
        "seeds": list(size.seeds), "versions": {"python": "3.11.7", "torch": "2.11.0"},
        "hardware": {"processor": "made up", "cores": 2, "gpu": None}, "checksums": {"made_up": {"fan.zip": "ab" * 32}},
        "benchmarks": [{"rule": r, "job": "", "seconds": s, "peak_memory_mb": 200 + s} for r, s in
                       (("synthesize", 8.2), ("extract_features", 21.5), ("pretrain", 161.0), ("finetune", 55.3), ("score", 3.1))],
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes, ensure_ascii=False), encoding="utf-8")
    return path


def rule_graph(path: Path) -> Path:
    """A small SVG in the rule graph's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boxes = "".join(
        f'<g transform="translate({20 + 150 * i},30)"><rect width="120" height="36" rx="4" fill="#e7f0f6" stroke="#0b5c8f"/>'
        f'<text x="60" y="23" text-anchor="middle" font-size="13">{name}</text></g>'
        for i, name in enumerate(("catalogue", "features", "finetune", "score", "report"))
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="96" font-family="sans-serif">{boxes}</svg>'
    )
    return path


def made_up_inputs(results: Path, size: Size = Size(), **settings: object) -> ReportInputs:
    """A results folder of this size and the inputs of its report."""
    files = make_run(results, size)
    return ReportInputs(
        datasets=(files,), encoder_histories={"eat_small": results / "encoders" / "eat_small" / "history.parquet"},
        provenance=make_provenance(results / "report" / "provenance.json", size),
        rule_graph=rule_graph(results / "report" / "rulegraph.svg"), baseline=size.systems[-1],
        **({"replicates": 200} | settings),  # type: ignore[arg-type]
    )  # fmt: skip
