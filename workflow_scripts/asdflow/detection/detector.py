"""A fitted detector on disk: per machine and section the back end, the threshold and the training clips it knows; no pickle."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from asdflow.detection.backends import LEAST_CLIPS, BackEnd, Scores, build_backend
from asdflow.detection.threshold import DecisionThreshold, fit_threshold
from asdflow.errors import InputError
from asdflow.weights import read_weights, write_weights

log = logging.getLogger(__name__)

FORMAT, VERSION = "asdflow-detector", 1
MEMORY, DESCRIPTION = "memory.safetensors", "detector.json"
LEAST_HELD_OUT = 8
"""Fewest held-out clips that a threshold is fitted on (ours)."""
WHOLE_MACHINE = ""
"""Section name of the unit that holds all of a machine's training clips, for sections without clips of their own."""


@dataclass
class Unit:
    """The back end and threshold of one machine (and section), and its training clips in the back end's order."""

    backend: BackEnd
    threshold: DecisionThreshold
    clip_ids: list[str]
    attributes: list[str]

    def score(self, embeddings: torch.Tensor) -> Scores:
        """Score float32 [m, d]."""
        return self.backend.score(embeddings)


class Detector:
    """All units of a system, keyed by (machine, section)."""

    def __init__(self, settings: Mapping[str, Any], seed: int, units: dict[tuple[str, str], Unit]) -> None:
        self.settings, self.seed, self.units = dict(settings), seed, units

    @property
    def machines(self) -> list[str]:
        """Machine types it can judge."""
        return sorted({machine for machine, _ in self.units})

    def sections(self, machine: str) -> list[str]:
        """Sections of a machine that have training clips of their own."""
        return sorted(section for name, section in self.units if name == machine and section != WHOLE_MACHINE)

    def unit(self, machine: str, section: str | None = None) -> Unit:
        """The unit for a machine's section; a section without training clips of its own gets the whole machine's.

        Without a section the machine must have one only. Raises InputError naming what there is.
        """
        if machine not in self.machines:
            raise InputError(
                f"machine {machine!r} is unknown to this detector",
                remedy=f"choose one of: {', '.join(self.machines)}",
            )
        known = self.sections(machine)
        if section is None and len(known) > 1:
            raise InputError(
                f"machine {machine} has {len(known)} sections", remedy=f"name one of: {', '.join(known)}"
            )
        wanted = (known or [WHOLE_MACHINE])[0] if section is None else section
        found = self.units.get((machine, wanted)) or self.units.get((machine, WHOLE_MACHINE))
        if found is None:
            raise InputError(
                f"machine {machine} has no section {wanted!r}", remedy=f"name one of: {', '.join(known)}"
            )
        return found

    def save(self, directory: str | Path) -> None:
        """Write memory.safetensors and detector.json, each atomically."""
        directory = Path(directory)
        tensors: dict[str, torch.Tensor] = {}
        described = []
        for number, ((machine, section), unit) in enumerate(sorted(self.units.items())):
            tensors |= {f"{number}/{name}": value for name, value in unit.backend.tensors().items()}
            described.append(
                {
                    "machine": machine,
                    "section": section,
                    "clip_ids": unit.clip_ids,
                    "attributes": unit.attributes,
                    "threshold": unit.threshold.to_dict(),
                }
            )
        text = {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "seed": self.seed,
            "units": described,
        }
        write_weights(directory / MEMORY, directory / DESCRIPTION, tensors, text)

    @classmethod
    def load(cls, directory: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote; raises InputError for a missing, damaged or foreign directory."""
        directory = Path(directory)
        remedy = "run the score step again"
        text, tensors = read_weights(directory / MEMORY, directory / DESCRIPTION, remedy, str(device))
        if text.get("format") != FORMAT or text.get("version") != VERSION:
            raise InputError(
                f"{directory / DESCRIPTION} is not a detector of version {VERSION}",
                remedy=remedy,
            )
        units = {}
        for number, unit in enumerate(text["units"]):
            backend = build_backend(text["settings"]["backend"], text["seed"], device)
            prefix = f"{number}/"
            backend.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            threshold = DecisionThreshold.from_dict(unit["threshold"])
            key = (unit["machine"], unit["section"])
            units[key] = Unit(backend, threshold, unit["clip_ids"], unit["attributes"])
        return cls(text["settings"], text["seed"], units)


def fit_unit(
    clips: pd.DataFrame,
    embeddings: torch.Tensor,
    settings: Mapping[str, Any],
    seed: int,
    device: torch.device | str,
) -> tuple[Unit, pd.DataFrame]:
    """Fit back end and threshold on normal training clips (rows of `embeddings` [n, d] in the order of `clips`).

    Returns (unit, DataFrame clip_id, anomaly_score with each clip left out).
    """
    backend = build_backend(settings["backend"], seed, device)
    backend.fit(embeddings, clips["domain"].fillna("").tolist())
    left_out = backend.leave_one_out().anomaly_score.double().numpy()
    threshold = fit_threshold(left_out[_representative(clips)], settings.get("decision", {}))
    unit = Unit(backend, threshold, clips["clip_id"].tolist(), clips["attributes"].fillna("{}").tolist())
    return unit, pd.DataFrame({"clip_id": unit.clip_ids, "anomaly_score": left_out})


def _representative(clips: pd.DataFrame) -> np.ndarray:
    """Which training clips' scores stand for new normal clips, bool [n]: those that tuning did not learn from, or all of them."""
    everything = np.ones(len(clips), dtype=bool)
    unlearnt = clips["unlearnt"].to_numpy(dtype=bool) if "unlearnt" in clips else ~everything
    if 0 < unlearnt.sum() < LEAST_HELD_OUT:
        log.warning(
            "%s: %d clips held out of tuning are too few for a threshold of their own; it comes from all %d training clips",
            clips["machine"].iloc[0], unlearnt.sum(), len(clips),
        )  # fmt: skip
    return unlearnt if unlearnt.sum() >= LEAST_HELD_OUT else everything


def fit_detector(
    clips: pd.DataFrame,
    embeddings: torch.Tensor,
    settings: Mapping[str, Any],
    seed: int,
    sections: Iterable[tuple[str, str]] = (),
    device: torch.device | str = "cpu",
) -> tuple[Detector, pd.DataFrame]:
    """Fit one unit per machine and section on normal training clips; also gives their leave-one-out scores.

    Parameters
    ----------
    clips : normal training clips (clip_id, machine, section, domain, attributes; `unlearnt` where tuning held some out),
        rows as in `embeddings` float32 [n, d].
    settings : `backend` and `decision` of a system.
    sections : further (machine, section) pairs that are to be scored. Where a section has fewer than 3 training clips of
        its own, a unit of the whole machine stands in for it (ours).

    Returns (detector, DataFrame clip_id, anomaly_score). Raises InputError naming every machine that cannot be fitted.
    """
    clips = clips.reset_index(drop=True)
    units: dict[tuple[str, str], Unit] = {}
    scores, problems = [], []
    for (machine, section), rows in unit_rows_of(clips, sections).items():
        try:
            unit, left_out = fit_unit(clips.loc[rows], embeddings[rows], settings, seed, device)
        except InputError as error:
            problems.append(f"machine {machine}{', section ' + section if section else ''}: {error.summary}")
            continue
        units[machine, section] = unit
        scores.append(left_out)
    if problems:
        raise InputError(
            "some machines cannot be scored",
            problems,
            "add normal training clips, mend the back end, or leave them out",
        )
    table = (
        pd.concat(scores).drop_duplicates("clip_id").set_index("clip_id").loc[clips["clip_id"]].reset_index()
    )
    return Detector(settings, seed, units), table


def unit_rows_of(
    clips: pd.DataFrame, sections: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], list[int]]:
    """Row numbers of the training clips of each unit; a machine's own sections come before the unit of the whole machine."""
    own: dict[tuple[str, str], list[int]] = {}
    for row, machine, section in zip(clips.index, clips["machine"], clips["section"], strict=True):
        own.setdefault((str(machine), str(section)), []).append(row)
    enough = {key: rows for key, rows in own.items() if len(rows) >= LEAST_CLIPS}
    whole = sorted({machine for machine, section in {*own, *sections} if (machine, section) not in enough})
    return {
        **dict(sorted(enough.items())),
        **{(machine, WHOLE_MACHINE): clips.index[clips["machine"] == machine].tolist() for machine in whole},
    }
