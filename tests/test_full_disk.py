"""A full disk, in every writing stage: an error that says so, whole files or none, and success once there is space."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asdflow.files import HOST, atomic_path, write_text
from asdflow.training.checkpoint import Checkpoints

from tests.tiny_stages import STAGES, TinyStages, contents, in_child

WRITERS = [*((stage, False) for stage in STAGES), ("pretrain", True), ("finetune", True)]
"""Stages, and whether they write a checkpoint after every update or none."""
NAMES = [f"{'checkpoints of ' * checkpoints}{stage}" for stage, checkpoints in WRITERS]
DISK_BYTES = 16_000_000
PAGE = 4096


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> TinyStages:
    return TinyStages(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of a few megabytes."""
    place = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "asdflow-test", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def may_mount() -> bool:
    done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return os.geteuid() == 0 and done.returncode == 0


def limited(n_bytes: int, action: Callable[[], object]) -> Callable[[], object]:
    """The action in a process that can write no file larger than `n_bytes`."""

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
        action()

    return run


def sizes(stages: TinyStages, stage: str) -> list[int]:
    """Bytes of the files that a stage writes, smallest first."""
    return sorted(path.stat().st_size for path in (stages.finished / stage).rglob("*") if path.is_file())


def check_refusal(stages: TinyStages, stage: str, output: Path, message: str) -> None:
    """The message says what to do, what is there of the stage's files is whole, and nothing else lies about."""
    assert "could not be written" in message and "free in" in message and "Remedy: make space" in message
    assert str(output) in message.splitlines()[0]
    whole = contents(stages.finished / stage)
    assert results(output).items() <= whole.items()
    assert not list(output.rglob("*.part"))


def results(output: Path) -> dict[str, str]:
    """Digests of a stage's files, checkpoints apart."""
    return {name: digest for name, digest in contents(output).items() if not name.startswith("checkpoints/")}


@pytest.mark.parametrize(("stage", "checkpoints"), WRITERS, ids=NAMES)
def test_a_file_that_may_not_grow_is_an_error_in_words_and_the_next_run_ends_well(
    stages: TinyStages, stage: str, checkpoints: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "due", checkpoints)
    before = contents(stages.finished)
    output = tmp_path / stage
    of_files = sizes(stages, stage)
    for limit in sorted({0, of_files[len(of_files) // 2] - 1, of_files[-1] - 1}):
        check_refusal(stages, stage, output, in_child(limited(limit, lambda: stages.run(stage, output))))
    assert contents(stages.finished) == before
    stages.run(stage, output)
    assert results(output) == contents(stages.finished / stage)


@pytest.mark.skipif(not may_mount(), reason="only root may mount a small disk")
@pytest.mark.parametrize(("stage", "checkpoints"), WRITERS, ids=NAMES)
def test_on_a_full_disk_a_stage_says_so_and_goes_on_when_space_was_made(
    stages: TinyStages, stage: str, checkpoints: bool, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "due", checkpoints)
    output, ballast = disk / stage, disk / "ballast"
    pages = sum(-(-size // PAGE) for size in sizes(stages, stage))
    for room in sorted({0, pages // 2, pages - 1}):
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        _fill(ballast, disk, room * PAGE)
        message = in_child(lambda: stages.run(stage, output))
        check_refusal(stages, stage, output, message)
        ballast.unlink()
    stages.run(stage, output)
    assert results(output) == contents(stages.finished / stage)
    shutil.rmtree(output)


def _fill(ballast: Path, disk: Path, room: int) -> None:
    """Fill the disk but for `room` bytes."""
    with ballast.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, shutil.disk_usage(disk).free - room)


def test_other_errors_of_a_writer_stay_what_they_are_and_leave_no_litter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unfit"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("begun")
        raise ValueError("unfit")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_goes_with_the_next_writing_and_a_living_ones_file_stays(
    tmp_path: Path,
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    litter = tmp_path / f".a.h5.{HOST}-{ended.pid}.part"
    others = [
        tmp_path / f".a.h5.{HOST}-{os.getppid()}.part",
        tmp_path / f".a.h5.another-host-{ended.pid}.part",
    ]
    for path in (litter, *others):
        path.write_text("half")
    write_text(tmp_path / "b.txt", "whole")
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "b.txt"}
