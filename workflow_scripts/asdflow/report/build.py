"""Builds the report: one self-contained HTML file from results files, readable offline."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import plotly
from markupsafe import Markup

from asdflow.errors import InputError
from asdflow.files import write_text
from asdflow.report.book import environment
from asdflow.report.dataset import read_dataset
from asdflow.report.exports import write_exports
from asdflow.report.inputs import ReportInputs
from asdflow.report.pages import Pages
from asdflow.report.provenance_view import provenance_view

log = logging.getLogger(__name__)
HERE = Path(__file__).parent


def build_report(inputs: ReportInputs, output: Path, exports: Path | None = None) -> None:
    """Write the report of `inputs` to `output`, one HTML file with everything inside.

    With `exports`, tables and figures are also written as files below that folder (`asdflow.report.exports`).
    Files that are named in `inputs` but absent leave a sentence in their place. Same inputs, same bytes.
    Raises InputError if there is no data set or the provenance is not a JSON object.
    """
    if not inputs.datasets:
        raise InputError(
            "The report has no data set to show", remedy="run at least one data set and system first"
        )
    provenance = read_provenance(inputs.provenance)
    pages = Pages(inputs, provenance)
    datasets = [read_dataset(files, inputs) for files in inputs.datasets]
    for dataset in datasets:
        log.info("Report: %s", dataset.files.name)
        pages.add_dataset(dataset)
    if exports is not None:
        write_exports(datasets, exports, inputs.ablations)
    pages.views.append(provenance_view(provenance, inputs.rule_graph, pages.book))
    html = environment().get_template("index.html.j2").render(
        title=provenance.get("title") or "Anomalous sound detection",
        created=str(provenance.get("created") or "")[:16].replace("T", " "),
        groups=_navigation(pages),
        views=pages.views,
        entries={name: Markup(entry) for name, entry in pages.book.entries.items()},
        names=Markup(pages.book.names()),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "templates" / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_source()),
    )  # fmt: skip
    write_text(output, html)
    log.info("Report: %s, %.1f MB", output, len(html.encode()) / 1e6)


def read_provenance(path: Path | None) -> dict[str, Any]:
    """The provenance JSON, `{}` if none is named or it is absent."""
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(
            f"{path} is not JSON: {problem}", remedy="delete it and run the workflow again"
        ) from problem
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object", remedy="delete it and run the workflow again")
    return found


def plotly_source() -> str:
    """plotly.js as the plotly package brings it, fit to stand inside a script element."""
    source = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return re.sub(r"</(script)", r"<\\/\1", source, flags=re.IGNORECASE)


def _navigation(pages: Pages) -> list[dict[str, Any]]:
    """Groups (data sets, then the run) with their links; views with a parent come as its children."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for view in pages.views:
        entries = groups.setdefault(view.group, [])
        link = {"key": view.key, "title": view.title, "children": []}
        if view.parent is None:
            entries.append(link)
            continue
        if not entries or entries[-1]["title"] != view.parent:
            entries.append({"key": None, "title": view.parent, "children": []})
        entries[-1]["children"].append(link)
    return [{"title": title, "entries": entries} for title, entries in groups.items()]
