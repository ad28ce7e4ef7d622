"""What the overview says in a sentence, the false alarms it counts, the maps it keeps once, and the rule graph without clutter."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from asdflow.report.book import Book, Panel
from asdflow.report.build import build_report
from asdflow.report.dataset import read_dataset
from asdflow.report.findings import alarm_table, finding, read_thresholds, stated_rate
from asdflow.report.maps import map_panel
from asdflow.report.rule_graph import draw, parse_dot, reduced

from tests.made_up_run import Size, made_up_inputs

OFFICIAL = pd.DataFrame({"system": ["a", "b"], "mean": [61.234, 60.0], "std": [0.5, 0.1], "n": [2, 2]})


def significance(difference, p):
    return pd.DataFrame({"system": ["a", "b"], "difference": [difference, np.nan], "p": [p, np.nan]})


@pytest.mark.parametrize(
    ("p", "words"),
    [(0.04, "more than chance explains (p = 0.04)"), (0.05, "no more than chance explains (p = 0.05)"),
     (0.001, "more than chance explains (p < 0.01)")],
)  # fmt: skip
def test_the_finding_says_who_leads_by_how_much_and_whether_chance_explains_it(p, words):
    said = finding(OFFICIAL, significance(1.234, p), "b")
    assert (
        said
        == f"a scores highest: 61.23 % ± 0.50 over 2 seeds, 1.23 points above the baseline b, which is {words}."
    )


def test_the_finding_claims_nothing_that_was_not_compared():
    assert finding(OFFICIAL, None, "b") == "a scores highest: 61.23 % ± 0.50 over 2 seeds."
    assert finding(OFFICIAL, significance(1.2, 0.01), "a").endswith("; no system is above this baseline.")
    assert "with one seed." in finding(OFFICIAL.assign(n=1), None, None)
    assert finding(OFFICIAL.assign(n=0), None, None) == ""


def normal_clips(machine, domain, alarms, n=25):
    return pd.DataFrame(
        {
            "machine": machine,
            "domain": domain,
            "condition": "normal",
            "decision": [1] * alarms + [0] * (n - alarms),
        }
    )


def test_false_alarms_are_counted_per_machine_and_domain_and_marked_where_chance_does_not_explain_them():
    scores = pd.concat(
        [normal_clips("fan", "source", 6), normal_clips("fan", "target", 7), normal_clips("pump", "source", 0),
         normal_clips("pump", "target", 2)]
    )  # fmt: skip
    scores = pd.concat([scores, scores.assign(condition="anomaly", decision=1)])
    table = alarm_table(scores, {("fan", "00"): (1.0, 0.1), ("pump", "00"): (2.0, 0.1)})
    assert table is not None
    shown = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert shown == {
        "fan": ["10 %", "6 of 25", "24 %", "7 of 25", "28 %"],
        "pump": ["10 %", "0 of 25", "0 %", "2 of 25", "8 %"],
        "all machines": ["10 %", "6 of 50", "12 %", "9 of 50", "18 %"],
    }
    # 95 % of such counts at 10 % of 25 clips lie within 0 to 6
    assert [(row[0].text, i) for row in table.rows for i, cell in enumerate(row) if cell.strong] == [
        ("fan", 5)
    ]
    assert alarm_table(scores.assign(decision=np.nan), {}) is None


def test_thresholds_are_read_from_the_detector_and_one_rate_is_stated_only_where_sections_agree(tmp_path):
    unit = {
        "machine": "fan",
        "section": "00",
        "threshold": {"threshold": 0.7, "expected_false_alarm_rate": 0.1},
    }
    other = {**unit, "section": "01", "threshold": {"threshold": 0.9, "expected_false_alarm_rate": 0.2}}
    (tmp_path / "detector.json").write_text(json.dumps({"units": [unit, other]}))
    found = read_thresholds(tmp_path / "detector.json")
    assert found == {("fan", "00"): (0.7, 0.1), ("fan", "01"): (0.9, 0.2)}
    assert stated_rate(found, "fan") is None and stated_rate({("fan", "00"): (0.7, 0.1)}, "fan") == 0.1
    assert read_thresholds(None) == read_thresholds(tmp_path / "none.json") == {}


def test_every_system_has_maps_and_those_of_a_shared_encoder_are_kept_once(tmp_path: Path):
    size = Size(machines=("fan", "pump"), seeds=(0,), test=4, train=8, seconds=0.1)
    inputs = made_up_inputs(tmp_path, size, replicates=10)
    book = Book()
    panel = map_panel(
        read_dataset(inputs.datasets[0], inputs),
        None,
        book,
        lambda choices, slots: Panel("p", choices, slots),
        0,
    )
    assert panel is not None and list(panel.choices[0].options) == list(size.systems)
    assert list(panel.slots) == ["unadapted", "encoder", "scored"]
    maps = {name: json.loads(entry) for name, entry in book.entries.items() if name.endswith("-0-0")}
    assert set(maps) == {f"p/{stage}/{i}-0-0" for stage in panel.slots for i in range(3)}
    assert maps["p/encoder/2-0-0"] == {"same": "p/encoder/0-0-0"}
    assert all("figure" in maps[f"p/scored/{i}-0-0"] for i in range(3))
    names = json.loads(book.names())
    traces = maps["p/scored/0-0-0"]["figure"]["data"]
    shown = {names[number] for trace in traces for number in trace["meta"]["names"]}
    clips = pd.read_parquet(inputs.datasets[0].clips)
    assert shown <= set(clips["clip_id"]) and len(shown) == sum(len(trace["x"]) for trace in traces) == 48


GRAPH = """digraph snakemake_dag {
    0[label = "all", color = "0.1 0.6 0.85", style="rounded"];
    1[label = "report"];
    2[label = "score"];
    1 -> 0
    2 -> 1
}
"""


def ways(edges):
    """All pairs of rules of which one leads to the other."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def test_the_rule_graph_keeps_every_way_and_drops_every_arrow_that_follows_from_others():
    rules = [f"rule_{i}" for i in range(9)]
    rng = np.random.default_rng(3)
    edges = [(a, b) for i, a in enumerate(rules) for b in rules[i + 1 :] if rng.random() < 0.5]
    edges += [(rule, "all") for rule in rules]
    kept = reduced(edges)
    assert ways(kept) == {pair for pair in ways(edges) if "all" not in pair}
    for edge in kept:
        assert edge not in ways([other for other in kept if other != edge])


