"""`snakemake data` from a server to a catalogue: what a user of a benchmark year runs first."""

import pandas as pd
import yaml

from tests.conftest import REPOSITORY
from tests.official_layout import build
from tests.workflow import planned, snakemake
from tests.zenodo_server import ZenodoServer, serving


def test_a_benchmark_year_is_fetched_unpacked_labelled_and_catalogued(tmp_path):
    made = build(2023, machines=["bandsaw", "fan"])
    with serving(ZenodoServer()) as server:
        made.put_on(server)
        overlay = tmp_path / "small.yaml"
        changes = {
            "download": {"zenodo": server.address, "labels": server.address, "backoff_s": 0.1},
            "datasets": {"dcase2023": {**made.entry, "partial": True}},
        }
        overlay.write_text(yaml.safe_dump(changes))
        overlays = [REPOSITORY / "configs" / "dcase2023.yaml", overlay]
        done = snakemake(tmp_path, "data", overlays=overlays)
        assert done.returncode == 0, done.stdout[-4000:]
        again = snakemake(tmp_path, "data", "--dry-run", overlays=overlays)
        assert planned(again.stdout) == {}
    clips = pd.read_parquet(tmp_path / "results-dcase2023" / "dcase2023" / "clips.parquet")
    assert set(clips.clip_id) == set(made.truth)
    truth = pd.Series({name: facts["condition"] for name, facts in made.truth.items()})
    assert clips.set_index("clip_id")["condition"].to_dict() == truth.to_dict()
