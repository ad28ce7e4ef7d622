"""Tables and figures of a report as files: CSV, Markdown, LaTeX and SVG, for papers and for Snakemake's own report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from asdflow.files import write_text
from asdflow.report import evidence, figures
from asdflow.report.dataset import Dataset
from asdflow.report.svg import draw_svg
from asdflow.report.tables import (
    Table,
    ablation_table,
    as_csv,
    as_latex,
    as_markdown,
    counted_metrics,
    heat_table,
    machine_scores,
    metric_table,
    official_table,
    seed_scores,
)

FOLDERS = ("overview", "tables", "roc", "scores", "clusters", "training")


def write_exports(
    datasets: list[Dataset], folder: Path, ablations: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write `folder`/{overview,tables,roc,scores,clusters,training}/<dataset>/<name>.{svg,csv,md,tex}.

    Names are percent-encoded where a file system would stumble. Every folder is made, also where it stays empty.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        _overview(dataset, folder)
        _ablations(dataset, folder, ablations or {})
        for machine in dataset.machines:
            _machine(dataset, machine, folder)
        _clusters(dataset, folder)
        _training(dataset, folder)


def _place(folder: Path, kind: str, dataset: Dataset, name: str) -> Path:
    return folder / kind / quote(dataset.files.name, safe="") / quote(name, safe=" ,=")


def _save(path: Path, figure: go.Figure) -> None:
    write_text(path.with_name(path.name + ".svg"), draw_svg(figure))


def _save_table(path: Path, table: Table) -> None:
    for ending, written in ((".csv", as_csv), (".md", as_markdown), (".tex", as_latex)):
        write_text(path.with_name(path.name + ending), written(table))


def _overview(dataset: Dataset, folder: Path) -> None:
    if dataset.official is not None and dataset.official["n"].any():
        featured = dataset.featured.name if dataset.featured else None
        table = official_table(dataset.official, dataset.significance, dataset.baseline, featured)
        _save_table(_place(folder, "tables", dataset, "official scores"), table)
        seeds = (
            seed_scores(dataset.metrics)
            if dataset.metrics is not None
            else pd.DataFrame({"system": [], "score": []})
        )
        figure = figures.official_scores(dataset.official, seeds, dataset.significance)
        _save(_place(folder, "overview", dataset, "official scores"), figure)
    if dataset.metrics is not None and counted_metrics(dataset.metrics):
        scores = machine_scores(dataset.metrics)
        systems = dataset.systems or sorted(scores["system"].unique())
        _save_table(_place(folder, "tables", dataset, "machines"), heat_table(scores, systems, {}))
        _save(
            _place(folder, "overview", dataset, "machines and systems"),
            figures.score_heat_map(scores, systems),
        )


def _ablations(dataset: Dataset, folder: Path, ablations: Mapping[str, Mapping[str, Any]]) -> None:
    for name, rows in ablations.items():
        table = None if dataset.official is None else ablation_table(name, rows, dataset.official)
        if table is not None:
            _save_table(_place(folder, "tables", dataset, f"ablation {name}"), table)


def _machine(dataset: Dataset, machine: str, folder: Path) -> None:
    if dataset.metrics is not None and counted_metrics(dataset.metrics):
        _save_table(
            _place(folder, "tables", dataset, f"metrics of {machine}"),
            metric_table(dataset.metrics, machine, dataset.systems),
        )
    runs = dataset.runs_of(machine)
    if not runs or dataset.clips is None:
        return
    featured = dataset.featured.name if dataset.featured else None
    panels = evidence.roc_panels(dataset.test_clips(machine))
    curves = evidence.roc_curves({s: list(of.values()) for s, of in runs.items()}, panels)
    if len(curves):
        _save(_place(folder, "roc", dataset, machine), figures.roc(curves, list(panels), featured))
    if featured in runs:
        first = runs[featured][min(runs[featured])]
        known = first[first["condition"].isin(["normal", "anomaly"])]
        if len(known):
            _save(
                _place(folder, "scores", dataset, machine),
                figures.score_histogram(
                    known, evidence.threshold(first, dataset.thresholds[featured][min(runs[featured])])
                ),
            )


def _clusters(dataset: Dataset, folder: Path) -> None:
    for system in dataset.files.systems:
        groups = (
            evidence.cluster_groups(system.clusters) if system.clusters and system.clusters.is_file() else {}
        )
        for name, parts in groups.items():
            place = f"{system.name}, {name.replace('|', ', ')}"
            if len(parts["linkage"]):
                tree = figures.dendrogram(parts["linkage"], evidence.cut_height(parts))
                _save(_place(folder, "clusters", dataset, f"{place}, dendrogram"), tree)
            curve = np.asarray(parts.get("silhouette", np.zeros((0, 2))))
            if len(curve):
                chosen = len(np.unique(parts["labels"]))
                _save(
                    _place(folder, "clusters", dataset, f"{place}, silhouette"),
                    figures.silhouette(curve, chosen),
                )


def _training(dataset: Dataset, folder: Path) -> None:
    for system in dataset.files.systems:
        tables = [
            evidence.read_history(r.history, f"seed {r.seed}")
            for r in system.runs
            if r.history and r.history.is_file()
        ]
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"metric": []})
        for metric, part in table.groupby("metric", sort=False):
            figure = figures.history(part, str(metric))
            _save(
                _place(folder, "training", dataset, f"{system.name}, {str(metric).replace('_', ' ')}"), figure
            )
