"""The views of the report: gathers tables, figures and sounds of each data set and renders the templates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asdflow.ablations import every_row, system_name
from asdflow.features.embeddings import read_embeddings
from asdflow.report import evidence, figures
from asdflow.report.augmented import augmented_clips
from asdflow.report.book import Book, Choice, Panel, View, environment
from asdflow.report.dataset import Dataset
from asdflow.report.findings import Thresholds, alarm_table, finding, stated_rate
from asdflow.report.inputs import ReportInputs, SystemFiles
from asdflow.report.maps import map_panel
from asdflow.report.media import Gallery
from asdflow.report.published import published_table
from asdflow.report.tables import (
    Cell,
    Table,
    ablation_table,
    agreement_table,
    as_latex,
    as_markdown,
    counted_metrics,
    heat_table,
    machine_scores,
    metric_table,
    number,
    official_table,
    parts_table,
    ranked,
    seed_scores,
    text,
)

log = logging.getLogger(__name__)
UNITS = {
    "loss": "Loss",
    "loss_frame": "Loss, frame part",
    "loss_utterance": "Loss, utterance part",
    "learning_rate": "Learning rate",
    "similarity": "Cosine similarity, student and teacher",
    "clips_per_second": "Clips per second",
    "peak_memory_mb": "Peak memory (MB)",
    "target_variance": "Variance of the targets",
    "prediction_variance": "Variance of the predictions",
}


class Pages:
    """Renders every view of a report and collects its figures."""

    def __init__(self, inputs: ReportInputs, provenance: dict[str, Any]) -> None:
        self.inputs = inputs
        self.provenance = provenance
        self.book = Book()
        self.views: list[View] = []
        self._templates = environment()
        self._panels = 0

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)

    def _panel(self, choices: Sequence[Choice], slots: Mapping[str, str]) -> Panel:
        self._panels += 1
        return Panel(f"p{self._panels}", [c for c in choices if c.options], slots)

    def add_dataset(self, dataset: Dataset) -> None:
        """All views of one data set."""
        name = dataset.files.name
        add = self.views.append
        add(View(dataset.key("overview"), "Overview", name, self._overview(dataset)))
        gallery = self._gallery(dataset)
        for machine in dataset.machines:
            markup = self._machine(dataset, machine, gallery)
            add(View(dataset.key("machine", machine), machine, name, markup, parent="Machines"))
        add(View(dataset.key("representation"), "Representation", name, self._representation(dataset)))
        add(View(dataset.key("training"), "Training", name, self._training(dataset)))
        add(View(dataset.key("systems"), "Systems and parts", name, self._ablation(dataset)))

    def _overview(self, dataset: Dataset) -> str:
        values: dict[str, Any] = {
            "dataset": dataset,
            "main": None,
            "dots": None,
            "heat": None,
            "finding": "",
            "published": None,
            "latex": "",
            "markdown": "",
        }
        if dataset.official is not None and dataset.official["n"].any():
            featured = dataset.featured.name if dataset.featured else None
            main = official_table(dataset.official, dataset.significance, dataset.baseline, featured)
            seeds = (
                seed_scores(dataset.metrics)
                if dataset.metrics is not None
                else pd.DataFrame({"system": [], "score": []})
            )
            alt = "Official score per system: " + ", ".join(
                f"{r['system']} {r['mean']:.2f}" for r in ranked(dataset.official) if r["n"]
            )
            values["dots"] = self.book.add(
                figures.official_scores(dataset.official, seeds, dataset.significance), alt
            )
            values |= {"main": main, "latex": as_latex(main), "markdown": as_markdown(main)}
            values["finding"] = finding(dataset.official, dataset.significance, dataset.baseline)
        if dataset.metrics is not None:
            links = {m: "#" + dataset.key("machine", m) for m in dataset.machines}
            scores = machine_scores(dataset.metrics)
            if len(scores):
                values["heat"] = heat_table(
                    scores, dataset.systems or sorted(scores["system"].unique()), links
                )
        values |= self._alarms(dataset)
        values["published"], values["published_note"] = published_table(
            dataset.files.published_set, dataset.machines
        )
        values["facts"] = self._facts(dataset)
        parts = system_parts(self.provenance, dataset.systems)
        values["titles"] = {name: part["title"] for name, part in parts.items() if part.get("title")}
        values["upper_bounds"] = [name for name, part in parts.items() if _knows_hidden_attributes(part)]
        values["id"] = f"d{len(self.views)}"
        compared = [] if dataset.significance is None else list(dataset.significance["system"])
        values["baseline_known"] = dataset.baseline in compared
        return self._render("overview.html.j2", **values)

    @staticmethod
    def _alarms(dataset: Dataset) -> dict[str, Any]:
        """The false alarms of the featured system's first seed, and which seed that is."""
        run = evidence.first_run(dataset.featured) if dataset.featured else None
        scores = dataset.scores.get(dataset.featured.name, {}) if dataset.featured else {}
        if run is None or run.seed not in scores or not dataset.featured:
            return {"alarms": None}
        thresholds = dataset.thresholds[dataset.featured.name][run.seed]
        return {"alarms": alarm_table(scores[run.seed], thresholds), "seed": run.seed}

    def _facts(self, dataset: Dataset) -> list[tuple[str, str]]:
        """Small facts under the title: how much of what was run, when, for how long."""
        facts = [("Systems", str(len(dataset.systems))), ("Machines", str(len(dataset.machines)))]
        if dataset.clips is not None:
            counts = dataset.clips["split"].value_counts()
            facts += [
                (f"{split.capitalize()} clips", f"{counts[split]:,}")
                for split in ("train", "test")
                if split in counts
            ]
        seeds = max((len(s.runs) for s in dataset.files.systems), default=0)
        facts.append(("Seeds", str(seeds)))
        if self.provenance.get("created"):
            facts.append(("Run", str(self.provenance["created"])[:16].replace("T", " ")))
        seconds = sum(float(b.get("seconds") or 0) for b in self.provenance.get("benchmarks", []))
        if seconds:
            facts.append(("Time of all stages", duration(seconds)))
        return facts

    def _gallery(self, dataset: Dataset) -> Gallery | None:
        if dataset.clips is None:
            return None
        budget = self.inputs.media_megabytes * 1e6 / max(len(self.inputs.datasets), 1)
        return Gallery(dataset.clips, dataset.files.features, budget)

    def _machine(self, dataset: Dataset, machine: str, gallery: Gallery | None) -> str:
        values: dict[str, Any] = {
            "dataset": dataset,
            "machine": machine,
            "metrics": None,
            "roc": None,
            "panel": None,
            "examples": [],
        }
        if dataset.metrics is not None and counted_metrics(dataset.metrics):
            values["metrics"] = metric_table(dataset.metrics, machine, dataset.systems)
        mine = dataset.runs_of(machine)
        if mine and dataset.clips is not None:
            values["roc"] = self._roc(dataset, machine, mine)
            values["panel"] = self._score_panel(dataset, mine)
        run = evidence.first_run(dataset.featured) if dataset.featured else None
        featured = dataset.featured.name if dataset.featured else ""
        if gallery is not None and run is not None and run.seed in mine.get(featured, {}):
            there = run.embeddings is not None and run.embeddings.is_file()
            embedded = read_embeddings(run.embeddings) if there and run.embeddings else None
            mistakes = 2 if len(dataset.machines) <= 8 else 1
            metric = evidence.read_metric(run.detector)
            values["examples"] = gallery.examples(mine[featured][run.seed], embedded, mistakes, metric)
            values |= {"seed": run.seed, "distance": metric}
        return self._render("machine.html.j2", **values)

    def _roc(self, dataset: Dataset, machine: str, scores: dict[str, dict[int, pd.DataFrame]]) -> str | None:
        panels = evidence.roc_panels(dataset.test_clips(machine))
        curves = evidence.roc_curves({s: list(runs.values()) for s, runs in scores.items()}, panels)
        if not len(curves):
            return None
        rows = []
        for (system, panel), curve in curves.groupby(["system", "panel"], sort=False):
            area = float(np.trapezoid(curve["tpr"], curve["fpr"]))
            at = float(np.interp(0.1, curve["fpr"], curve["tpr"]))
            rows.append([text(system), text(panel), number(area, 3), number(at, 3)])
        table = Table(
            "Mean ROC over the seeds", ["System", "Clips", "Area", "True-positive rate at 0.1"], rows, [2, 3]
        )
        featured = dataset.featured.name if dataset.featured else None
        alt = f"ROC curves of {machine} for {len(scores)} systems; the area up to a false-positive rate of 0.1 is shaded for {featured}"
        return self.book.add(figures.roc(curves, list(panels), featured), alt, table)

    def _score_panel(self, dataset: Dataset, scores: dict[str, dict[int, pd.DataFrame]]) -> Panel:
        systems = sorted(
            scores,
            key=lambda s: (dataset.featured is None or s != dataset.featured.name, dataset.systems.index(s)),
        )
        seeds = sorted({n for runs in scores.values() for n in runs})
        panel = self._panel(
            [Choice("System", systems), Choice("Seed", [str(n) for n in seeds])],
            {"histogram": "Anomaly scores", "confusion": "Decisions", "attributes": "By attribute"},
        )
        for i, system in enumerate(systems):
            for j, seed in enumerate(seeds):
                if seed in scores[system]:
                    thresholds = dataset.thresholds[system].get(seed, {})
                    self._score_slots(
                        f"{i}-{j}", panel, scores[system][seed], f"{system}, seed {seed}", thresholds
                    )
        return panel

    def _score_slots(
        self, place: str, panel: Panel, scores: pd.DataFrame, who: str, thresholds: Thresholds
    ) -> None:
        known = scores[scores["condition"].isin(["normal", "anomaly"])]
        if len(known):
            medians = known.groupby("condition")["anomaly_score"].median()
            said = ", ".join(f"{c} {v:.3g}" for c, v in medians.items())
            figure = figures.score_histogram(known, evidence.threshold(scores, thresholds))
            self.book.add(figure, f"Histograms of anomaly scores of {who}; medians: {said}", evidence.histogram_table(known),
                          f"{panel.id}/histogram/{place}")  # fmt: skip
        stated = stated_rate(thresholds, str(scores["machine"].iloc[0]))
        for slot, table, otherwise in (
            ("confusion", evidence.confusion_table(scores, stated), "There are no decisions, or no known conditions."),
            ("attributes", evidence.attribute_table(scores), "The attributes of these test clips are hidden or not known."),
        ):  # fmt: skip
            if table is not None:
                self.book.add(None, table.caption, table, f"{panel.id}/{slot}/{place}")
            else:
                self.book.absent(otherwise, f"{panel.id}/{slot}/{place}")

    def _representation(self, dataset: Dataset) -> str:
        clustering = {
            s.name: evidence.cluster_groups(s.clusters)
            for s in dataset.files.systems
            if s.clusters and s.clusters.is_file()
        }
        clustering = {name: groups for name, groups in clustering.items() if groups}
        labelled = self._labelled(dataset, clustering)
        labels = (
            evidence.read_labels(labelled.labels, dataset.files.name)
            if labelled and labelled.labels
            else None
        )
        return self._render(
            "representation.html.j2",
            dataset=dataset,
            maps=map_panel(dataset, labels, self.book, self._panel, self.inputs.seed)
            if dataset.clips is not None
            else None,
            agreement=agreement_table(dataset.metrics) if dataset.metrics is not None else None,
            clusters=self._clusters(clustering),
            labels=_label_table(labels) if labels is not None else None,
            labelled=labelled.name if labelled else "",
        )

    @staticmethod
    def _labelled(dataset: Dataset, clustering: Mapping[str, Any]) -> SystemFiles | None:
        """The system whose labels are shown: one with clusters before others, the featured one before others."""
        known = [s for s in dataset.files.systems if s.labels and s.labels.is_file()]
        featured = dataset.featured.name if dataset.featured else None
        known.sort(key=lambda s: (s.name not in clustering, s.name != featured))
        return known[0] if known else None

    def _clusters(self, clustering: Mapping[str, Mapping[str, dict[str, Any]]]) -> Panel | None:
        groups = {
            (f"{system}: " if len(clustering) > 1 else "") + name.replace("|", ", "): parts
            for system, found in clustering.items()
            for name, parts in found.items()
        }
        if not groups:
            return None
        slots = {"tree": "Dendrogram", "sizes": "Cluster sizes", "silhouette": "Silhouette"}
        panel = self._panel([Choice("Clustered group", list(groups))], slots)
        for index, (name, parts) in enumerate(groups.items()):
            self._cluster_slots(f"{panel.id}/{{}}/{index}", name, parts)
        return panel

    def _cluster_slots(self, place: str, name: str, parts: dict[str, Any]) -> None:
        labels, counts = np.unique(parts["labels"], return_counts=True)
        sizes = pd.DataFrame({"cluster": labels, "clips": counts})
        rows = [[text(c), number(n, 0)] for c, n in zip(labels, counts, strict=True)]
        if len(parts["linkage"]):
            cut = evidence.cut_height(parts)
            figure = figures.dendrogram(parts["linkage"], cut)
            table = Table(
                f"Merges of {name} nearest to the cut",
                ["Merge", "Distance"],
                _merges(parts["linkage"], cut),
                [0, 1],
            )
            alt = f"Dendrogram of {name}: {len(parts['linkage']) + 1} clips, cut at {cut:.3g} into {len(labels)} clusters"
            self.book.add(figure, alt, table, place.format("tree"))
        alt = f"Sizes of the {len(labels)} clusters of {name}: {', '.join(map(str, counts))}"
        self.book.add(
            figures.cluster_sizes(sizes),
            alt,
            Table(f"Clusters of {name}", ["Cluster", "Clips"], rows, [1]),
            place.format("sizes"),
        )
        curve = np.asarray(parts.get("silhouette", np.zeros((0, 2))))
        if len(curve):
            rows = [[number(k, 0), number(v, 3)] for k, v in curve]
            table = Table(f"Silhouette of {name}", ["Clusters", "Silhouette"], rows, [0, 1])
            alt = f"Silhouette of {name} against the number of clusters, {len(labels)} chosen"
            self.book.add(figures.silhouette(curve, len(labels)), alt, table, place.format("silhouette"))

    def _training(self, dataset: Dataset) -> str:
        encoders = {n: [(n, p)] for n, p in self.inputs.encoder_histories.items()}
        used = {s.encoder for s in dataset.files.systems if s.encoder}
        encoders = {n: p for n, p in encoders.items() if not used or n in used}
        runs: dict[str, list[tuple[str, Path]]] = {}
        shown: set[Path] = set()
        for system in dataset.files.systems:  # what several systems share is shown once
            own = {r.history: f"seed {r.seed}" for r in system.runs if r.history and r.history not in shown}
            shown |= own.keys()
            runs[system.name] = [(run, path) for path, run in own.items()]
        groups = [
            ("Pre-training", self._histories("Encoder", encoders)),
            ("Fine-tuning", self._histories("System", runs)),
        ]
        return self._render("training.html.j2", dataset=dataset, groups=groups)

    def _histories(self, label: str, sources: Mapping[str, Sequence[tuple[str, Path]]]) -> Panel | None:
        """A panel of what left a history: one figure a metric, a line a run."""
        found = {
            name: [evidence.read_history(p, run) for run, p in files if p.is_file()]
            for name, files in sources.items()
        }
        tables = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items() if parts}
        tables = {name: table for name, table in tables.items() if len(table)}
        if not tables:
            return None
        metrics = list(dict.fromkeys(str(m) for table in tables.values() for m in table["metric"]))
        panel = self._panel([Choice(label, list(tables))], {f"m{i}": _unit(m) for i, m in enumerate(metrics)})
        for place, (name, table) in enumerate(tables.items()):
            for index, metric in enumerate(metrics):
                part = table[table["metric"] == metric]
                if len(part):
                    self._history_slot(f"{panel.id}/m{index}/{place}", name, metric, part)
        return panel

    def _history_slot(self, place: str, name: str, metric: str, part: pd.DataFrame) -> None:
        last = part.sort_values("step").groupby("run", sort=False).tail(1)
        rows = [[text(r.run), number(r.step, 0), text(f"{r.value:.5g}")] for r in last.itertuples()]  # type: ignore[arg-type]
        table = Table(f"{_unit(metric)} at the last step", ["Run", "Step", _unit(metric)], rows, [1, 2])
        alt = f"{_unit(metric)} of {name} over the steps, {len(last)} runs; at the end {', '.join(c[2].text for c in rows)}"
        self.book.add(figures.history(part, metric), alt, table, place)

    def _ablation(self, dataset: Dataset) -> str:
        parts = system_parts(self.provenance, dataset.systems)
        in_tables = {
            system_name(name, row)
            for name, ablation in self.inputs.ablations.items()
            for row in every_row(ablation)
        }
        own = {system: entry for system, entry in parts.items() if system not in in_tables}
        table, shared = None, ""
        if own and dataset.official is not None:
            table, shared = parts_table(own, dataset.official, dataset.baseline)
        made = (
            ablation_table(name, rows, dataset.official)
            for name, rows in self.inputs.ablations.items()
            if dataset.official is not None
        )
        tables = [(found, as_latex(found), as_markdown(found)) for found in made if found is not None]
        augmented = (
            []
            if dataset.clips is None
            else augmented_clips(dataset.files, dataset.clips, parts, self.inputs.seed)
        )
        return self._render(
            "ablation.html.j2",
            dataset=dataset,
            table=table,
            shared=shared,
            ablations=tables,
            augmented=augmented,
        )


