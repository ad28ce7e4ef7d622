"""The graph of rules as a picture: Snakemake's own text of it, laid out in layers and drawn as SVG."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 132, 30, 26, 34, 12

Edges = list[tuple[str, str]]


def rule_edges(root: Path, configfiles: Iterable[Path]) -> Edges:
    """Ask Snakemake which rule feeds which: pairs (earlier, later). Empty where Snakemake is not installed."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--rulegraph",
        "dot",
        "--nolock",
        "--forceall",
        "--cores",
        "1",
    ]
    command += ["--snakefile", str(root / "Snakefile"), "--directory", str(Path.cwd())]
    command += ["--configfile", *map(str, configfiles)]
    done = subprocess.run(command, capture_output=True, text=True)
    return parse_dot(done.stdout) if done.returncode == 0 else []


def parse_dot(text: str) -> Edges:
    """Edges between named rules from Graphviz text."""
    names = dict(re.findall(r'^\s*(\d+)\[label = "([^"\\]+)', text, flags=re.M))
    return sorted({(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", text, flags=re.M)})


def draw(edges: Edges) -> str:
    """SVG of the graph, first rules at the top; colours follow the reader's light or dark preference."""
    rows = _rows(edges)
    width = max(len(row) for row in rows) * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    place = {}
    for y, row in enumerate(rows):
        left = (width - len(row) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for x, name in enumerate(row):
            place[name] = (left + x * (BOX_WIDTH + GAP_X), MARGIN + y * (BOX_HEIGHT + GAP_Y))
    lines = [_line(place[a], place[b]) for a, b in edges]
    boxes = [_box(name, *place[name]) for row in rows for name in row]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="Graph of the rules" font-family="system-ui, sans-serif" font-size="13">',
            "<style>.box{fill:#f4f1ea;stroke:#8a8375}.name{fill:#23211d}.edge{fill:none;stroke:#8a8375;stroke-width:1.2}"
            "@media (prefers-color-scheme:dark){.box{fill:#2b2a27;stroke:#9b9485}.name{fill:#f0ede6}.edge{stroke:#9b9485}}</style>",
            *lines,
            *boxes,
            "</svg>",
        ]
    )


def _rows(edges: Edges) -> list[list[str]]:
    """Rules in layers (one below everything they wait for), each layer ordered by where its inputs stand."""
    before: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        before[b].add(a)
        before.setdefault(a, set())
    depth: dict[str, int] = {}
    while len(depth) < len(before):
        ready = [name for name in before if name not in depth and before[name] <= depth.keys()]
        for name in sorted(ready):
            depth[name] = 1 + max((depth[other] for other in before[name]), default=-1)
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    position: dict[str, float] = {}
    for level, row in enumerate(rows):
        members = [name for name, value in depth.items() if value == level]
        centre = {
            n: sum(position[o] for o in before[n]) / len(before[n]) if before[n] else 0.0 for n in members
        }
        row.extend(sorted(members, key=lambda name: (centre[name], name)))
        position.update({name: index - (len(row) - 1) / 2 for index, name in enumerate(row)})
    return rows


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + BOX_WIDTH / 2, start[1] + BOX_HEIGHT
    x2, y2 = end[0] + BOX_WIDTH / 2, end[1]
    bend = (y2 - y1) / 2
    return f'<path class="edge" d="M{x1:.0f},{y1:.0f} C{x1:.0f},{y1 + bend:.0f} {x2:.0f},{y2 - bend:.0f} {x2:.0f},{y2:.0f}"/>'


def _box(name: str, x: float, y: float) -> str:
    return (
        f'<rect class="box" x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + BOX_WIDTH / 2:.0f}" y="{y + 20:.0f}" text-anchor="middle">{escape(name)}</text>'
    )
