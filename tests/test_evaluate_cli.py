"""Evaluation of runs and submissions: the command line equals the workflow, and names all that is wrong."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from asdflow.cli import app
from asdflow.detection.bootstrap import bootstrap, draw_weights, interval, official_samples
from asdflow.detection.evaluate import agreement, evaluate, paired_table
from asdflow.detection.official import official_metrics
from asdflow.detection.submission import read_labels, write_submission
from asdflow.errors import InputError
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from tests.conftest import SHARED, needs_shared

YEARS = (2020, 2021, 2022, 2025)


def catalogue(year: int, seed: int = 0) -> pd.DataFrame:
    """Test clips named as the year names them, normal and anomalous, two machines with two sections each."""
    rows = []
    for machine in ("fan", "ToyCar"):
        for number in ("01", "02"):
            section = f"id_{number}" if year == 2020 else number
            for domain in [None] if year == 2020 else ["source", "target"]:
                for condition, count in (("normal", 9), ("anomaly", 7)):
                    for clip in range(count):
                        stem = (
                            f"{condition}_id_{number}_{clip:08d}"
                            if year == 2020
                            else f"section_{number}_{domain}_test_{condition}_{clip:04d}_vel_8"
                        )
                        folder = f"{domain}_test" if year == 2021 else "test"
                        clip_id = f"{machine}/{folder}/{stem}"
                        rows.append(
                            (clip_id, f"data/{clip_id}.flac", machine, section, domain, "test", condition)
                        )
    columns = ["clip_id", "path", "machine", "section", "domain", "split", "condition"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=seed).reset_index(drop=True)


def random_scores(clips: pd.DataFrame, seed: int = 1, strength: float = 1.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=len(clips)) + strength * (clips["condition"] == "anomaly"), 1) + 0.1
    decision = (values > 0.7).astype("int64")
    return pd.DataFrame({"clip_id": clips["clip_id"], "anomaly_score": values, "decision": decision})


def write_run(folder: Path, year: int, seed: int = 1, strength: float = 1.0) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    clips = catalogue(year)
    clips.to_parquet(folder / "clips.parquet")
    random_scores(clips, seed, strength).to_parquet(folder / "scores.parquet")
    return folder / "clips.parquet", folder / "scores.parquet"


def labels_csv(clips: pd.DataFrame, path: Path) -> Path:
    table = pd.DataFrame(
        {
            "file_name": [Path(p).stem + ".wav" for p in clips["path"]],
            "machine": clips["machine"],
            "section": clips["section"],
            "domain": clips["domain"],
            "label": (clips["condition"] == "anomaly").astype(int),
        }
    )
    table.to_csv(path, index=False)
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("year", YEARS)
def test_a_written_submission_evaluated_by_the_command_line_equals_the_workflow_exactly(
    year: int, tmp_path: Path
) -> None:
    clips, scores = write_run(tmp_path, year)
    evaluate(clips, [("mine", 3, scores)], year, tmp_path / "metrics.csv", tmp_path / "official_scores.csv")
    write_submission(clips, scores, year, tmp_path / "submission", "mine")
    labels = labels_csv(pd.read_parquet(clips), tmp_path / "labels.csv")
    result = command(
        "evaluate", "--year", year, "--submission", tmp_path / "submission", "--labels", labels, "--json"
    )
    assert result.exit_code == 0, result.output
    printed = pd.DataFrame(json.loads(result.stdout)["metrics"])[["machine", "section", "metric", "value"]]
    workflow = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False)
    if year == 2020:  # its challenge has no files of decisions
        workflow = workflow[~workflow["metric"].str.match("precision|recall|f1|false_alarm")]
    expected = workflow[["machine", "section", "metric", "value"]].astype({"section": str})
    expected["section"] = [s.zfill(2) if s.isdigit() else s for s in expected["section"]]
    pd.testing.assert_frame_equal(
        printed.sort_values(["machine", "section", "metric"], ignore_index=True),
        expected.sort_values(["machine", "section", "metric"], ignore_index=True),
        check_exact=True,
    )


def test_submission_files_have_the_challenges_names(tmp_path: Path) -> None:
    wanted = {
        2020: ["anomaly_score_ToyCar_id_01.csv"],
        2021: [
            "anomaly_score_ToyCar_section_01_source_test.csv",
            "decision_result_fan_section_02_target_test.csv",
        ],
        2025: ["anomaly_score_ToyCar_section_01_test.csv", "decision_result_fan_section_02_test.csv"],
    }
    for year, names in wanted.items():
        clips, scores = write_run(tmp_path / str(year), year)
        write_submission(clips, scores, year, tmp_path / str(year) / "out", "mine", {"encoder": "eat_small"})
        found = {path.name for path in (tmp_path / str(year) / "out").iterdir()}
        assert set(names) <= found
        assert len(found) == {2020: 4, 2021: 16, 2025: 8}[year] + 1
        first = (tmp_path / str(year) / "out" / names[0]).read_text().splitlines()
        assert all(line.split(",")[0].endswith(".wav") for line in first)
        assert len(first) == {2020: 16, 2021: 16, 2025: 32}[year]
        metadata = yaml.safe_load((tmp_path / str(year) / "out" / "metadata.yaml").read_text())
        assert metadata["submission"]["name"] == "mine"


def test_a_system_that_knows_hidden_attributes_is_not_submitted(tmp_path):
    knowing = {"labels": {"kind": "hidden_attributes"}}
    with pytest.raises(InputError, match=r"systems\.bound\.labels\.kind: hidden_attributes"):
        write_submission(tmp_path / "clips", tmp_path / "scores", 2025, tmp_path / "out", "bound", knowing)
    assert not (tmp_path / "out").exists()


@needs_shared
def test_the_shared_scores_as_a_submission_give_the_shared_official_score(tmp_path: Path) -> None:
    table = pd.read_csv(SHARED / "scoring" / "scores_2025.csv", dtype={"section": str})
    for machine, rows in table.groupby("machine"):
        rows[["file_name", "anomaly_score"]].to_csv(
            tmp_path / f"anomaly_score_{machine}_section_00_test.csv", header=False, index=False
        )
    table.drop(columns="anomaly_score").to_csv(tmp_path / "labels.csv", index=False)
    result = command(
        "evaluate", "--year", 2025, "--submission", tmp_path, "--labels", tmp_path / "labels.csv", "--json"
    )
    expected = json.loads((SHARED / "scoring" / "expected.json").read_text())["2025"]["official_score"]
    assert json.loads(result.stdout)["official_score"] == pytest.approx(expected, abs=1e-12)
    text = command(
        "evaluate", "--year", 2025, "--submission", tmp_path, "--labels", tmp_path / "labels.csv"
    ).stdout
    assert f"official score: {100 * expected:.2f}" in text


def test_everything_wrong_with_a_submission_is_listed_at_once(tmp_path: Path) -> None:
    clips, scores = write_run(tmp_path, 2025)
    folder = tmp_path / "submission"
    write_submission(clips, scores, 2025, folder, "mine")
    labels = labels_csv(pd.read_parquet(clips), tmp_path / "labels.csv")
    path = folder / "anomaly_score_fan_section_01_test.csv"
    lines = path.read_text().splitlines()
    names = [line.split(",")[0] for line in lines]
    lines[0] = f"{names[0]},nan"
    lines[1] = f"{names[1]},inf"
    lines[2] = f"other.wav,{0.5}"
    lines.append(f"{names[4]},0.25")
    lines[5] = f"{names[5]};0.25"
    path.write_text("\n".join(lines))
    (folder / "anomaly_score_ToyCar_section_02_test.csv").unlink()
    (folder / "anomaly_score_pump_section_00_test.csv").write_text("x.wav,1\n")
    (folder / "decision_result_fan_section_02_test.csv").write_text(
        (folder / "decision_result_fan_section_02_test.csv").read_text().replace(",1\n", ",2\n", 1)
    )
    result = command("evaluate", "--year", 2025, "--submission", folder, "--labels", labels)
    assert result.exit_code == 2
    for words in [
        f"{names[0]}: value is nan",
        f"{names[1]}: value is inf",
        "other.wav: unknown clip",
        f"{names[2]}: missing clip",
        f"{names[4]}: there twice",
        "line 6 is not `name.wav,value`",
        "anomaly_score_ToyCar_section_02_test.csv: missing file",
        "anomaly_score_pump_section_00_test.csv: unknown",
        "decision is neither 0 nor 1",
    ]:
        assert words in result.stderr, words
    assert "Traceback" not in result.output + result.stderr


@pytest.mark.parametrize("year", [2020, 2021, 2025])
def test_a_missing_class_is_an_error_at_the_command_line(year: int, tmp_path: Path) -> None:
    clips, scores = write_run(tmp_path, year)
    write_submission(clips, scores, year, tmp_path / "submission", "mine")
    table = pd.read_csv(labels_csv(pd.read_parquet(clips), tmp_path / "labels.csv"), dtype=str)
    table.loc[(table.machine == "fan") & table.section.str.endswith("02"), "label"] = "0"
    table.to_csv(tmp_path / "labels.csv", index=False)
    result = command(
        "evaluate",
        "--year",
        year,
        "--submission",
        tmp_path / "submission",
        "--labels",
        tmp_path / "labels.csv",
    )
    assert result.exit_code == 2
    assert "has no anomaly clip" in result.stderr and "machine fan" in result.stderr
    assert "official score:" not in result.stdout


def test_wrong_labels_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "file_name,machine,section,domain,label\na.wav,fan,00,source,0\nb.wav,fan,0,here,1\na.wav,fan,section_00,target,maybe\n"
    )
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / "labels.csv", 2025)
    text = str(caught.value)
    assert "line 3: domain" in text and "line 4: label" in text and "line 4: a.wav is there twice" in text


def write_runs(
    tmp_path: Path, clips: pd.DataFrame, strengths: Sequence[float] = (1.0,)
) -> list[tuple[str, int, Path]]:
    clips.to_parquet(tmp_path / "clips.parquet")
    runs = []
    for number, strength in enumerate(strengths):
        for seed in (0, 1):
            path = tmp_path / f"scores_{number}_{seed}.parquet"
            random_scores(clips, 10 * number + seed, strength).to_parquet(path)
            runs.append((f"system_{number}", seed, path))
    return runs


def test_official_scores_are_mean_and_deviation_over_seeds_in_percent(tmp_path: Path) -> None:
    clips = catalogue(2025)
    runs = write_runs(tmp_path, clips, (1.0, 2.0))
    evaluate(tmp_path / "clips.parquet", runs, 2025, tmp_path / "metrics.csv", tmp_path / "official.csv")
    official = pd.read_csv(tmp_path / "official.csv")
    assert list(official.columns) == ["system", "mean", "std", "n"]
    values = []
    for seed in (0, 1):
        scores = pd.read_parquet(tmp_path / f"scores_1_{seed}.parquet")
        table = clips.merge(scores, on="clip_id").assign(
            label=lambda t: (t.condition == "anomaly").astype(int)
        )
        metrics = official_metrics(table, 2025)
        values.append(100 * metrics.loc[metrics.metric == "official_score", "value"].item())
    row = official[official.system == "system_1"].iloc[0]
    assert row["mean"] == pytest.approx(np.mean(values)) and row["std"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert row["n"] == 2


def test_unlabelled_clips_and_an_absent_domain_give_what_can_be_computed_and_no_official_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = catalogue(2025)
    clips.loc[clips.machine == "fan", "domain"] = None
    clips.loc[(clips.machine == "ToyCar") & (clips.domain == "target"), "condition"] = None
    runs = write_runs(tmp_path, clips)
    evaluate(
        tmp_path / "clips.parquet",
        runs,
        2025,
        tmp_path / "metrics.csv",
        tmp_path / "official.csv",
        intervals_out=tmp_path / "intervals.csv",
    )
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert set(metrics.loc[metrics.machine == "fan", "metric"]) >= {"auc", "pauc", "precision"}
    assert {"auc_source", "pauc"} <= set(metrics.loc[metrics.machine == "ToyCar", "metric"])
    assert not metrics.metric.isin(["auc_target", "official_score"]).any()
    fan = clips[(clips.machine == "fan") & (clips.section == "01")].merge(
        pd.read_parquet(runs[0][2]), on="clip_id"
    )
    auc = metrics.query("machine == 'fan' and section == 1 and metric == 'auc' and seed == 0")["value"].item()
    assert auc == pytest.approx(roc_auc_score(fan.condition == "anomaly", fan.anomaly_score))
    official = pd.read_csv(tmp_path / "official.csv")
    assert official["n"].tolist() == [0] and official["mean"].isna().all()
    assert (
        "No official score" in caplog.text
        and "state no domain" in caplog.text
        and "32 test clips" in caplog.text
    )


def test_no_labels_at_all_give_empty_tables(tmp_path: Path) -> None:
    clips = catalogue(2025).assign(condition=None)
    runs = write_runs(tmp_path, clips)
    evaluate(tmp_path / "clips.parquet", runs, 2025, tmp_path / "metrics.csv", tmp_path / "official.csv")
    assert pd.read_csv(tmp_path / "metrics.csv").empty
    assert pd.read_csv(tmp_path / "official.csv")["n"].tolist() == [0]


def test_a_test_clip_without_score_is_an_error(tmp_path: Path) -> None:
    clips = catalogue(2025)
    runs = write_runs(tmp_path, clips)
    scores = pd.read_parquet(runs[0][2])
    scores.iloc[1:].to_parquet(runs[0][2])
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path / "clips.parquet", runs, 2025, tmp_path / "metrics.csv", tmp_path / "official.csv")
    assert scores["clip_id"].iloc[0] in caught.value.problems


def test_pseudo_labels_are_compared_with_hidden_attributes_per_machine(tmp_path: Path) -> None:
    truth = pd.DataFrame(
        {"clip_id": [f"slider/train/{i}" for i in range(8)], "attribute_label": ["a", "b"] * 4}
    )
    labels = pd.DataFrame(
        {
            "clip_id": [*truth["clip_id"], "fan/train/0"],
            "label": [5, 9] * 4 + [1],
            "label_name": "x",
            "origin": ["pseudo"] * 8 + ["attributes"],
            "machine": ["slider"] * 8 + ["fan"],
            "dataset": "dcase2025",
        }
    )
    assert agreement(labels, truth) == {"slider": {"nmi": 1.0, "ari": 1.0, "homogeneity": 1.0}}
    clips = catalogue(2025)
    runs = write_runs(tmp_path, clips)
    truth.to_csv(tmp_path / "hidden.csv", index=False)
    labels.to_parquet(tmp_path / "labels.parquet")
    labels.assign(label=[0, 0, 1, 1] * 2 + [2]).to_parquet(tmp_path / "unadapted.parquet")
    evaluate(
        tmp_path / "clips.parquet", runs, 2025, tmp_path / "metrics.csv", tmp_path / "official.csv",
        tmp_path / "hidden.csv", {"system_0": tmp_path / "labels.parquet"}, {"system_0": tmp_path / "unadapted.parquet"},
    )  # fmt: skip
    metrics = pd.read_csv(tmp_path / "metrics.csv").set_index("metric")["value"]
    assert metrics["nmi"].tolist() == [1.0, 1.0] and metrics["nmi_unadapted"].tolist() == pytest.approx(
        [0.0, 0.0]
    )


def test_clips_of_further_data_sets_do_not_count_in_the_agreement() -> None:
    truth = pd.DataFrame({"clip_id": ["m/train/0", "m/train/1"], "attribute_label": ["a", "b"]})
    labels = pd.DataFrame(
        {
            "clip_id": ["m/train/0", "m/train/1"] * 2,
            "label": [0, 1, 2, 2],
            "label_name": [
                "m|00|cluster=00|source",
                "m|00|cluster=01|source",
                "old:m|00|x|source",
                "old:m|00|x|source",
            ],
            "origin": "pseudo",
            "machine": "m",
            "dataset": ["new", "new", "old", "old"],
        }
    )
    assert agreement(labels, truth)["m"]["ari"] == 1.0


def test_bootstrap_draws_within_domain_and_condition() -> None:
    domain = np.array(["source"] * 10 + ["target"] * 4, dtype=object)
    label = np.array([0] * 6 + [1] * 4 + [0] * 3 + [1])
    weights = draw_weights(domain, label, 50, np.random.default_rng(0))
    for part, count in ((slice(0, 6), 6), (slice(6, 10), 4), (slice(10, 13), 3), (slice(13, 14), 1)):
        assert (weights[:, part].sum(axis=1) == count).all()
    assert weights[:, :6].std() > 0.5


def test_bootstrap_of_one_replicate_equals_the_metrics_of_the_drawn_clips() -> None:
    clips = catalogue(2022)
    table = clips.merge(random_scores(clips), on="clip_id").assign(
        label=lambda t: (t.condition == "anomaly").astype(int)
    )
    table = (
        table[(table.machine == "fan") & (table.section == "01")]
        .sort_values("clip_id")
        .reset_index(drop=True)
    )
    samples = bootstrap({"run": table}, 2022, replicates=5, seed=3)["run"]
    rng = np.random.default_rng([3, zlib.crc32(b"fan|01")])
    weights = draw_weights(table["domain"].to_numpy(), table["label"].to_numpy(), 5, rng)
    for replicate in range(5):
        drawn = table.loc[np.repeat(table.index, weights[replicate].astype(int))]
        metrics = official_metrics(drawn, 2022).set_index("metric")["value"]
        for metric in ("auc_source", "auc_target", "pauc"):
            assert samples["fan", "01", metric][replicate] == pytest.approx(metrics[metric], abs=1e-12)
        assert official_samples(samples, 2022)[replicate] == pytest.approx(
            metrics["official_score"], abs=1e-12
        )


def test_paired_intervals_are_narrower_than_unpaired_ones_and_find_a_clear_gain(tmp_path: Path) -> None:
    clips = catalogue(2025)
    base = random_scores(clips, 1, 1.0)
    better = base.assign(anomaly_score=base["anomaly_score"] + 0.6 * (clips["condition"] == "anomaly"))
    tables = {
        (name, 0): clips.merge(scores, on="clip_id").assign(
            label=(clips["condition"] == "anomaly").astype(int)
        )
        for name, scores in (("base", base), ("better", better))
    }
    samples = {run: official_samples(found, 2025) for run, found in bootstrap(tables, 2025, 300).items()}
    row = paired_table(samples, {run: float(v.mean()) for run, v in samples.items()}, ["base"]).iloc[0]
    assert (row["system"], row["reference"]) == ("better", "base")
    assert 0 < row["low"] < row["difference"] < row["high"]
    unpaired = interval(samples["better", 0] - np.random.default_rng(0).permutation(samples["base", 0]))
    assert row["high"] - row["low"] < 100 * (unpaired[1] - unpaired[0])


def test_the_command_compares_two_submissions(tmp_path: Path) -> None:
    clips, scores = write_run(tmp_path, 2025, strength=2.5)
    write_submission(clips, scores, 2025, tmp_path / "strong", "strong")
    _, weak = write_run(tmp_path / "weak_run", 2025, seed=5, strength=0.0)
    write_submission(clips, weak, 2025, tmp_path / "weak", "weak")
    labels = labels_csv(pd.read_parquet(clips), tmp_path / "labels.csv")
    result = command(
        "evaluate", "--year", 2025, "--submission", tmp_path / "strong", "--labels", labels,
        "--against", tmp_path / "weak", "--replicates", 200, "--json",
    )  # fmt: skip
    comparison = json.loads(result.stdout)["comparison"]
    assert comparison["reference"] == "weak" and 0 < comparison["low"] < comparison["difference"]