def _unit(metric: str) -> str:
    return UNITS.get(metric, metric.replace("_", " ").capitalize())


def system_parts(provenance: Mapping[str, Any], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """System -> its parts, from the record's `systems` or the configuration's; `{}` where neither tells."""
    for known in (provenance.get("systems"), (provenance.get("configuration") or {}).get("systems")):
        if isinstance(known, dict):
            return {name: known[name] for name in systems if isinstance(known.get(name), dict)}
    return {}


def _knows_hidden_attributes(part: Mapping[str, Any]) -> bool:
    labels = part.get("labels")
    return isinstance(labels, Mapping) and labels.get("kind") == "hidden_attributes"


def _merges(linkage: np.ndarray, cut: float) -> list[list[Cell]]:
    """The three merges below the cut and the three above it."""
    heights = linkage[:, 2]
    middle = int(np.searchsorted(heights, cut))
    near = range(max(0, middle - 3), min(len(heights), middle + 3))
    return [[number(i + 1, 0), number(heights[i], 4)] for i in near]


def _label_table(labels: pd.DataFrame) -> Table:
    """Where the classes of each machine come from and how many there are."""
    rows = []
    for (machine, origin), group in labels.groupby(["machine", "origin"]):
        rows.append([text(machine), text(origin), number(group["label"].nunique(), 0), number(len(group), 0)])
    return Table("Classes per machine", ["Machine", "Origin", "Classes", "Clips"], rows, [2, 3])


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
