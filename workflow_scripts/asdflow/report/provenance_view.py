"""The provenance view: where every number of the report comes from and how to make it again."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from asdflow.report import figures
from asdflow.report.book import Book, View, environment
from asdflow.report.pages import duration
from asdflow.report.tables import Table, number, text

KEYS = ("command", "git", "configuration", "seeds", "versions", "hardware", "checksums", "benchmarks")


def provenance_view(provenance: dict[str, Any], rule_graph: Path | None, book: Book) -> View:
    """The view of a provenance record.

    Keys, each of which may be absent: `command` (text), `git` {commit, dirty, branch}, `configuration`, `seeds`,
    `versions` {package: version}, `hardware` {what: value}, `checksums` {file: digest} (nested by data set or not),
    `benchmarks` [{rule, job, seconds, peak_memory_mb}].
    """
    benchmarks = pd.DataFrame(provenance.get("benchmarks") or [])
    graph = None
    if rule_graph is not None and rule_graph.is_file():
        graph = "data:image/svg+xml;base64," + base64.b64encode(rule_graph.read_bytes()).decode("ascii")
    markup = environment().get_template("provenance.html.j2").render(
        command=provenance.get("command"),
        git=provenance.get("git"),
        configuration=_yaml(provenance.get("configuration")),
        seeds=", ".join(map(str, provenance.get("seeds") or [])),
        versions=_pairs("Versions", "Package", "Version", provenance.get("versions")),
        hardware=_pairs("Hardware", "Part", "Found", provenance.get("hardware")),
        checksums=_pairs("Checksums of the data", "File", "SHA-256", provenance.get("checksums")),
        times=_stage_table(benchmarks),
        chart=_chart(benchmarks, book),
        graph=graph,
        absent=[key for key in KEYS if not provenance.get(key)],
    )  # fmt: skip
    return View("provenance", "Provenance", "This run", markup)


def _yaml(value: Any) -> str | None:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else None


def _pairs(caption: str, left: str, right: str, values: Any) -> Table | None:
    flat = _flatten(values or {})
    return Table(caption, [left, right], [[text(k), text(v)] for k, v in flat.items()]) if flat else None


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name} / ") if isinstance(value, dict) else {name: str(value)}
    return flat


def _stage_table(benchmarks: pd.DataFrame) -> Table | None:
    if not len(benchmarks):
        return None
    if "peak_memory_mb" not in benchmarks:
        benchmarks = benchmarks.assign(peak_memory_mb=float("nan"))
    rows = []
    for rule, group in benchmarks.groupby("rule", sort=False):
        seconds = pd.to_numeric(group["seconds"], errors="coerce")
        memory = pd.to_numeric(group["peak_memory_mb"], errors="coerce").max()
        total = text(duration(float(seconds.sum())))
        rows.append(
            [
                text(rule),
                number(len(group), 0),
                total,
                text(duration(float(seconds.max()))),
                number(memory, 0),
            ]
        )
    headers = ["Rule", "Jobs", "Time in all", "Longest job", "Peak memory (MB)"]
    return Table("Time and memory per stage", headers, rows, [1, 2, 3, 4])


def _chart(benchmarks: pd.DataFrame, book: Book) -> str | None:
    if not len(benchmarks):
        return None
    totals = benchmarks.groupby("rule")["seconds"].sum().sort_values(ascending=False)
    rows = [[text(r), number(s, 1)] for r, s in totals.items()]
    alt = "Time per rule: " + ", ".join(f"{r} {duration(float(s))}" for r, s in totals.head(5).items())
    return book.add(
        figures.stage_times(benchmarks), alt, Table("Time per rule", ["Rule", "Seconds"], rows, [1])
    )
