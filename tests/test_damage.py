"""A flipped bit in any file that a later stage reads: the stage names the file, or ends as if nothing had happened."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from asdflow.errors import InputError
from asdflow.report.evidence import cluster_groups, read_history
from asdflow.tables import read_parquet, write_parquet
from asdflow.training.checkpoint import Checkpoints

from tests.conftest import REPOSITORY
from tests.tiny_stages import TinyStages, contents, in_child

READERS = [
    ("catalogue/clips.parquet", "extract_features"),
    ("extract_features/fan.h5", "embed"),
    ("pretrain/encoder.safetensors", "embed"),
    ("pretrain/config.json", "embed"),
    ("embed/embeddings.h5", "label"),
    ("label/labels.parquet", "finetune"),
    ("finetune/embeddings.h5", "score"),
    ("finetune/model.safetensors", "export"),
    ("finetune/model.json", "export"),
    ("score/scores.parquet", "evaluate"),
    ("score/train_scores.parquet", "ensemble"),
    ("score/detector/memory.safetensors", "export"),
    ("score/detector/detector.json", "export"),
    ("export/system.json", "detect"),
    ("export/model/model.safetensors", "detect"),
    ("export/detector/detector.json", "detect"),
]
FLIPS = 6


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> TinyStages:
    return TinyStages(tmp_path_factory.mktemp("stages"))


def flips(content: bytes, seed: str) -> list[bytes]:
    """Copies of a file's content with one bit turned: at seeded places anywhere, and as many among its first and last bytes."""
    draw = random.Random(seed)
    ends = [*range(min(256, len(content))), *range(max(0, len(content) - 256), len(content))]
    places = [draw.randrange(len(content)) for _ in range(FLIPS)] + draw.sample(ends, FLIPS)
    copies = []
    for place in places:
        copy = bytearray(content)
        copy[place] ^= 1 << draw.randrange(8)
        copies.append(bytes(copy))
    return copies


@pytest.mark.parametrize(("damaged", "stage"), READERS, ids=[name for name, _ in READERS])
def test_a_stage_names_the_damaged_file_or_ends_as_if_it_were_whole(
    stages: TinyStages, damaged: str, stage: str, tmp_path: Path
) -> None:
    path, output = stages.finished / damaged, tmp_path / "out"
    whole, expected, named = path.read_bytes(), contents(stages.finished / stage), 0
    try:
        for content in flips(whole, damaged):
            path.write_bytes(content)
            message = in_child(lambda: stages.run(stage, output))
            if message:
                assert str(path) in message and "Remedy: " in message
                named += 1
            else:
                assert contents(output) == expected
            shutil.rmtree(output, ignore_errors=True)
    finally:
        path.write_bytes(whole)
    assert named >= FLIPS // 2


@pytest.mark.parametrize("reader", ["history", "clusters"])
def test_what_only_the_report_reads_is_named_or_read_as_it_was(
    stages: TinyStages, reader: str, tmp_path: Path
) -> None:
    name, read = {
        "history": ("finetune/history.parquet", lambda path: read_history(path, "a").to_csv()),
        "clusters": ("label/clusters.npz", lambda path: str(cluster_groups(path))),
    }[reader]
    read_it: Callable[[Path], str] = read
    whole = (stages.finished / name).read_bytes()
    expected, path, named = read_it(stages.finished / name), tmp_path / "damaged", 0
    for content in flips(whole, name):
        path.write_bytes(content)
        try:
            assert read_it(path) == expected
        except InputError as error:
            assert str(path) in str(error) and error.remedy
            named += 1
    assert named >= FLIPS // 2


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    stages: TinyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Checkpoints, "due", True)
    first = tmp_path / "first"
    stages.run("finetune", first)
    newest = max((first / "checkpoints").iterdir())
    for number, content in enumerate(flips(newest.read_bytes(), "checkpoint")[::4]):
        output = tmp_path / str(number)
        shutil.copytree(first / "checkpoints", output / "checkpoints")
        (output / "checkpoints" / newest.name).write_bytes(content)
        stages.run("finetune", output)
        assert f"{output / 'checkpoints' / newest.name} refused" in caplog.text
        for name in ("model.safetensors", "embeddings.h5"):
            assert (output / name).read_bytes() == (stages.finished / "finetune" / name).read_bytes()


def test_a_table_written_here_is_read_by_everyone_and_everyones_is_read_here(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"clip_id": ["a", "b"], "domain": ["source", None], "score": [0.5, float("nan")], "n": [1, 2]}
    )
    write_parquet(table, tmp_path / "ours.parquet")
    table.to_parquet(tmp_path / "theirs.parquet")
    for path in ("ours.parquet", "theirs.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / path), table)
        pd.testing.assert_frame_equal(read_parquet(tmp_path / path), table)
    with pytest.raises(InputError, match=r"none\.parquet cannot be read"):
        read_parquet(tmp_path / "none.parquet")


def test_no_module_reads_or_writes_files_past_the_checked_doors() -> None:
    """Parquet goes through asdflow.tables, safetensors through asdflow.weights."""
    doors = {
        "tables.py": r"pq\.|to_parquet|pd\.read_parquet",
        "weights.py": r"\b(?:load_file|save_file|safe_open)\(",
    }
    for path in (REPOSITORY / "workflow_scripts").rglob("*.py"):
        for door, pattern in doors.items():
            assert path.name == door or not re.search(pattern, path.read_text(encoding="utf-8")), path
