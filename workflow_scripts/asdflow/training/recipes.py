"""Which combinations of a system's parts cannot work, and why; read at validation, so nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

BLOCKS = ("eat", "beats")
"""Architectures made of transformer blocks."""
HIERARCHICAL = ("ward", "average", "complete")
AUTOENCODER_FRONT_END = "stft"
SPECTRUM_FRONT_END = "stft_spectrum"
OF_FRAMES = ("random_resize_crop", "specaugment", "high_frequency")
"""Augmentations that take every row for a frame, and neighbouring rows for neighbours in time."""

Settings = Mapping[str, Any]


def check_system(
    system: Settings,
    encoder: Settings | None = None,
    machines: Sequence[str] | None = None,
    hidden: Sequence[str] | None = None,
) -> list[str]:
    """Reasons why a system cannot work; an empty list if it can.

    Parameters
    ----------
    system : a whole system entry, defaults filled in.
    encoder : the entry of its encoder, defaults filled in; without it nothing that depends on the encoder is checked.
    machines : names of all machines that it will be trained on, where they are known before the recordings are read.
    hidden : those machines of the scored data set that hide their attributes, where that is known.
    """
    problems = [*_labels(system), *_tuning(system), *_ranges(system)]
    if encoder is not None:
        problems += _encoder(system, encoder)
    if machines is not None:
        problems += _machines(system, machines)
    if system["objective"]["vector_quantised"]["weight"] > 0:
        problems += _vector_quantised(system, hidden)
    return problems


def _labels(system: Settings) -> list[str]:
    labels = system["labels"]
    method, count = labels["method"], labels["count"]
    problems: list[str] = []
    if count == "bic" and method != "gaussian_mixture":
        problems.append(f"labels.count bic is a rule for gaussian_mixture, not for {method}")
    if count == "threshold" and method not in HIERARCHICAL:
        problems.append(f"labels.count threshold cuts a tree, and labels.method {method} makes none")
    if labels["min_clusters"] > labels["max_clusters"]:
        problems.append(
            f"labels.min_clusters is {labels['min_clusters']}, above labels.max_clusters {labels['max_clusters']}"
        )
    return problems


def _tuning(system: Settings) -> list[str]:
    """What the way of tuning asks of objective, pooling and back end."""
    tuning, pooling, method = system["tuning"], system["pooling"], system["tuning"]["method"]
    weights = [part["weight"] for part in system["objective"].values()]
    trained = method not in ("none", "autoencoder")
    rules: list[tuple[bool, str]] = [
        (trained and not any(weights), f"tuning.method {method} trains, but every weight in objective is 0"),
        (
            not trained and tuning["adapter"]["groups"] > 0,
            f"tuning.adapter learns, but tuning.method {method} trains no adapter",
        ),
        (
            method == "none" and pooling["kind"] == "attentive_statistics",
            "pooling.kind attentive_statistics has weights to learn, but tuning.method is none",
        ),
        (
            method == "none" and pooling["projection"] is not None,
            "pooling.projection has weights to learn, but tuning.method is none",
        ),
        (
            pooling["crops"] > 0 and tuning["crop_frames"] is None,
            "pooling.crops needs tuning.crop_frames, the length of a crop",
        ),
        (
            (method == "autoencoder") != (system["backend"]["name"] == "value"),
            "tuning.method autoencoder and backend.name value belong together: the autoencoder gives the score itself",
        ),
        (
            system["backend"].get("metric") == "cosine"
            and (pooling["standardise"] != "none" or (trained and tuning["frozen_share"] > 0)),
            "pooling.standardise and tuning.frozen_share give embeddings around zero, whose angles say nothing: "
            "backend.metric must be euclidean",
        ),
    ]
    return [reason for wrong, reason in rules if wrong]


def _ranges(system: Settings) -> list[str]:
    """Ranges run upwards, and scales are above zero."""
    augmentation = system["augmentation"]
    ranges = {
        "random_resize_crop.frequency_scale": 0.0, "random_resize_crop.time_scale": 0.0, "noise.snr": None,
        "high_frequency.cutoff": None,
    }  # fmt: skip
    problems: list[str] = []
    for path, least in ranges.items():
        part, key = path.split(".")
        low, high = augmentation[part][key]
        if low > high:
            problems.append(f"augmentation.{path} runs downwards: [{low}, {high}]")
        if least is not None and low <= least:
            problems.append(f"augmentation.{path} must be above {least:g}: [{low}, {high}]")
    low, high = augmentation["high_frequency"]["cutoff"]
    if not 0 <= low <= high <= 1:
        problems.append(
            f"augmentation.high_frequency.cutoff is a share of the band, from 0 to 1: [{low}, {high}]"
        )
    return problems


def _encoder(system: Settings, encoder: Settings) -> list[str]:
    """What tuning and pooling ask of the encoder."""
    tuning, pooling, method = system["tuning"], system["pooling"], system["tuning"]["method"]
    name = encoder["architecture"]["name"]
    depth = encoder["architecture"].get("depth", 12 if name == "beats" else 1)
    has: Callable[[int], bool] = lambda layer: -depth <= layer < depth  # noqa: E731
    outside = [layer for layer in pooling["layers"] or [] if not has(layer)]
    moved = [part for part in OF_FRAMES if system["augmentation"][part]["probability"] > 0]
    rules: list[tuple[bool, str]] = [
        (
            method in ("lora", "fully_connected_lora") and name not in BLOCKS,
            f"tuning.method {method} adapts transformer blocks; a {name} encoder has none",
        ),
        (
            tuning["adapter"]["groups"] > 0 and name not in BLOCKS,
            f"tuning.adapter stands between transformer blocks; a {name} encoder has none",
        ),
        (
            method == "full" and name == "logmel_statistics",
            "tuning.method full has nothing to train: a logmel_statistics encoder has no weights",
        ),
        (pooling["kind"] == "cls" and name != "eat", f"pooling.kind cls: a {name} encoder has no CLS token"),
        (
            method not in ("none", "autoencoder")
            and tuning["frozen_share"] > 0
            and tuning["frozen_features"] == "log_mel"
            and encoder["front_end"] not in ("eat_logmel", "beats_logmel"),
            f"tuning.frozen_features log_mel needs a log-mel front end, not {encoder['front_end']}",
        ),
        (bool(outside), f"pooling.layers {outside}: the {name} encoder has {depth} layers"),
        (
            encoder["front_end"] == SPECTRUM_FRONT_END and name != "stft_cnn",
            f"front_end {SPECTRUM_FRONT_END} holds the whole clip's spectrum before the frames; only an stft_cnn encoder reads it",
        ),
        (
            encoder["front_end"] == SPECTRUM_FRONT_END and bool(moved),
            f"augmentation {', '.join(moved)} would move or cut the whole clip's spectrum, which front_end {SPECTRUM_FRONT_END} "
            "puts before the frames",
        ),
        (
            method == "autoencoder" and encoder["front_end"] != AUTOENCODER_FRONT_END,
            f"tuning.method autoencoder needs an encoder with front_end {AUTOENCODER_FRONT_END}",
        ),
    ]
    return [reason for wrong, reason in rules if wrong]


def _machines(system: Settings, machines: Sequence[str]) -> list[str]:
    problems: list[str] = []
    if len(set(machines)) > 1:
        return problems
    if system["tuning"]["adapter"]["groups"] > 0:
        problems.append(
            "tuning.adapter mixes its groups by machine, and there is only one machine to learn from"
        )
    if system["labels"]["kind"] == "machine" and system["tuning"]["method"] not in ("none", "autoencoder"):
        problems.append(
            "labels.kind machine leaves a single class, as there is only one machine to learn from"
        )
    return problems


def _vector_quantised(system: Settings, hidden: Sequence[str] | None) -> list[str]:
    kind = system["labels"]["kind"]
    if kind == "hidden_attributes":
        return [
            "objective.vector_quantised clusters clips without attributes; labels.kind hidden_attributes leaves none"
        ]
    if hidden is not None and not hidden:
        return [
            "objective.vector_quantised clusters clips without attributes, and no machine hides its attributes"
        ]
    return []
