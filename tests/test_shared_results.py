"""Features and adapted encoders shared between checkouts by content, through Snakemake's between-workflow cache."""

import pytest
import yaml
from asdflow.configuration import merge, read_yaml
from asdflow.files import file_digest

from tests.conftest import REPOSITORY
from tests.workflow import planned, snakemake

ENCODER = "results-smoke/encoders/eat_small/encoder.safetensors"
FEATURES = "results-smoke/demo/features/eat_logmel"
SMOKE = read_yaml(REPOSITORY / "configs" / "smoke.yaml")


def shared_run(folder, cache, change=None, *arguments):
    """Pre-training and what it needs, in a folder of its own, with what others left in `cache`."""
    folder.mkdir(exist_ok=True)
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(merge(SMOKE, change or {}), sort_keys=False))
    done = snakemake(
        folder,
        ENCODER,
        "--cache",
        *arguments,
        overlays=[overlay],
        environment={"SNAKEMAKE_OUTPUT_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def digests(folder):
    files = [folder / ENCODER, *sorted((folder / FEATURES).glob("*.h5"))]
    return {path.name: file_digest(path) for path in files}


def ran(folder, stage):
    """Whether a job of this stage began: its log is not empty."""
    return any(path.stat().st_size for path in (folder / "results-smoke" / "logs" / stage).rglob("*.log"))


@pytest.fixture(scope="module")
def cache(smoke_run, tmp_path_factory):
    """A shared folder with what a first run, on the smoke run's recordings, left there."""
    base = tmp_path_factory.mktemp("shared")
    (base / "cache").mkdir()
    shared_run(base / "first", base / "cache")
    assert digests(base / "first") == digests(smoke_run)
    return base / "cache"


def test_a_second_checkout_takes_features_and_encoder_from_the_first(cache, smoke_run, tmp_path):
    folder = tmp_path / "second"
    shared_run(folder, cache)
    assert digests(folder) == digests(smoke_run)
    assert len(digests(folder)) == 7
    files = [folder / ENCODER, *(folder / FEATURES).glob("*.h5")]
    assert all(path.is_symlink() and path.resolve().parent == cache for path in files)
    assert not ran(folder, "pretrain") and not ran(folder, "extract_features")
    assert planned(shared_run(folder, cache, None, "--dry-run")) == {}


def test_another_recipe_pre_trains_anew_on_shared_features(cache, smoke_run, tmp_path):
    folder = tmp_path / "third"
    shared_run(folder, cache, {"encoders": {"eat_small": {"pretraining": {"masks": 3}}}})
    ours, theirs = digests(folder), digests(smoke_run)
    assert ours.pop("encoder.safetensors") != theirs.pop("encoder.safetensors")
    assert ours == theirs
    assert ran(folder, "pretrain") and not ran(folder, "extract_features")


def test_without_a_shared_folder_nothing_is_shared(smoke_run):
    assert not any(path.is_symlink() for path in (smoke_run / "results-smoke").rglob("*"))
