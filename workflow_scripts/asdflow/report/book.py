"""What views are made of: the figures of a page by id, panels with selects, and the templates' environment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup, escape

from asdflow.report.tables import Table


@dataclass(frozen=True)
class View:
    """One view of the page: its address after '#', what the navigation calls it, its markup."""

    key: str
    title: str
    group: str
    markup: str
    parent: str | None = None


@dataclass
class Book:
    """The figures of the page by id, kept as JSON until a view shows them."""

    entries: dict[str, str] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    def add(
        self, figure: go.Figure | None, alt: str, table: Table | None = None, name: str | None = None
    ) -> str:
        """Keep a figure (or only a table) and return its id; `alt` says in words what is to be seen."""
        identity = name or f"f{len(self.entries)}"
        entry: dict[str, Any] = {"alt": alt, "table": table.as_json() if table else None}
        if figure is not None:
            picture = json.loads(figure.to_json(validate=False))
            picture["layout"].pop("template", None)
            entry["figure"] = picture
        self.entries[identity] = embed_json(entry)
        return identity

    def name_number(self, name: str) -> int:
        """The number under which the page keeps a name that figures show on hovering; each is kept once."""
        return self._names.setdefault(name, len(self._names))

    def names(self) -> str:
        """The kept names in order, for the page."""
        return embed_json(list(self._names))

    def same(self, name: str, as_entry: str) -> None:
        """Let `name` show what `as_entry` shows, kept once."""
        self.entries[name] = embed_json({"same": as_entry})

    def absent(self, sentence: str, name: str) -> None:
        """Keep a sentence in the place of a figure or table that there is not."""
        self.entries[name] = embed_json({"absent": sentence})


def embed_json(value: Any) -> str:
    """JSON that can stand inside a script element: no '<', and no line separators that JavaScript dislikes."""
    dumped = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@dataclass(frozen=True)
class Choice:
    """A select of a panel: its label and its options."""

    label: str
    options: Sequence[str]


@dataclass(frozen=True)
class Panel:
    """Selects above slots; slot `s` shows entry '<id>/<s>/<i>-<j>' for the chosen options i, j."""

    id: str
    choices: Sequence[Choice]
    slots: Mapping[str, str]


def environment() -> jinja2.Environment:
    """Templates with everything escaped unless it is our own markup."""
    folder = Path(__file__).parent / "templates"
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    made.filters["breakable"] = lambda name: Markup(str(escape(name)).replace("_", "_<wbr>"))
    return made
