"""Every writing stage of the workflow on a few half-second recordings, each in well under two seconds: to be disturbed by tests."""

import copy
import hashlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile
from asdflow.clustering import make_labels
from asdflow.data.catalogue import build_catalogue, read_catalogue, write_catalogue
from asdflow.detection.detect import detect
from asdflow.detection.ensemble import ensemble
from asdflow.detection.evaluate import evaluate
from asdflow.detection.score import score
from asdflow.detection.system import export_detector
from asdflow.errors import InputError
from asdflow.features.extract import extract_features
from asdflow.models.embed import embed
from asdflow.report.build import build_report
from asdflow.training.finetune import finetune
from asdflow.training.pretrain import pretrain

from tests.made_up_run import Size, made_up_inputs
from tests.test_clustering import SETTINGS as LABELS
from tests.test_finetune import SETTINGS
from tests.test_pretrain import RECIPE
from tests.trained_system import AUDIO, HUM, RATE, machine_sound

STAGES = (
    "catalogue", "extract_features", "pretrain", "embed", "label", "finetune", "score", "ensemble", "evaluate", "export", "detect",
    "report",
)  # fmt: skip
COUNTS = {("train", "normal"): 4, ("test", "normal"): 2, ("test", "anomaly"): 2}
MEASURED = ("history.parquet", "training/")
"""Files with measured speed and memory in them: no two runs write the same."""
FINETUNING_STEPS = 8
AS_TOLD: dict[str, Any] = {
    "backend": {"name": "knn"},
    "decision": {"method": "gamma", "false_alarm_rate": 0.05},
}


class TinyStages:
    """The stages in their order up to `until`, each reading what the earlier ones left in their folders below `finished`."""

    def __init__(self, folder: Path, until: str = STAGES[-1]) -> None:
        self.recordings, self.finished = folder / "data", folder / "finished"
        _write_recordings(self.recordings)
        self.clips = self.finished / "catalogue" / "clips.parquet"
        self.features = [self.finished / "extract_features" / f"{machine}.h5" for machine in HUM]
        self.encoder = self.finished / "pretrain"
        self.shown = made_up_inputs(
            folder / "shown",
            Size(systems=("frozen",), machines=("fan",), seeds=(0,), test=6, train=12, seconds=0.1),
            replicates=20,
        )
        for stage in STAGES[: STAGES.index(until) + 1]:
            self.run(stage, self.finished / stage)

    def run(self, stage: str, output: Path) -> None:
        """Run one stage, which leaves its files in `output`."""
        getattr(self, stage)(output)

    def catalogue(self, output: Path) -> None:
        table, _ = build_catalogue(self.recordings, {"rules_of": 2025, "audio": AUDIO})
        write_catalogue(table, output / "clips.parquet")

    def extract_features(self, output: Path) -> None:
        for machine, rows in read_catalogue(self.clips).groupby("machine"):
            extract_features(rows, "eat_logmel", AUDIO, output / f"{machine}.h5", 1)

    def pretrain(self, output: Path) -> None:
        sources = {"demo": (self.clips, self.features)}
        pretrain({**RECIPE, "steps": 4}, sources, None, output, output / "checkpoints", "cpu")

    def embed(self, output: Path) -> None:
        embed(self.encoder, self.features, output / "embeddings.h5", {"kind": "mean"}, "cpu")

    def label(self, output: Path) -> None:
        embeddings = {"demo": self.finished / "embed" / "embeddings.h5"}
        settings = {**LABELS, "kind": "clusters"}
        make_labels(
            {"demo": self.clips}, embeddings, settings, output / "labels.parquet", output / "clusters.npz", 0
        )

    def finetune(self, output: Path) -> None:
        settings = copy.deepcopy(SETTINGS)
        settings["tuning"]["steps"] = FINETUNING_STEPS
        labels = self.finished / "label" / "labels.parquet"
        finetune(
            settings, {"demo": self.features}, labels, self.clips, self.encoder, 0, output, output / "checkpoints", "cpu"
        )  # fmt: skip

    def score(self, output: Path) -> None:
        score(self.clips, self.finished / "finetune" / "embeddings.h5", AS_TOLD, 0, output)

    def ensemble(self, output: Path) -> None:
        ensemble(self.clips, [self.finished / "score"] * 2, AS_TOLD["decision"], output)

    def evaluate(self, output: Path) -> None:
        scores = self.finished / "score" / "scores.parquet"
        evaluate(
            self.clips, [("a", 0, scores), ("b", 0, scores)], 2025, output / "metrics.csv", output / "official.csv",
            intervals_out=output / "intervals.csv", comparisons_out=output / "comparisons.csv", references=["a"], replicates=20,
        )  # fmt: skip

    def export(self, output: Path) -> None:
        detector = self.finished / "score" / "detector"
        export_detector(
            self.clips, self.finished / "finetune", self.encoder, detector, output, AUDIO, {"system": "a"}
        )

    def detect(self, output: Path) -> None:
        recordings = sorted(self.recordings.glob("fan/test/*"))[:2]
        detect(self.finished / "export", recordings, "fan", output=output / "scores.csv")

    def report(self, output: Path) -> None:
        build_report(self.shown, output / "index.html", exports=output)


def _write_recordings(root: Path) -> None:
    """Recordings of two machines in DCASE layout."""
    for number, machine in enumerate(HUM):
        for (split, condition), count in COUNTS.items():
            for place in range(2 * count):
                domain = ("source", "target")[place % 2]
                sound = machine_sound(machine, [number, place, len(condition)], 0.5, condition == "anomaly")
                path = (
                    root
                    / machine
                    / split
                    / f"section_00_{domain}_{split}_{condition}_{place:04d}_vel_{place % 3}.wav"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, sound, RATE, subtype="PCM_16")


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file below `folder` by its path there; of files that hold measured figures only that they are there."""
    return {
        name: "measured" if name.startswith(MEASURED) else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for name in [str(path.relative_to(folder))]
    }


def in_child(action: Callable[[], object]) -> str:
    """Run `action` in a process of its own; the message of an InputError, "" on success. A crash or another error fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            action()
        except InputError as error:
            os.write(writer, str(error).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        message = told.read()
    assert os.waitpid(child, 0)[1] == 0, "the process crashed, or failed by an error that is no InputError"
    return message
