"""The report without a browser: figures, tables, significance, evidence, exports, the file as a whole."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from asdflow.configuration import merge
from asdflow.detection.official import official_metrics
from asdflow.errors import InputError
from asdflow.report import evidence, figures
from asdflow.report.augmented import augmented_clips
from asdflow.report.build import build_report
from asdflow.report.inputs import ReportInputs, dataset_files
from asdflow.report.media import choose_clips, nearest_normal
from asdflow.report.published import MACHINES, PUBLISHED, SETS, published_table
from asdflow.report.significance import compare_systems
from asdflow.report.svg import draw_svg
from asdflow.report.tables import (
    Table,
    as_csv,
    as_latex,
    as_markdown,
    machine_scores,
    number,
    parts_table,
    read_metrics,
    text,
)
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.made_up_run import ODD_NAMES, Size, made_up_inputs, make_run
from tests.test_augmentation import OFF

TINY = Size(machines=("bearing", "fan"), test=6, train=12, seconds=0.2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    return made_up_inputs(tmp_path_factory.mktemp("run"), TINY, replicates=100)


@pytest.fixture(scope="module")
def page(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "index.html"
    build_report(inputs, output, exports=output.parent)
    return output


class References(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "srcset", "poster") or (name == "href" and tag == "link"):
                self.found.append(value)


def test_the_file_loads_nothing_from_outside(page: Path):
    source = page.read_text(encoding="utf-8")
    parser = References()
    parser.feed(source)
    assert len(parser.found) > 10
    assert [r[:60] for r in parser.found if not r.startswith("data:")] == []
    assert "default-src 'none'" in source
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_the_same_inputs_give_the_same_bytes(inputs: ReportInputs, page: Path, tmp_path: Path):
    build_report(inputs, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_rows_of_an_ablation_table_stand_in_that_table_and_not_among_the_systems_parts(
    inputs: ReportInputs, page: Path, tmp_path: Path
):
    def named(source: str) -> set[str]:
        source = source.replace("<wbr>", "")
        start = source.index("<h2>Parts</h2>")
        return set(
            re.findall(r"attribute_aware|frozen|logmel_knn", source[start : source.index("</table>", start)])
        )

    table = {"title": "Back ends", "parts": [{"part": "back end", "options": {"knn": {}}}], "rows": [["knn"]]}
    build_report(replace(inputs, ablations={"logmel": table}), tmp_path / "with.html")
    made = (tmp_path / "with.html").read_text(encoding="utf-8")
    assert "Parts switched on and off" in made and "Parts switched" not in page.read_text(encoding="utf-8")
    assert named(page.read_text(encoding="utf-8")) == set(TINY.systems)
    assert named(made) == set(TINY.systems) - {"logmel_knn"}


def test_media_stay_within_their_limit(inputs: ReportInputs, page: Path, tmp_path: Path):
    build_report(replace(inputs, media_megabytes=0.02), tmp_path / "small.html")
    small = (tmp_path / "small.html").read_text(encoding="utf-8")
    assert sum(map(len, re.findall(r"data:(?:audio|image/webp)[^\"]*", small))) < 0.02e6 + 20_000
    assert "size limit is reached" in small
    assert len(small) < page.stat().st_size


def test_a_report_needs_a_data_set_and_readable_provenance(inputs: ReportInputs, tmp_path: Path):
    with pytest.raises(InputError, match="no data set"):
        build_report(ReportInputs(datasets=()), tmp_path / "x.html")
    (tmp_path / "provenance.json").write_text("[1]")
    with pytest.raises(InputError, match="no JSON object"):
        build_report(
            ReportInputs(inputs.datasets, provenance=tmp_path / "provenance.json"), tmp_path / "x.html"
        )
    assert not (tmp_path / "x.html").exists()


def test_exports_hold_every_machine_and_unrounded_numbers(inputs: ReportInputs, page: Path):
    folder = page.parent
    assert {p.stem for p in (folder / "roc" / "made_up").iterdir()} == set(TINY.machines)
    table = pd.read_csv(folder / "tables" / "made_up" / "official scores.csv").set_index("System")
    official = pd.read_csv(inputs.datasets[0].official_scores).set_index("system")
    assert table["Official score"].to_dict() == official["mean"].to_dict()
    for picture in folder.rglob("*.svg"):
        root = ElementTree.parse(picture).getroot()
        drawn = [e for e in root.iter() if e.tag.endswith(("path", "rect", "circle"))]
        assert len(drawn) > 5 and "nan" not in picture.read_text(encoding="utf-8"), picture
    assert len(list(folder.rglob("*.svg"))) >= 12


# ------------------------------------------------------------------ significance


def scored(
    skills: dict[str, float], seeds: int = 2, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, dict[int, pd.Series]]]:
    rng = np.random.default_rng(seed)
    rows = [
        (f"{m}{d}{c}{i}", m, "00", d, c)
        for m in "ab"
        for d in ("source", "target")
        for c in ("normal", "anomaly")
        for i in range(25)
    ]
    clips = pd.DataFrame(rows, columns=["clip_id", "machine", "section", "domain", "condition"])
    anomaly = (clips["condition"] == "anomaly").to_numpy()
    shared = rng.normal(size=len(clips))
    scores = {
        system: {
            n: pd.Series(shared + 0.3 * rng.normal(size=len(clips)) + skill * anomaly, index=clips["clip_id"])
            for n in range(seeds)
        }
        for system, skill in skills.items()
    }
    return clips, scores


def compared(*arguments: Any, **settings: Any) -> dict[str, dict[str, float]]:
    """System -> its row of the comparison."""
    rows = compare_systems(*arguments, **settings).to_dict("records")
    return {str(row["system"]): {str(k): v for k, v in row.items()} for row in rows}


def test_a_real_gain_is_significant_and_none_is_not():
    clips, scores = scored({"base": 0.5, "same": 0.5, "better": 1.5})
    table = compared(clips, scores, 2025, "base", replicates=400)
    assert table["better"]["p"] < 0.02 and table["better"]["difference_low"] > 0
    assert table["same"]["p"] > 0.05
    assert table["same"]["difference_low"] < 0 < table["same"]["difference_high"]
    assert np.isnan(table["base"]["p"])


def test_differences_are_those_of_the_official_score_and_pairing_narrows_them():
    clips, scores = scored({"base": 0.5, "other": 0.9}, seeds=1)
    table = compared(clips, scores, 2025, "base", replicates=400)
    means = {}
    for system, runs in scores.items():
        frame = clips.assign(
            label=(clips["condition"] == "anomaly").astype(int), anomaly_score=runs[0].to_numpy()
        )
        found = official_metrics(frame, 2025)
        means[system] = 100 * found.loc[found["metric"] == "official_score", "value"].item()
    assert table["other"]["difference"] == pytest.approx(means["other"] - means["base"], abs=1e-9)
    assert table["other"]["low"] < means["other"] < table["other"]["high"]
    paired = table["other"]["difference_high"] - table["other"]["difference_low"]
    single = [row["high"] - row["low"] for row in table.values()]
    assert paired < 0.9 * np.hypot(single[0], single[1])


def test_one_seed_of_chance_rarely_looks_significant():
    found = []
    for seed in range(20):
        clips, scores = scored({"base": 0.5, "same": 0.5}, seeds=1, seed=seed)
        found.append(compare_systems(clips, scores, 2025, "base", replicates=100, seed=seed)["p"].iloc[1])
    assert sum(p < 0.05 for p in found) <= 4


def test_a_system_without_all_clips_is_left_out_of_the_comparison():
    clips, scores = scored({"base": 0.5, "partial": 0.9})
    scores["partial"][1] = scores["partial"][1].iloc[:-3]
    assert list(compare_systems(clips, scores, 2025, "base", replicates=20)["system"]) == ["base"]


# ------------------------------------------------------------------ tables


def test_machine_scores_use_the_mean_of_the_year(inputs: ReportInputs):
    metrics = read_metrics(inputs.datasets[0].metrics)
    one = machine_scores(metrics).set_index(["system", "machine", "seed"])["score"]
    own = metrics[(metrics["system"] == "frozen") & (metrics["machine"] == "fan") & (metrics["seed"] == 1)][
        "value"
    ]
    assert len(own) == 3
    assert one["frozen", "fan", 1] == pytest.approx(100 * 3 / np.sum(1 / own.to_numpy()))
    old = pd.DataFrame([("s", 0, "fan", "id_00", "auc", 0.9), ("s", 0, "fan", "id_00", "pauc", 0.6), ("s", 0, "fan", "", "mean_auc", 0.9)],
                       columns=["system", "seed", "machine", "section", "metric", "value"])  # fmt: skip
    assert machine_scores(old)["score"].item() == pytest.approx(75)


def test_tables_are_written_for_every_reader():
    table = Table(
        "t", ["Name_1", "Value"], [[text("a_b & 5 %"), number(-1.23456, 2)], [text("x|y"), number(None)]], [1]
    )
    assert as_csv(table) == "Name_1,Value\na_b & 5 %,-1.23456\nx|y,–\n"
    assert r"a\_b \& 5 \% & $-$1.23 \\" in as_latex(table)
    assert "| x\\|y | – |" in as_markdown(table)


def test_the_parts_table_shows_what_differs_and_names_what_does_not():
    parts = {
        "a": {
            "encoder": "eat",
            "objective": {"kind": "arcface", "margin": 0.3, "scale": 30},
            "pooling": "mean",
        },
        "b": {
            "encoder": "eat",
            "objective": {"kind": "arcface", "margin": 0.5, "scale": 30},
            "pooling": "mean",
        },
        "c": {"encoder": "eat", "objective": {"kind": "none"}, "pooling": "cls"},
    }
    official = pd.DataFrame(
        {"system": ["a", "b", "c"], "mean": [60.0, 62.0, 58.0], "std": [1.0, 1.0, np.nan], "n": [2, 2, 1]}
    )
    table, shared = parts_table(parts, official, "a")
    assert table.headers == ["System", "Objective", "Pooling", "Official score", "Std", "Seeds"]
    assert [[c.text for c in row[:3]] for row in table.rows] == [
        ["b", "arcface (margin 0.5)", "mean"], ["a", "arcface (margin 0.3)", "mean"], ["c", "none", "cls"],
    ]  # fmt: skip
    assert [row[2].strong for row in table.rows] == [False, False, True]
    assert shared == "encoder eat"


def test_the_parts_table_leaves_out_what_is_switched_off():
    off = {"weight": 0, "margin": 0.5}
    learning = {"arcface": {"weight": 1.0, "margin": 0.3}, "nt_xent": off}
    changing = {
        "mixup": {"probability": 0.0, "alpha": 0.2},
        "segments": {"count": 1},
        "noise": {"probability": 0.5},
    }
    parts = {
        "a": {"title": "A", "tuning": {"method": "full"}, "objective": learning, "augmentation": changing},
        "b": {
            "title": "B",
            "tuning": {"method": "none", "steps": 9},
            "objective": learning,
            "augmentation": changing,
        },
    }
    official = pd.DataFrame({"system": ["a", "b"], "mean": [60.0, 59.0], "std": [1.0, 1.0], "n": [2, 2]})
    table, _ = parts_table(parts, official, None)
    assert table.headers[:4] == ["System", "Tuning", "Objective", "Augmentation"]
    assert [[c.text for c in row[:4]] for row in table.rows] == [
        ["a", "full", "arcface", "noise"], ["b", "none", "none", "none"],
    ]  # fmt: skip


def test_titles_stand_below_the_scores_and_an_upper_bound_is_marked(inputs: ReportInputs, tmp_path: Path):
    record = json.loads(Path(str(inputs.provenance)).read_text())
    first, second, *_ = record["systems"]
    record["systems"][first] |= {
        "title": "Stands in for <it>",
        "labels": {"kind": "hidden_attributes"},
    }
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    build_report(replace(inputs, provenance=tmp_path / "provenance.json"), tmp_path / "index.html")
    words = re.sub(r"<[^>]+>", "", (tmp_path / "index.html").read_text())
    assert "Stands in for &lt;it&gt;" in words
    assert f"{first}: an upper bound that learns from the true hidden attributes" in words
    assert f"{second}: an upper bound" not in words


def test_each_augmentation_of_a_recipe_is_shown_once_on_one_training_clip(inputs: ReportInputs):
    files = inputs.datasets[0]
    clips = pd.read_parquet(files.clips)
    used = merge(OFF, {"high_frequency": {"probability": 0.5}, "specaugment": {"probability": 0.8}})
    parts = {
        name: {"augmentation": settings} for name, settings in (("one", used), ("two", used), ("plain", OFF))
    }
    [shown] = augmented_clips(files, clips, parts, seed=0)
    assert shown.systems == ("one", "two")
    assert [picture.name for picture in shown.pictures] == ["original", "specaugment", "high_frequency"]
    assert (
        "cutoff 0.25 to 1.0" in shown.pictures[2].settings
        and "in 50 % of clips" in shown.pictures[2].settings
    )
    decoded = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p.picture.split(",")[1])))) for p in shown.pictures
    ]
    low, high = (
        np.abs(decoded[2].astype(float) - decoded[0])[part].mean()
        for part in (slice(100, None), slice(0, 28))
    )
    assert (
        low < 12 < high
    )  # rows count from the top: the low frequencies at the bottom stay, but for the picture's compression
    of = clips.set_index("clip_id").loc[[shown.clip_id, shown.mixed_in]]
    assert of["split"].tolist() == ["train", "train"] and of["machine"].nunique() == 2
    assert augmented_clips(files, clips, {"plain": parts["plain"]}, seed=0) == []


def test_published_figures_appear_for_the_same_data_only():
    table, _ = published_table("2025 evaluation", sorted(MACHINES["2025 evaluation"]))
    assert table is not None and ("arXiv 2509.12845", 62.6) in [(r[0].text, r[1].value) for r in table.rows]
    table, why = published_table("2025 evaluation", ["AutoTrash", "ToyPet"])
    assert table is None and "missing BandSealer" in why
    assert published_table(None, ["fan"])[0] is None
    assert all(len(scores) == len(SETS) for scores in PUBLISHED.values()) and set(SETS) == set(MACHINES)


# ------------------------------------------------------------------ evidence


def test_the_mean_roc_has_the_area_that_scikit_learn_finds():
    clips, scores = scored({"s": 1.0}, seeds=1)
    run = clips.assign(anomaly_score=scores["s"][0].to_numpy())
    curve = evidence.roc_curves({"s": [run]}, {"all": None})
    expected = roc_auc_score(run["condition"] == "anomaly", run["anomaly_score"])
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(expected, abs=0.01)
    assert curve["tpr"].is_monotonic_increasing and curve["tpr"].iloc[-1] == 1


def test_the_threshold_is_told_only_where_decisions_have_one():
    scores = pd.DataFrame({"anomaly_score": [1.0, 2.0, 3.0, 4.0], "decision": [0, 0, 1, 1]})
    assert evidence.threshold(scores) == 2.5
    assert evidence.threshold(scores.assign(decision=[0, 1, 0, 1])) is None
    assert evidence.threshold(scores.assign(decision=np.nan)) is None
    known = {("fan", "00"): (2.2, 0.1), ("pump", "00"): (9.0, 0.1)}
    assert evidence.threshold(scores.assign(machine="fan"), known) == 2.2
    assert evidence.threshold(scores.assign(machine="fan"), known | {("fan", "01"): (2.7, 0.1)}) == 2.5


def test_confusion_and_attributes_count_clips():
    scores = pd.DataFrame(
        {"domain": ["source"] * 4, "condition": ["normal", "normal", "anomaly", "anomaly"], "decision": [0, 1, 1, 0],
         "anomaly_score": [0.1, 0.9, 0.8, 0.2], "attribute_label": ["slow", "fast", "slow", "slow"]}
    )  # fmt: skip
    confusion = evidence.confusion_table(scores, 0.1)
    assert confusion is not None
    assert [c.value for c in confusion.rows[0][1:]] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.1]
    by_attribute = evidence.attribute_table(scores)
    assert by_attribute is not None
    assert {r[0].text: [c.value for c in r[2:]] for r in by_attribute.rows} == {
        "fast": [1, 1, 0, 0, 0.0],
        "slow": [1, 0, 2, 1, 1.0],
    }


def test_clips_worth_a_look_are_the_extremes_and_the_worst_mistakes():
    scores = pd.DataFrame({"clip_id": list("abcdef"), "anomaly_score": [1, 2, 3, 4, 5, 6.0],
                           "condition": ["normal", "anomaly", "normal", "anomaly", "normal", "anomaly"]})  # fmt: skip
    assert choose_clips(scores, 1) == [
        ("Highest score", "f"),
        ("Lowest score", "a"),
        ("Normal, scored high", "e"),
        ("Anomaly, scored low", "b"),
    ]


def test_the_nearest_normal_clip_is_of_the_same_machine_and_of_training():
    clips = pd.DataFrame({"clip_id": ["q", "same", "far", "foreign", "test"], "machine": ["m", "m", "m", "o", "m"],
                          "split": ["test", "train", "train", "train", "test"]})  # fmt: skip
    matrix = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    found = nearest_normal("q", clips, {c: i for i, c in enumerate(clips["clip_id"])}, matrix)
    assert (
        found is not None
        and found[0] == "same"
        and found[1] == pytest.approx(1 - 0.9 / np.hypot(0.9, 0.1), abs=1e-6)
    )
    matrix[2] = [1.05, 0]
    matrix[1] = [3, 0]  # the same direction, and far away
    rows = {c: i for i, c in enumerate(clips["clip_id"])}
    assert nearest_normal("q", clips, rows, matrix, "cosine") == ("same", 0.0)
    assert nearest_normal("q", clips, rows, matrix, "euclidean") == ("far", pytest.approx(0.05, abs=1e-6))


def test_histories_are_thinned_but_keep_their_ends(tmp_path: Path):
    steps = np.arange(5000)
    pd.DataFrame({"step": steps, "metric": "loss", "value": steps[::-1] / 1.0}).to_parquet(
        tmp_path / "h.parquet"
    )
    thin = evidence.read_history(tmp_path / "h.parquet", "seed 0")
    assert (
        len(thin) <= 300
        and thin["step"].iloc[0] == 0
        and thin["step"].iloc[-1] == 4999
        and thin["value"].iloc[-1] == 0
    )


# ------------------------------------------------------------------ figures


def all_figures() -> dict[str, go.Figure]:
    rng = np.random.default_rng(0)
    name = ODD_NAMES[2]
    curves = pd.DataFrame(
        {"panel": "all", "system": name, "fpr": figures.CURVE_GRID, "tpr": np.sqrt(figures.CURVE_GRID)}
    )
    scores = pd.DataFrame(
        {
            "anomaly_score": rng.normal(size=40),
            "domain": ["source", "target"] * 20,
            "condition": ["normal"] * 20 + ["anomaly"] * 20,
        }
    )
    official = pd.DataFrame({"system": [name, "b"], "mean": [60.0, 55.0]})
    seeds = pd.DataFrame({"system": [name, name, "b"], "score": [59.0, 61.0, 55.0]})
    points = pd.DataFrame(
        {
            "x": rng.normal(size=9),
            "y": rng.normal(size=9),
            "number": range(9),
            "machine": [name, "m", None] * 3,
        }
    )
    linkage = np.array([[0, 1, 0.5, 2], [2, 3, 0.7, 2], [4, 5, 3.0, 4]])
    history = pd.DataFrame({"run": [name] * 20, "step": range(20), "value": np.geomspace(100, 0.01, 20)})
    return {
        "official": figures.official_scores(official, seeds, official.assign(low=50, high=[65, 57])),
        "heat": figures.score_heat_map(seeds.assign(machine=[name, "m", "m"]), [name, "b"]),
        "roc": figures.roc(curves, ["all"], name),
        "histogram": figures.score_histogram(scores, 0.5),
        "map": figures.embedding_map(points, "machine"),
        "dendrogram": figures.dendrogram(linkage, 1.5),
        "sizes": figures.cluster_sizes(pd.DataFrame({"cluster": [0, 1], "clips": [3, 4]})),
        "silhouette": figures.silhouette(np.array([[2, 0.3], [3, 0.5]]), 3),
        "history": figures.history(history, "loss"),
        "times": figures.stage_times(pd.DataFrame({"rule": [name, "b"], "seconds": [3.0, 4.0]})),
    }


@pytest.mark.parametrize("name", sorted(all_figures()))
def test_every_figure_is_valid_and_draws_as_svg_with_names_escaped(name: str):
    figure = all_figures()[name]
    figure.to_json(validate=True)
    assert "<script" not in json.dumps(json.loads(figure.to_json()), default=str)
    drawn = draw_svg(figure)
    root = ElementTree.fromstring(drawn)
    words = [e.text for e in root.iter() if e.tag.endswith("text")]
    if name in ("official", "heat", "roc", "map", "times"):
        assert ODD_NAMES[2] in words
    assert "nan" not in drawn


def test_the_dendrogram_colours_clusters_below_the_cut_only():
    figure = all_figures()["dendrogram"]
    heights = {trace.line.color: max(v for v in trace.y if v is not None) for trace in figure.data}
    assert heights.pop(figures.MUTED) == 3.0
    assert len(heights) == 2 and all(h < 1.5 for h in heights.values())


def test_only_the_pauc_panel_is_shaded_and_only_to_a_tenth():
    curves = pd.concat(
        [
            pd.DataFrame({"panel": p, "system": "s", "fpr": figures.CURVE_GRID, "tpr": figures.CURVE_GRID})
            for p in ("x", "y")
        ]
    )
    shaded = [t for t in figures.roc(curves, ["x", "y"], "s").data if t.fill]
    assert len(shaded) == 1 and shaded[0].xaxis == "x2" and max(shaded[0].x) == pytest.approx(0.1)


def test_several_data_sets_share_a_file_and_one_without_any_file_says_so(
    inputs: ReportInputs, tmp_path: Path
):
    empty = dataset_files(tmp_path, "nothing yet", {"frozen": [0]})
    build_report(replace(inputs, datasets=(inputs.datasets[0], empty)), tmp_path / "index.html")
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    views = re.findall(r'<(?:template|section class="view") data-view="([^"]+)"', source)
    assert {"made_up/overview", "made_up/machine/fan", "nothing%20yet/overview", "provenance"} <= set(views)
    assert not any(v.startswith("nothing%20yet/machine") for v in views)
    overview = source[source.index('data-view="nothing%20yet/overview"') :]
    assert "official_scores.csv is absent" in overview[:4000]


def test_scores_without_known_conditions_leave_the_roc_out(inputs: ReportInputs, tmp_path: Path):
    files = make_run(tmp_path, TINY, name="unlabelled")
    clips = pd.read_parquet(files.clips)
    clips.loc[clips["split"] == "test", "condition"] = None
    clips.to_parquet(files.clips)
    build_report(replace(inputs, datasets=(files,)), tmp_path / "index.html")
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "no scores with known conditions" in source
    assert "Highest score" in source and "Anomaly, scored low" not in source


def test_labels_of_additional_data_sets_and_absent_official_scores_do_not_disturb(
    inputs: ReportInputs, tmp_path: Path
):
    files = make_run(tmp_path, TINY, name="own")
    path = files.systems[0].labels
    assert path is not None
    labels = pd.read_parquet(path)
    pd.concat([labels.assign(dataset="own"), labels.assign(dataset="other", machine="foreign")]).to_parquet(
        path
    )
    official = pd.read_csv(files.official_scores)
    official.assign(mean=np.nan, std=np.nan, n=0).to_csv(files.official_scores, index=False)
    build_report(replace(inputs, datasets=(files,)), tmp_path / "index.html")
    source = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "There is no official score" in source and "foreign" not in source
    assert evidence.read_labels(path, "own")["clip_id"].is_unique
