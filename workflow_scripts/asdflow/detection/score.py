"""The score stage: fit each machine's back end on its normal training clips, score its test clips, decide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from asdflow.detection.detector import Detector, fit_detector
from asdflow.errors import InputError
from asdflow.features.embeddings import read_embeddings
from asdflow.tables import read_parquet, write_parquet
from asdflow.training.material import held_out_clips

log = logging.getLogger(__name__)


def score(
    clips: Path,
    embeddings: Path,
    settings: Mapping[str, Any],
    seed: int,
    output: Path,
    device: str = "cpu",
) -> None:
    """Write scores.parquet, train_scores.parquet and detector/ into `output`.

    Parameters
    ----------
    clips : clips.parquet of the data set.
    embeddings : embeddings.h5 with every training and test clip.
    settings : `backend` and `decision` of the system, and the share `held_out` of training clips that its tuning did not learn
        from: where there are any, the threshold comes from these alone.
    seed : for what the back end draws at random.
    output : folder; `scores.parquet` holds the test clips (clip_id, anomaly_score, decision 0 or 1), `train_scores.parquet`
        the normal training clips, each left out (clip_id, anomaly_score).
    device : where distances are computed.

    Raises InputError naming clips without embedding, machines without training clips, embeddings that are no numbers.
    """
    table = read_parquet(clips)
    training = table[(table["split"] == "train") & (table["condition"].fillna("normal") == "normal")]
    test = table[table["split"] == "test"]
    vectors = _vectors(embeddings, pd.concat([training, test]), training)
    n = len(training)
    training = training.assign(
        unlearnt=training["clip_id"].isin(held_out_clips(training, settings.get("held_out", 0.0)))
    )
    sections = set(zip(test["machine"].astype(str), test["section"].astype(str), strict=True))
    detector, train_scores = fit_detector(training, vectors[:n], settings, seed, sections, device)
    scores = score_clips(detector, test, vectors[n:])
    output = Path(output)
    detector.save(output / "detector")
    for name, rows in (("train_scores", train_scores), ("scores", scores)):
        write_parquet(rows, output / f"{name}.parquet")
    log.info(
        "%d test clips scored against %d training clips of %d machines", len(test), n, len(detector.machines)
    )


def score_clips(detector: Detector, clips: pd.DataFrame, embeddings: torch.Tensor) -> pd.DataFrame:
    """Score clips (machine, section, clip_id; rows as in `embeddings` [n, d]): clip_id, anomaly_score, decision."""
    parts = []
    clips = clips.reset_index(drop=True)
    for (machine, section), group in clips.groupby(["machine", "section"]):
        unit = detector.unit(str(machine), str(section))
        values = unit.score(embeddings[group.index.tolist()]).anomaly_score.double().numpy()
        parts.append(
            pd.DataFrame(
                {
                    "clip_id": group["clip_id"].to_numpy(),
                    "anomaly_score": values,
                    "decision": (values > unit.threshold.threshold).astype("int64"),
                }
            )
        )
    empty = pd.DataFrame({"clip_id": pd.Series(dtype=str), "anomaly_score": pd.Series(dtype=float)})
    scored = pd.concat(parts) if parts else empty.assign(decision=pd.Series(dtype="int64"))
    return scored.set_index("clip_id").loc[clips["clip_id"]].reset_index()


def _vectors(path: Path, wanted: pd.DataFrame, training: pd.DataFrame) -> torch.Tensor:
    """Embeddings [n, d] of the wanted clips in their order, all of them there and finite."""
    clip_ids, matrix = read_embeddings(path)
    row_of = {clip_id: row for row, clip_id in enumerate(clip_ids)}
    missing = [f"{clip_id}: no embedding" for clip_id in wanted["clip_id"] if clip_id not in row_of]
    missing += [
        f"machine {machine}: no normal training clip"
        for machine in sorted(set(wanted["machine"]) - set(training["machine"]))
    ]
    if missing:
        more = [f"and {len(missing) - 20} more"] if len(missing) > 20 else []
        raise InputError(
            f"{path} and the catalogue do not fit",
            [*missing[:20], *more],
            "run the stages before score again",
        )
    chosen = torch.from_numpy(matrix[[row_of[clip_id] for clip_id in wanted["clip_id"]]])
    if len(bad := (~torch.isfinite(chosen).all(dim=1)).nonzero()[:, 0]):
        names = [f"{wanted['clip_id'].iloc[i]}: not a finite number" for i in bad[:20].tolist()]
        raise InputError(
            f"{path} holds {len(bad)} broken embedding(s)", names, "train again with a lower learning rate"
        )
    return chosen
