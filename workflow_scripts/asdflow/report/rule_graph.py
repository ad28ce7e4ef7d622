"""The graph of rules as a picture: Snakemake's own text of it, thinned to what is not implied, laid out in layers, drawn as SVG."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 138, 32, 28, 30, 12
BEND_WIDTH = 14
SWEEPS = 12
TARGET = "all"

Edges = list[tuple[str, str]]


class Bend(NamedTuple):
    """Where an edge that spans several layers passes one of them."""

    start: str
    end: str
    layer: int


Node = str | Bend


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


def reduced(edges: Edges) -> Edges:
    """Without edges that a longer way implies (transitive reduction), and without the target rule `all`."""
    after: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        if TARGET not in (a, b):
            after[a].add(b)

    def beyond(rule: str, seen: set[str]) -> set[str]:
        for later in after[rule] - seen:
            seen.add(later)
            beyond(later, seen)
        return seen

    kept = []
    for a in sorted(after):
        implied: set[str] = set().union(*(beyond(b, set()) for b in list(after[a])), set())
        kept += [(a, b) for b in sorted(after[a] - implied)]
    return kept


STYLE = """<style>
.box { fill: #e7f0f6; stroke: #0b5c8f } .name { fill: #1c1f23 }
.edge { fill: none; stroke: #7c8794; stroke-width: 1.3 } .tip { fill: #7c8794 }
@media (prefers-color-scheme: dark) {
.box { fill: #1d2f3c; stroke: #7cc0ea } .name { fill: #e8eaed } .edge { stroke: #a3abb6 } .tip { fill: #a3abb6 }
}</style>"""


def draw(edges: Edges) -> str:
    """SVG of the reduced graph, first rules at the top; colours follow the reader's light or dark preference."""
    edges = reduced(edges)
    depth = _depths(edges)
    chains = [_chain(a, b, depth) for a, b in edges]
    layers: list[list[Node]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for rule in sorted(depth):
        layers[depth[rule]].append(rule)
    for bend in (node for chain in chains for node in chain if isinstance(node, Bend)):
        layers[bend.layer].append(bend)
    x = _columns(layers, [link for chain in chains for link in pairwise(chain)])
    left = min(x[node] - _width(node) / 2 for node in x) - MARGIN
    width = max(x[node] + _width(node) / 2 for node in x) - left + MARGIN
    height = len(layers) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    place = {
        node: (x[node] - left, float(MARGIN + y * (BOX_HEIGHT + GAP_Y)))
        for y, layer in enumerate(layers)
        for node in layer
    }
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="Graph of the rules" font-family="system-ui, sans-serif" font-size="13">'
    )
    lines = [_line([place[node] for node in chain]) for chain in chains]
    return "\n".join([head, STYLE, *lines, *(_box(rule, *place[rule]) for rule in depth), "</svg>"])


def _depths(edges: Edges) -> dict[str, int]:
    """Rule -> its layer, one below everything it waits for."""
    before: dict[str, set[str]] = defaultdict(set)
    for a, b in edges:
        before[b].add(a)
        before.setdefault(a, set())
    depth: dict[str, int] = {}
    while len(depth) < len(before):
        for name in sorted(name for name in before if name not in depth and before[name] <= depth.keys()):
            depth[name] = 1 + max((depth[other] for other in before[name]), default=-1)
    after: dict[str, list[str]] = defaultdict(list)
    for a, b in edges:
        after[a].append(b)
    for name in sorted(depth, key=lambda name: -depth[name]):
        if not before[name] and after[name]:  # a first rule stands right above the one it feeds
            depth[name] = min(depth[later] for later in after[name]) - 1
    return depth


def _chain(start: str, end: str, depth: Mapping[str, int]) -> list[Node]:
    """An edge as the nodes it passes, one a layer."""
    return [start, *(Bend(start, end, layer) for layer in range(depth[start] + 1, depth[end])), end]


def _width(node: Node) -> int:
    return BOX_WIDTH if isinstance(node, str) else BEND_WIDTH


def _columns(layers: list[list[Node]], links: list[tuple[Node, Node]]) -> dict[Node, float]:
    """Centre of every node: sweeps up and down pull each towards its neighbours, as far as the layer has room."""
    neighbours: dict[Node, tuple[list[Node], list[Node]]] = defaultdict(lambda: ([], []))
    for a, b in links:
        neighbours[b][0].append(a)
        neighbours[a][1].append(b)
    x: dict[Node, float] = {node: float(i) for layer in layers for i, node in enumerate(layer)}
    for sweep in range(SWEEPS):
        side = sweep % 2
        for layer in layers if side == 0 else layers[::-1]:
            wanted = {node: _mean([x[other] for other in neighbours[node][side]], x[node]) for node in layer}
            _spread(sorted(layer, key=lambda node: (wanted[node], str(node))), wanted, x)
    return x


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _spread(order: list[Node], wanted: Mapping[Node, float], x: dict[Node, float]) -> None:
    """Put a layer's nodes side by side in this order, on the average where they want to be."""
    edge = 0.0
    placed: dict[Node, float] = {}
    for node in order:
        placed[node] = max(wanted[node], edge + _width(node) / 2) if placed else wanted[node]
        edge = placed[node] + _width(node) / 2 + GAP_X
    shift = _mean([wanted[node] - placed[node] for node in order], 0.0)
    x.update({node: value + shift for node, value in placed.items()})


def _line(points: list[tuple[float, float]]) -> str:
    """A smooth line from the bottom of the first box over the bends to the top of the last, with a tip."""
    (x, y), path = points[0], []
    y += BOX_HEIGHT
    path.append(f"M{x:.0f},{y:.0f}")
    for next_x, next_y in points[1:]:
        half = (next_y - y) / 2
        path.append(f"C{x:.0f},{y + half:.0f} {next_x:.0f},{next_y - half:.0f} {next_x:.0f},{next_y:.0f}")
        if (next_x, next_y) != points[-1]:
            path.append(f"V{next_y + BOX_HEIGHT:.0f}")
        x, y = next_x, next_y + BOX_HEIGHT
    end_x, end_y = points[-1]
    return (
        f'<path class="edge" d="{" ".join(path)}"/>'
        f'<path class="tip" d="M{end_x - 4:.0f},{end_y - 7:.0f} h8 l-4,7 z"/>'
    )


def _box(name: str, centre: float, y: float) -> str:
    return (
        f'<rect class="box" x="{centre - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        f'<text class="name" x="{centre:.0f}" y="{y + 21:.0f}" text-anchor="middle">{escape(name)}</text>'
    )
