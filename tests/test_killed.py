"""kill -9 at seeded moments of fine-tuning and extraction: the next run ends as an undisturbed one and repeats little.

Pre-training (tests/test_pretrain.py), download (tests/test_download.py) and unpacking (tests/test_unpack.py) are killed beside these.
"""

from pathlib import Path

import pytest
from asdflow.training import finetune as stage
from asdflow.training.checkpoint import Checkpoints

from tests.killing import killed_at, lines_of, moments
from tests.test_pretrain import save_every
from tests.tiny_stages import FINETUNING_STEPS, TinyStages, contents

INTERVAL = 3


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> TinyStages:
    return TinyStages(tmp_path_factory.mktemp("stages"), until="score")


def results(output: Path) -> dict[str, str]:
    """Digests of a stage's files; checkpoints, and what killed processes left, apart."""
    return {
        name: digest
        for name, digest in contents(output).items()
        if not name.startswith(("checkpoints/", "."))
    }


def test_fine_tuning_killed_at_any_moment_ends_with_the_same_bytes_and_repeats_at_most_one_interval(
    stages: TinyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, update = tmp_path / "journal", stage._Training._update

    def noted(self, step, batch):
        with journal.open("a") as handle:
            handle.write(f"{step}\n")
        return update(self, step, batch)

    monkeypatch.setattr(stage._Training, "_update", noted)
    monkeypatch.setattr(Checkpoints, "after_step", save_every(INTERVAL))
    whole = contents(stages.finished / "finetune")
    lines = lines_of(lambda: stages.run("finetune", tmp_path / "counted"))
    for moment in moments(17, 6, lines):
        output = tmp_path / str(moment)
        journal.unlink()
        killed_at(moment, lambda: stages.run("finetune", output))  # noqa: B023 (called at once)
        before = list(map(int, journal.read_text().split())) if journal.exists() else []
        assert results(output).items() <= whole.items()
        stages.run("finetune", output)
        assert results(output) == whole
        assert not list(output.rglob("*.part"))
        done = list(map(int, journal.read_text().split()))
        assert sorted(set(done)) == list(range(FINETUNING_STEPS))
        assert len(done) - FINETUNING_STEPS <= min(len(before), INTERVAL)


def test_extraction_killed_at_any_moment_leaves_no_half_file_and_ends_with_the_same_bytes(
    stages: TinyStages, tmp_path: Path
) -> None:
    whole = contents(stages.finished / "extract_features")
    lines = lines_of(lambda: stages.run("extract_features", tmp_path / "counted"))
    for moment in moments(19, 6, lines):
        output = tmp_path / str(moment)
        killed_at(moment, lambda: stages.run("extract_features", output))  # noqa: B023 (called at once)
        assert results(output).items() <= whole.items()
        stages.run("extract_features", output)
        assert contents(output) == whole
