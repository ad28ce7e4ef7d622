"""The whole chain on tiny synthetic recordings: what it writes, that it repeats, and how it refuses wrong input."""

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from asdflow.cli import app
from asdflow.detection.detect import detect
from typer.testing import CliRunner

from tests.conftest import REPOSITORY
from tests.workflow import planned, snakemake

SMOKE = REPOSITORY / "configs" / "smoke.yaml"
SYSTEMS = ["attribute_aware", "frozen", "logmel_knn"]
SWITCHED = ["backend_k-means", "backend_knn"]
SCORED = sorted([*SYSTEMS, *SWITCHED, "both"])


@pytest.fixture(scope="module")
def finished(smoke_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(smoke_run, folder)
    return folder


def results(folder):
    return folder / "results-smoke"


def test_the_report_is_one_page_without_external_references(finished):
    page = (results(finished) / "report" / "index.html").read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "<html" in markup and "demo" in markup
    assert re.findall(r'(?:src|href|data)="(?:https?:)?//[^"]*', markup) == []


def test_official_scores_have_every_system_with_mean_deviation_and_number_of_seeds(finished):
    table = pd.read_csv(results(finished) / "demo" / "official_scores.csv").set_index("system")
    assert sorted(table.index) == SCORED
    assert (table["n"] == 2).all()
    assert table["mean"].between(0, 100).all()
    assert table["std"].notna().all()


def test_metrics_have_both_aucs_and_pauc_for_every_machine(finished):
    table = pd.read_csv(results(finished) / "demo" / "metrics.csv", dtype={"section": str})
    for metric in ("auc_source", "auc_target", "pauc"):
        rows = table[(table.metric == metric) & table.machine.notna()]
        assert len(rows) == 6 * len(SCORED) * 2
        assert rows["value"].between(0, 1).all()


def test_agreement_with_hidden_attributes_is_measured_with_and_without_pre_training(finished):
    table = pd.read_csv(results(finished) / "demo" / "metrics.csv")
    for metric in ("nmi", "ari", "nmi_unadapted", "ari_unadapted"):
        rows = table[(table.metric == metric) & (table.system == "attribute_aware") & (table.seed == 0)]
        assert sorted(rows.machine) == ["bearing", "slider"]


def test_every_test_clip_has_one_score_and_a_decision(finished):
    clips = pd.read_parquet(results(finished) / "demo" / "clips.parquet")
    expected = set(clips.loc[clips.split == "test", "clip_id"])
    for system in SCORED:
        scores = pd.read_parquet(results(finished) / "demo" / system / "seed_0" / "scores.parquet")
        assert set(scores.clip_id) == expected and len(scores) == len(expected)
        assert np.isfinite(scores.anomaly_score).all()
        assert set(scores.decision) <= {0, 1}


def test_an_ensemble_is_the_mean_of_its_members_standardised_scores(finished):
    folder = results(finished) / "demo"
    means = []
    for member in ("attribute_aware", "logmel_knn"):
        test, train = (
            pd.read_parquet(folder / member / "seed_1" / f"{name}.parquet").set_index("clip_id")[
                "anomaly_score"
            ]
            for name in ("scores", "train_scores")
        )
        own = {name: part for name, part in train.groupby(train.index.str.split("/").str[0])}
        machine = test.index.str.split("/").str[0]
        centre = machine.map({name: part.mean() for name, part in own.items()})
        spread = machine.map({name: part.std(ddof=0) for name, part in own.items()})
        means.append((test - centre) / spread)
    found = pd.read_parquet(folder / "both" / "seed_1" / "scores.parquet").set_index("clip_id")
    expected = (means[0] + means[1]) / 2
    np.testing.assert_allclose(found.loc[expected.index, "anomaly_score"], expected, rtol=1e-9)


def test_systems_that_differ_in_their_back_end_share_one_training(finished):
    folder = results(finished) / "demo"
    trained = {path.parts[-3:-1] for path in folder.glob("*/seed_*/model.safetensors")}
    assert trained == {
        ("attribute_aware", "seed_0"), ("attribute_aware", "seed_1"), ("frozen", "seed_0"), ("logmel_knn", "seed_0"),
    }  # fmt: skip
    same, other = (
        pd.read_parquet(folder / system / "seed_1" / "scores.parquet")["anomaly_score"]
        for system in ("backend_knn", "backend_k-means")
    )
    base = pd.read_parquet(folder / "attribute_aware" / "seed_1" / "scores.parquet")["anomaly_score"]
    assert same.equals(base) and not other.equals(base)


def test_the_report_has_the_table_of_switched_parts(finished):
    table = pd.read_csv(results(finished) / "report" / "tables" / "demo" / "ablation backend.csv")
    assert table["Back end"].tolist() == ["knn", "k-means"]
    official = pd.read_csv(results(finished) / "demo" / "official_scores.csv").set_index("system")
    assert (
        table["Official score"].tolist() == official.loc[["backend_knn", "backend_k-means"], "mean"].tolist()
    )


def test_clips_that_sound_the_same_are_listed(finished):
    table = pd.read_csv(results(finished) / "duplicates.csv")
    assert list(table.columns[:2]) == ["dataset", "clip_id"]
    assert table.empty


def test_a_second_run_has_nothing_to_do(finished):
    done = snakemake(finished, overlays=[SMOKE])
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


def test_touching_a_script_reruns_nothing(finished):
    (REPOSITORY / "workflow_scripts" / "score.py").touch()
    assert planned(snakemake(finished, "--dry-run", overlays=[SMOKE]).stdout) == {}


def test_the_same_seed_gives_the_same_bytes(finished, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    first = {path: path.read_bytes() for path in sorted(results(again).glob("demo/*/seed_*/scores.parquet"))}
    assert len(first) == 2 * len(SCORED)
    done = snakemake(again, "--forcerun", "pretrain", "--until", "score", overlays=[SMOKE])
    assert done.returncode == 0, done.stdout[-4000:]
    assert "rule pretrain" in done.stdout
    assert {path: path.read_bytes() for path in first} == first


def folder_overlay(tmp_path, recordings, extra=""):
    overlay = tmp_path / "own.yaml"
    overlay.write_text(
        f"results_dir: results-smoke\nrun: {{datasets: [own], seeds: [0]}}\n"
        f"datasets: {{own: {{source: folder, path: {recordings}{extra}}}}}\n"
    )
    return overlay


def recordings_of_one_machine(folder, names=("a", "b")):
    rng = np.random.default_rng(0)
    for machine in names:
        for split, count in (("train", 6), ("test", 4)):
            (folder / machine / split).mkdir(parents=True)
            for number in range(count):
                kind = "normal" if split == "train" or number % 2 else "anomaly"
                name = f"section_00_source_{split}_{kind}_{number:04d}_spd_{number % 2}.wav"
                soundfile.write(folder / machine / split / name, 0.1 * rng.standard_normal(32000), 16000)
    return folder


def test_wrong_recordings_are_listed_all_at_once_and_earlier_results_stay(finished, tmp_path):
    recordings = recordings_of_one_machine(tmp_path / "recordings")
    (recordings / "a" / "train" / "section_00_source_train_normal_0090_spd_1.wav").write_bytes(b"")
    (recordings / "a" / "train" / "section_00_source_train_normal_0091_spd_1.wav").write_text("not audio")
    soundfile.write(recordings / "b" / "train" / "holiday.wav", np.zeros(16000), 16000)
    broken = np.full(16000, np.nan, dtype=np.float32)
    soundfile.write(
        recordings / "b" / "test" / "section_00_source_test_normal_0090_spd_1.wav",
        broken,
        16000,
        subtype="FLOAT",
    )
    (recordings / "empty").mkdir()
    before = (results(finished) / "demo" / "metrics.csv").read_bytes()
    done = snakemake(finished, overlays=[SMOKE, folder_overlay(tmp_path, recordings)])
    assert done.returncode != 0
    for expected in (
        "0090_spd_1.wav",
        "0091_spd_1.wav",
        "holiday.wav",
        "not a finite number",
        "empty",
        "Remedy:",
    ):
        assert expected in done.stdout
    assert "Traceback" not in done.stdout
    assert "rule pretrain" not in done.stdout
    assert (results(finished) / "demo" / "metrics.csv").read_bytes() == before


def test_a_missing_folder_is_named_before_anything_runs(tmp_path):
    done = snakemake(tmp_path, "--dry-run", overlays=[folder_overlay(tmp_path, tmp_path / "nowhere")])
    assert done.returncode != 0
    assert "nowhere' does not exist" in done.stdout and "Remedy:" in done.stdout


def test_an_unknown_key_is_refused_before_anything_runs(tmp_path):
    overlay = tmp_path / "wrong.yaml"
    overlay.write_text("run: {seed: [1]}\ntraining_threads: '2'\n")
    done = snakemake(tmp_path, "--dry-run", overlays=[overlay])
    assert done.returncode != 0
    assert "unknown key 'seed'; did you mean 'seeds'?" in done.stdout
    assert "training_threads: '2' is a string" in done.stdout


def test_own_recordings_go_through_the_whole_chain(finished, tmp_path):
    recordings = recordings_of_one_machine(tmp_path / "recordings")
    done = snakemake(finished, overlays=[SMOKE, folder_overlay(tmp_path, recordings)])
    assert done.returncode == 0, done.stdout[-4000:]
    table = pd.read_csv(results(finished) / "own" / "official_scores.csv")
    assert sorted(table.system) == SCORED


RUNS = [("attribute_aware", 0), ("logmel_knn", 1)]
"""A system that was fine-tuned and one that was not, of different seeds."""


@pytest.fixture(scope="module")
def delivered(smoke_run, tmp_path_factory):
    """A finished run with what people take away from it: submissions, an exported model, and its verdict on a folder."""
    finished = tmp_path_factory.mktemp("delivered") / "run"
    shutil.copytree(smoke_run, finished)
    targets = [f"results-smoke/demo/{system}/seed_{seed}/submission" for system, seed in RUNS]
    targets += ["results-smoke/demo/attribute_aware/seed_0/export", "results-smoke/detection.csv"]
    chosen = "detect={recordings: data/smoke/demo/fan/test, machine: fan}"
    done = snakemake(finished, *targets, "--config", chosen, overlays=[SMOKE])
    assert done.returncode == 0, done.stdout[-6000:]
    return finished


@pytest.mark.parametrize(("system", "seed"), RUNS)
def test_a_submission_evaluated_by_the_command_line_equals_the_metrics_of_the_workflow_exactly(
    delivered, system, seed
):
    demo = results(delivered) / "demo"
    arguments = [
        "--submission",
        demo / system / f"seed_{seed}" / "submission",
        "--labels",
        demo / "clips.parquet",
    ]
    done = CliRunner().invoke(
        app, ["evaluate", "--year", "2025", *map(str, arguments), "--replicates", "0", "--json"]
    )
    assert done.exit_code == 0, done.output
    printed = pd.DataFrame(json.loads(done.stdout)["metrics"])[["machine", "section", "metric", "value"]]
    table = pd.read_csv(demo / "metrics.csv", dtype={"section": str}, keep_default_na=False)
    table = table[(table.system == system) & (table.seed == seed)]
    table = table[~table.metric.str.contains("nmi|ari|homogeneity")]  # of the labels, not of the scores
    keys = ["machine", "section", "metric"]
    expected = table[[*keys, "value"]].astype({"value": float}).sort_values(keys).reset_index(drop=True)
    found = printed.sort_values(keys).reset_index(drop=True)
    assert len(found) == 6 * 11 + 1
    assert "official_score" in set(found.metric) and "false_alarm_rate_source" in set(found.metric)
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_dtype=False)


def test_an_exported_model_copied_elsewhere_gives_the_scores_of_the_workflow_with_the_original_tree_gone(
    delivered, tmp_path, monkeypatch
):
    run = results(delivered) / "demo" / "attribute_aware" / "seed_0"
    expected = pd.read_parquet(run / "scores.parquet").set_index("clip_id")
    shutil.copytree(run / "export", tmp_path / "model")
    for machine in ("fan", "slider"):
        shutil.copytree(delivered / "data" / "smoke" / "demo" / machine / "test", tmp_path / machine)
    monkeypatch.chdir(tmp_path)
    away = delivered.with_name("away")
    delivered.rename(away)
    try:
        rows = {machine: detect(Path("model"), [Path(machine)], machine) for machine in ("fan", "slider")}
    finally:
        away.rename(delivered)
    for machine, found in rows.items():
        ids = [f"{machine}/test/{Path(row.recording).stem}" for row in found]
        assert len(ids) == len(set(ids)) == 16
        wanted = expected.loc[ids]
        assert [row.anomaly_score for row in found] == pytest.approx(wanted.anomaly_score.tolist(), abs=1e-5)
        assert [row.decision for row in found] == wanted.decision.tolist()


def test_the_rule_detect_writes_the_scores_of_a_folder(delivered):
    table = pd.read_csv(results(delivered) / "detection.csv")
    scores = pd.read_parquet(results(delivered) / "demo" / "attribute_aware" / "seed_0" / "scores.parquet")
    expected = scores.set_index("clip_id")["anomaly_score"].filter(like="fan/")
    ids = ["fan/test/" + Path(recording).stem for recording in table["recording"]]
    assert sorted(ids) == sorted(expected.index) and table["problem"].isna().all()
    assert table["anomaly_score"].tolist() == pytest.approx(expected.loc[ids].tolist(), abs=1e-5)


def test_snakemakes_own_report_holds_tables_and_figures_with_captions_categories_and_labels(delivered):
    done = snakemake(delivered, "--report", "report.zip", overlays=[SMOKE])
    assert done.returncode == 0, done.stdout[-4000:]
    with zipfile.ZipFile(delivered / "report.zip") as archive:
        names = archive.namelist()
        page = next(name for name in names if name.endswith("report.html"))
        html = archive.read(page).decode("utf-8")
        svg = archive.read(next(name for name in names if name.endswith("machines and systems.svg"))).decode()
        table = next(name for name in names if name.endswith("official scores.csv"))
        official = pd.read_csv(io.BytesIO(archive.read(table))).set_index("System")
        assert any(
            name.endswith("index.html") and "attribute_aware" in archive.read(name).decode() for name in names
        )
    for category in ("Report", "Overview", "Tables", "ROC", "Scores", "Clusters", "Training"):
        assert f'"{category}"' in html, category
    for words in ("ROC curves of one machine, averaged over the seeds", "The whole report in one file"):
        assert words in html
    assert svg.startswith("<svg") and "slider" in svg
    expected = pd.read_csv(results(delivered) / "demo" / "official_scores.csv").set_index("system")
    assert official["Official score"].to_dict() == expected["mean"].to_dict()


def test_the_command_in_the_report_plans_the_same_run(delivered):
    record = json.loads((results(delivered) / "report" / "provenance.json").read_text())
    words = record["command"].split()
    assert words[:3] == ["snakemake", "--cores", "all"] and words[3] == "--configfile"
    done = snakemake(
        delivered,
        "--dry-run",
        "--config",
        "results_dir=results-smoke",
        "data_dir=data/smoke",
        overlays=[delivered / words[4]],
    )
    assert done.returncode == 0 and planned(done.stdout) == {}, done.stdout[-3000:]