def test_no_arrow_of_the_rule_graph_runs_through_a_box():
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "e"), ("e", "d"), ("x", "b"), ("f", "d"), ("d", "<g>")]
    root = ElementTree.fromstring(draw(edges))
    shapes = {kind: root.findall(f".//{{*}}{kind}") for kind in ("rect", "text", "path")}
    assert sorted(str(text.text) for text in shapes["text"]) == ["<g>", "a", "b", "c", "d", "e", "f", "x"]
    boxes = [tuple(float(rect.get(k, "")) for k in ("x", "y", "width", "height")) for rect in shapes["rect"]]
    for one in range(len(boxes)):
        for other in range(one):
            (x, y, w, h), (u, v, _, _) = boxes[one], boxes[other]
            assert abs(x - u) >= w or abs(y - v) >= h
    lines = [path.get("d", "") for path in shapes["path"] if path.get("class") == "edge"]
    assert len(lines) == 8
    for line in lines:
        for part in line.split("V")[
            1:
        ]:  # where a line passes a layer it goes straight down, beside the boxes
            bottom = float(part.split()[0].split("C")[0])
            across = float(line.split("V")[0].split(",")[-2].split()[-1])
            assert not any(x <= across <= x + w and y < bottom <= y + h for x, y, w, h in boxes)


def test_rules_are_read_from_graphviz_text():
    assert parse_dot(GRAPH) == [("report", "all"), ("score", "report")]


def test_the_report_shows_the_finding_and_the_false_alarms(tmp_path: Path):
    size = Size(machines=("fan",), seeds=(0,), test=4, train=8, seconds=0.1)
    build_report(made_up_inputs(tmp_path, size, replicates=10), tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<p class="finding">' in page and "scores highest" in page
    scores = pd.read_parquet(tmp_path / "made_up" / "attribute_aware" / "seed_0" / "scores.parquet")
    clips = pd.read_parquet(tmp_path / "made_up" / "clips.parquet")
    normal = scores.merge(clips, on="clip_id").query("condition == 'normal' and domain == 'source'")
    assert f"{normal['decision'].sum()} of {len(normal)}" in page and "16 %" in page
