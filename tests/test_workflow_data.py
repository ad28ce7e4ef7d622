"""`snakemake data` from a server to a catalogue: what a user of a benchmark year runs first, and what kill -9 does to it."""

import hashlib
import itertools
import random
import signal
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.official_layout import build, wav
from tests.workflow import planned, snakemake
from tests.zenodo_server import ZenodoServer, serving

FAN = "section_00_source_{}_normal_{:04d}_m-n_W"
SITE = REPOSITORY / "tests" / "killing_site"


class World:
    """A benchmark year of two machines on a server, and recordings of one's own of which some are heard twice."""

    def __init__(self, folder: Path, server: ZenodoServer) -> None:
        self.folder, self.made = folder, build(2023, machines=["bandsaw", "fan"])
        self.made.put_on(server)
        self.known = next(clip for clip in self.made.truth if clip.startswith("fan/train/"))
        self._write_own_recordings(folder / "recordings" / "fan")
        overlay = folder / "small.yaml"
        datasets = {
            "dcase2023": {**self.made.entry, "partial": True},
            "mine": {"source": "folder", "path": str(folder / "recordings")},
        }
        download = {"zenodo": server.address, "labels": server.address, "backoff_s": 0.1}
        overlay.write_text(
            yaml.safe_dump(
                {"download": download, "run": {"datasets": ["dcase2023", "mine"]}, "datasets": datasets}
            )
        )
        self.overlays = [REPOSITORY / "configs" / "dcase2023.yaml", overlay]
        (folder / "counts").mkdir()

    def _write_own_recordings(self, own: Path) -> None:
        contents = {
            ("train", 0): f"2023/{self.known}",
            ("train", 1): "own",
            ("train", 2): "other",
            ("test", 0): "own",
        }
        for (split, number), seed in contents.items():
            path = own / split / f"{FAN.format(split, number)}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav(seed))

    def run(self, name: str, *arguments: str, **environment: str):
        """`snakemake data` in the folder `name`, with the line counter on board."""
        return snakemake(
            self.folder / name,
            "data",
            *arguments,
            overlays=self.overlays,
            environment={"PYTHONPATH": str(SITE), **environment},
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with serving(ZenodoServer()) as server:
        yield World(tmp_path_factory.mktemp("world"), server)


@pytest.fixture(scope="module")
def finished(world):
    """The results of an undisturbed run."""
    done = world.run("undisturbed", ASDFLOW_COUNTS=str(world.folder / "counts"))
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 of " in done.stdout and "sound exactly like another one" in done.stdout
    return world.folder / "undisturbed"


def test_a_benchmark_year_is_fetched_unpacked_labelled_and_catalogued(world, finished):
    clips = pd.read_parquet(finished / "results-dcase2023" / "dcase2023" / "clips.parquet")
    assert set(clips.clip_id) == set(world.made.truth)
    truth = {name: facts["condition"] for name, facts in world.made.truth.items()}
    assert clips.set_index("clip_id")["condition"].to_dict() == pd.Series(truth).to_dict()
    assert planned(world.run("undisturbed", "--dry-run").stdout) == {}


def test_the_same_audio_in_two_data_sets_and_in_two_splits_is_listed(world, finished):
    found = pd.read_csv(finished / "results-dcase2023" / "duplicates.csv")
    groups = [list(zip(group.dataset, group.clip_id, strict=True)) for _, group in found.groupby("group")]
    assert groups == [
        [("dcase2023", world.known), ("mine", f"fan/train/{FAN.format('train', 0)}")],
        [("mine", f"fan/test/{FAN.format('test', 0)}"), ("mine", f"fan/train/{FAN.format('train', 1)}")],
    ]


# ------------------------------------------------------------------ kill -9 of Snakemake and all its jobs

STAGES = ("fetch_labels", "download", "unpack", "catalogue", "find_duplicates")


def tree(folder: Path) -> dict[str, str]:
    """Every file of the data and the catalogue, and the digest of its bytes; locks, logs and timings aside."""
    paths = [*(folder / "data").rglob("*"), *(folder / "results-dcase2023").rglob("*")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and path.suffix != ".lock" and not {"logs", "benchmarks"} & set(path.parts)
    }


def test_kill_9_of_the_whole_run_at_any_moment_and_the_same_command_again_ends_alike(world, finished):
    """A job of each stage in turn kills the process group, Snakemake included, at a seeded line of its own."""
    undisturbed = tree(finished)
    lines = {stage: min(counts) for stage, counts in counted(world.folder / "counts").items()}
    draw = random.Random(20)
    for stage in STAGES:
        moment = f"{stage}:{draw.randrange(1, lines[stage])}"
        done = world.run(
            "killed", "--until", stage, ASDFLOW_KILL=moment
        )  # earlier stages cannot finish this one
        assert done.returncode == -signal.SIGKILL, f"{stage}: {done.stdout[-4000:]}"
        assert whole_files(tree(world.folder / "killed")).items() <= undisturbed.items()
    done = world.run("killed")
    assert done.returncode == 0, done.stdout[-4000:]
    assert tree(world.folder / "killed") == undisturbed


def whole_files(found: dict[str, str]) -> dict[str, str]:
    """Those that carry a final name; archives are deleted after unpacking."""
    return {
        name: digest
        for name, digest in found.items()
        if not any(part.startswith(".") for part in Path(name).parts)
        and ".zip.part" not in name
        and not name.endswith(".zip")
    }


def counted(folder: Path) -> dict[str, list[int]]:
    """Stage -> number of lines of each of its jobs."""
    files = sorted(folder.iterdir())
    groups = itertools.groupby(files, key=lambda path: path.name.split("-")[0])
    return {stage: [int(path.read_text()) for path in members] for stage, members in groups}
