"""What each augmentation of the systems does to one training clip, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from asdflow.features.front_end import FRONT_ENDS
from asdflow.report.inputs import DatasetFiles
from asdflow.report.media import Pictures, picture
from asdflow.report.tables import switched_on
from asdflow.training.augmentation import show_each

FRAMES = 300
"""At most so much of a clip is shown (3 s)."""


@dataclass(frozen=True)
class Shown:
    """One augmentation of one recipe: its settings in words, and the picture as data URI."""

    name: str
    settings: str
    picture: str


@dataclass(frozen=True)
class Augmented:
    """The systems that augment alike, the clips they are shown on, the untouched clip first."""

    systems: tuple[str, ...]
    clip_id: str
    mixed_in: str
    pictures: tuple[Shown, ...]


def augmented_clips(
    files: DatasetFiles, clips: pd.DataFrame, parts: Mapping[str, Mapping[str, Any]], seed: int
) -> list[Augmented]:
    """Every recipe of `parts` (system -> its configuration) that augments, on one training clip of the data set.

    The clip is the first normal training clip, in log-mel; what is mixed in is the first of another machine, or else the
    second. Empty where features, two clips, or settings are absent.
    """
    recipes: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for system, part in parts.items():
        used = _pictured(part.get("augmentation"))
        if used:
            recipes.setdefault(repr(used), (part["augmentation"], []))[1].append(system)
    front_end = FRONT_ENDS.get(files.features[0].parent.name) if files.features else None
    pair = _two_clips(clips)
    if not recipes or front_end is None or pair is None:
        return []
    pictures = Pictures(files.features)
    frames = [pictures.frames(clip_id) for clip_id in pair]
    if any(found is None for found in frames):
        return []
    length = min(FRAMES, *(len(found) for found in frames if found is not None))
    clip, other = (found[:length] for found in frames if found is not None)
    low, high = np.percentile(np.concatenate([clip, other]), [2, 99.7])
    return [
        Augmented(
            tuple(systems),
            *pair,
            tuple(
                Shown(name, _in_words(settings.get(name, {})), picture(image, low, high))
                for name, image in show_each(settings, clip, other, front_end, seed).items()
                if name == "original" or name in _pictured(settings)
            ),
        )
        for settings, systems in recipes.values()
    ]


def _pictured(settings: Any) -> dict[str, Any]:
    """The augmentations that a recipe uses and that a picture can show: those done to some clips and not to others."""
    used = switched_on(settings) if isinstance(settings, Mapping) else {}
    return {name: part for name, part in used.items() if "probability" in part}


def _two_clips(clips: pd.DataFrame) -> tuple[str, str] | None:
    train = clips[(clips["split"] == "train") & (clips["condition"] == "normal")].sort_values(
        "clip_id", kind="stable"
    )
    if len(train) < 2:
        return None
    first = train.iloc[0]
    others = train[train["machine"] != first["machine"]]
    second = others.iloc[0] if len(others) else train.iloc[1]
    return str(first["clip_id"]), str(second["clip_id"])


def _in_words(settings: Mapping[str, Any]) -> str:
    """`cutoff 0.25 to 1.0, kind any, gain 12, in 50 % of clips`."""
    words = [
        f"{key.replace('_', ' ')} {' to '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in settings.items()
        if key != "probability"
    ]
    if settings:
        words.append(f"in {100 * settings['probability']:g} % of clips")
    return ", ".join(words)
