"""`compare`: what changed in configuration, code and scores between two results folders."""

import json
from pathlib import Path

import pandas as pd
import pytest
from asdflow.errors import InputError
from asdflow.report.compare import compare

from tests.made_up_run import Size, make_provenance, make_run

TINY = Size(machines=("bearing", "fan"), test=6, train=8, seconds=0.1)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for name, skill in (("a", 0.0), ("b", 1.0)):
        make_run(tmp_path / name, TINY, skill=skill)
        make_provenance(tmp_path / name / "report" / "provenance.json", TINY)
    return tmp_path / "a", tmp_path / "b"


def test_a_run_compared_with_itself_has_no_change(runs: tuple[Path, Path]):
    comparison = compare(runs[0], runs[0])
    assert comparison.identical
    assert (comparison.machines["difference"] == 0).all() and len(comparison.machines) == 6
    assert comparison.as_text().count("The same in both") == 3


def test_scores_are_compared_system_by_system_and_machine_by_machine(runs: tuple[Path, Path]):
    comparison = compare(*runs)
    assert not comparison.identical
    before, after = (
        pd.read_csv(r / "made_up" / "official_scores.csv").set_index("system")["mean"] for r in runs
    )
    found = comparison.scores.set_index("system")
    assert (found["difference"] == (after - before)).all() and (found["difference"] > 0).all()
    changes = comparison.machines["difference"].abs()
    assert changes.is_monotonic_decreasing and changes.iloc[0] > 0
    assert f"+{found['difference'].to_dict()['frozen']:.2f}" in comparison.as_text()


def test_changed_keys_of_configuration_and_code_are_named_with_both_values(runs: tuple[Path, Path]):
    record = json.loads((runs[1] / "report" / "provenance.json").read_text())
    record["configuration"]["device"] = "cuda"
    record["configuration"]["run"]["extra"] = 5
    record["git"]["commit"] = "f" * 40
    (runs[1] / "report" / "provenance.json").write_text(json.dumps(record))
    comparison = compare(*runs)
    assert [(c.key, c.before, c.after) for c in comparison.configuration] == [
        ("device", "cpu", "cuda"),
        ("run.extra", "(absent)", "5"),
    ]
    assert [(c.key, c.after) for c in comparison.code] == [("git.commit", "f" * 40)]
    assert "| device | cpu | cuda |" in comparison.as_text()


def test_a_system_of_one_run_only_is_listed_without_a_difference(runs: tuple[Path, Path]):
    path = runs[1] / "made_up" / "official_scores.csv"
    table = pd.read_csv(path)
    pd.concat([table, pd.DataFrame([{"system": "new", "mean": 70.0, "std": 1.0, "n": 2}])]).to_csv(
        path, index=False
    )
    found = compare(*runs).scores.set_index("system").loc["new"]
    assert pd.isna(found["before"]) and found["after"] == 70.0 and pd.isna(found["difference"])


def test_folders_that_are_no_results_are_all_named(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        compare(tmp_path / "x", tmp_path / "y")
    assert (
        len(caught.value.problems) == 2
        and "x" in caught.value.problems[0]
        and "y" in caught.value.problems[1]
    )
