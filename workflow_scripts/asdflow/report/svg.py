"""Draws the report's figures as SVG files for papers, without a browser: lines, points, bars, histograms, heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

INK, GRID, LINE = "#1c1f23", "#e8eaed", "#8a919b"
FONT = 'font-family="Helvetica, Arial, sans-serif"'
DASH = {"dot": "2 3", "dash": "6 4", "dashdot": "6 3 2 3", "solid": ""}
LETTER = 6.3  # mean width of a letter at 12 pixels


@dataclass
class Axis:
    """Maps values to pixels; `categories` empty for numbers."""

    start: float
    end: float
    low: float = 0.0
    high: float = 1.0
    logarithmic: bool = False
    categories: list[str] = field(default_factory=list)
    step: float | None = None

    @property
    def tilted(self) -> bool:
        """Whether the categories are too long to stand side by side."""
        room = abs(self.end - self.start) / max(len(self.categories), 1)
        return any(LETTER * len(name) > room for name in self.categories)

    def at(self, values: Any) -> np.ndarray:
        """Pixels of numbers or of category names."""
        if self.categories:
            place = {name: index for index, name in enumerate(self.categories)}
            numbers = np.array([place[str(v)] for v in values], dtype=float)
        else:
            numbers = np.array([np.nan if v is None else float(v) for v in values])
            numbers = np.log10(numbers) if self.logarithmic else numbers
        return np.asarray(
            self.start + (numbers - self.low) / (self.high - self.low) * (self.end - self.start)
        )

    def ticks(self) -> list[tuple[float, str]]:
        """(pixel, label) of round numbers, powers of ten or the categories."""
        if self.categories:
            return list(zip(self.at(self.categories).tolist(), self.categories, strict=True))
        if self.logarithmic:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            return [(float(self.at([10.0**p])[0]), f"{10.0**p:g}") for p in powers]
        step = self.step or _round_step((self.high - self.low) / 6)
        values = np.arange(math.ceil(self.low / step), math.floor(self.high / step) + 1) * step
        return [(float(pixel), f"{value:.6g}") for pixel, value in zip(self.at(values), values, strict=True)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((m * power for m in (1, 2, 5) if m * power >= rough * 0.999), 10 * power)


def draw_svg(figure: go.Figure, width: int = 640) -> str:
    """The figure as an SVG document. Knows the traces that `asdflow.report.figures` makes.

    Names are taken as `figures.plain` left them, escaped.
    """
    layout = figure.layout
    height = float(layout.height)
    traces = [_as_bars(t) if t.type == "histogram" else t for t in figure.data]
    legend, legend_height = _legend(traces, bool(layout.showlegend), width)
    suffixes = sorted({(t.xaxis or "x")[1:] + "|" + (t.yaxis or "y")[1:] for t in traces})
    parts = [legend]
    for index, suffix in enumerate(suffixes):
        xs, ys = suffix.split("|")
        own = [t for t in traces if (t.xaxis or "x") == "x" + xs and (t.yaxis or "y") == "y" + ys]
        parts.append(_panel(own, layout, xs, ys, width, height, legend_height, index == len(suffixes) - 1))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" '
        f'{FONT} font-size="12" fill="{INK}">\n<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _as_bars(trace: Any) -> go.Bar:
    """A histogram counted into its bins."""
    size = trace.xbins.size
    edges = np.arange(trace.xbins.start, trace.xbins.end + size, size)
    counts, edges = np.histogram(np.asarray(trace.x, dtype=float), edges)
    return go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=size * 0.96, marker={"color": trace.marker.color}, opacity=trace.opacity,
                  name=trace.name, showlegend=trace.showlegend, xaxis=trace.xaxis, yaxis=trace.yaxis)  # fmt: skip


def _panel(
    traces: Sequence[Any],
    layout: Any,
    xs: str,
    ys: str,
    width: float,
    height: float,
    top: float,
    shapes: bool,
) -> str:
    xaxis, yaxis = layout["xaxis" + xs], layout["yaxis" + ys]
    labels = [str(v) for t in traces for v in t.y] if _is_category(yaxis, traces, "y") else ["0.000"]
    left = 44 + LETTER * min(max(map(len, labels)), 26) if len(labels[0]) > 5 or len(labels) > 1 else 62.0
    title = str(xaxis.title.text or "").split("<br>")
    bottom = height - 34 - 15 * len(title)
    across = xaxis.domain or (0, 1)
    up = yaxis.domain or (0, 1)
    span = width - left - 14
    x = _scale(xaxis, traces, "x", left + across[0] * span, left + across[1] * span)
    if x.tilted:
        bottom -= 0.5 * LETTER * max(map(len, x.categories)) - 20
    y = _scale(yaxis, traces, "y", bottom - up[0] * (bottom - top), bottom - up[1] * (bottom - top))
    lowest = up[0] <= 0.001
    parts = [_axes(x, y, xaxis, yaxis, title if lowest else [], lowest)]
    parts += [_trace(t, x, y) for t in traces]
    if shapes:
        parts += _marks(layout, x, y, top, bottom)
    return "\n".join(parts)


def _is_category(axis: Any, traces: Sequence[Any], name: str) -> bool:
    return axis.type == "category" or any(
        len(t[name] or ()) and isinstance(t[name][0], str) for t in _named(traces, name)
    )


def _named(traces: Sequence[Any], name: str) -> list[dict[str, Any]]:
    return [{name: None if t[name] is None else list(t[name])} for t in traces]


def _scale(axis: Any, traces: Sequence[Any], name: str, start: float, end: float) -> Axis:
    """An axis that holds all values of its traces, or the range it is given."""
    values = [v for t in traces for v in (t[name] if t[name] is not None else ())]
    if _is_category(axis, traces, name):
        names = [
            str(v)
            for v in (
                axis.categoryarray if axis.categoryarray is not None else dict.fromkeys(map(str, values))
            )
        ]
        names = names[::-1] if axis.autorange == "reversed" else names
        return Axis(start, end, -0.5, len(names) - 0.5, categories=names)
    numbers = np.array([v for v in values if v is not None], dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    bars = [t for t in traces if t.type == "bar"]
    if (bars and name == ("x" if bars[0].orientation == "h" else "y")) or axis.rangemode == "tozero":
        numbers = np.append(numbers, 0.0)
    if axis.range is not None:
        return Axis(start, end, float(axis.range[0]), float(axis.range[1]))
    if axis.type == "log":
        return Axis(
            start, end, float(np.log10(numbers.min())) - 0.05, float(np.log10(numbers.max())) + 0.05, True
        )
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    return Axis(start, end, 0.0 if low == 0 else low - margin, high + margin, step=axis.dtick)


def _axes(x: Axis, y: Axis, xaxis: Any, yaxis: Any, title: Sequence[str], labelled: bool) -> str:
    parts = []
    if xaxis.showticklabels is not False:
        for pixel, label in x.ticks():
            parts.append(f'<path d="M{pixel:.1f},{y.start:.1f}V{y.end:.1f}" stroke="{GRID}"/>')
            if labelled and x.tilted:
                place = f"translate({pixel + 4:.1f},{y.start + 14:.1f}) rotate(-30)"
                parts.append(f'<text transform="{place}" text-anchor="end">{label}</text>')
            elif labelled:
                parts.append(
                    f'<text x="{pixel:.1f}" y="{y.start + 16:.1f}" text-anchor="middle">{label}</text>'
                )
    for pixel, label in y.ticks():
        parts.append(f'<path d="M{x.start:.1f},{pixel:.1f}H{x.end:.1f}" stroke="{GRID}"/>')
        if yaxis.showticklabels is not False:
            parts.append(f'<text x="{x.start - 6:.1f}" y="{pixel + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<path d="M{x.start:.1f},{y.start:.1f}H{x.end:.1f}" stroke="{LINE}"/>')
    for line, words in enumerate(title):
        parts.append(
            f'<text x="{(x.start + x.end) / 2:.1f}" y="{y.start + 34 + 15 * line:.1f}" text-anchor="middle">{words}</text>'
        )
    if yaxis.title.text:
        middle = (y.start + y.end) / 2
        parts.append(
            f'<text transform="translate(14,{middle:.1f}) rotate(-90)" text-anchor="middle">{yaxis.title.text}</text>'
        )
    return "\n".join(parts)


def _trace(trace: Any, x: Axis, y: Axis) -> str:
    if trace.type == "heatmap":
        return _heat(trace, x, y)
    if trace.type == "bar":
        return _bars(trace, x, y)
    points = np.stack([x.at(trace.x), y.at(trace.y)], axis=1)
    mode, parts = trace.mode or "lines", []
    if trace.fill == "tozeroy" and len(points):
        floor = y.at([0])[0]
        outline = [(points[0, 0], floor), *points.tolist(), (points[-1, 0], floor)]
        parts.append(f'<path d="{_path(np.array(outline))}Z" {_fill(trace.fillcolor)}/>')
    if "lines" in mode:
        dash = DASH.get(trace.line.dash or "solid", "")
        parts.append(
            f'<path d="{_path(points)}" fill="none" stroke="{trace.line.color or INK}" stroke-width="{trace.line.width or 1.5}"'
            + (f' stroke-dasharray="{dash}"' if dash else "") + "/>"
        )  # fmt: skip
    if "markers" in mode:
        size, shade = (trace.marker.size or 6) / 2, trace.marker.color or trace.line.color or INK
        opacity = trace.marker.opacity or 1
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{size}" fill="{shade}" fill-opacity="{opacity}"/>'
            for a, b in points
        ]
    return "\n".join(parts)


def _path(points: np.ndarray) -> str:
    """Path data; a missing point lifts the pen."""
    commands, pen = [], "M"
    for a, b in points:
        if math.isnan(a) or math.isnan(b):
            pen = "M"
            continue
        commands.append(f"{pen}{a:.1f},{b:.1f}")
        pen = "L"
    return "".join(commands)


def _fill(shade: str) -> str:
    """rgba() as the fill and opacity that older SVG readers know."""
    red, green, blue, opacity = shade.removeprefix("rgba(").removesuffix(")").split(",")
    return f'fill="rgb({red},{green},{blue})" fill-opacity="{opacity}"'


def _bars(trace: Any, x: Axis, y: Axis) -> str:
    across = trace.orientation == "h"
    along, other = (y, x) if across else (x, y)
    centres = along.at(trace.y if across else trace.x)
    ends, zero = other.at(trace.x if across else trace.y), float(other.at([0])[0])
    unit = abs(along.end - along.start) / (along.high - along.low)
    half = unit * (trace.width if isinstance(trace.width, float) else 0.8) / 2
    parts = []
    for centre, end in zip(centres, ends, strict=True):
        low, size = min(zero, end), abs(end - zero)
        box = (low, centre - half, size, 2 * half) if across else (centre - half, low, 2 * half, size)
        place = " ".join(f'{n}="{v:.1f}"' for n, v in zip(("x", "y", "width", "height"), box, strict=True))
        parts.append(f'<rect {place} fill="{trace.marker.color}" fill-opacity="{trace.opacity or 1}"/>')
    return "\n".join(parts)


def _heat(trace: Any, x: Axis, y: Axis) -> str:
    wide = abs(x.end - x.start) / len(x.categories) - 2
    high = abs(y.end - y.start) / len(y.categories) - 2
    parts = []
    for row, b in zip(np.asarray(trace.z, dtype=float), y.at(trace.y), strict=True):
        for value, a in zip(row, x.at(trace.x), strict=True):
            if not math.isnan(value):
                shade = _blend(trace.colorscale, (value - trace.zmin) / (trace.zmax - trace.zmin))
                parts.append(
                    f'<rect x="{a - wide / 2:.1f}" y="{b - high / 2:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{shade[0]}"/>'
                )
                parts.append(
                    f'<text x="{a:.1f}" y="{b + 4:.1f}" text-anchor="middle" fill="{shade[1]}">{value:.1f}</text>'
                )
    return "\n".join(parts)


def _blend(scale: Sequence[tuple[float, str]], share: float) -> tuple[str, str]:
    """Colour at a share of a colour scale, and black or white to write on it."""
    places = [float(place) for place, _ in scale]
    shades = np.array([[int(shade[i : i + 2], 16) for i in (1, 3, 5)] for _, shade in scale], dtype=float)
    mixed = [round(float(np.interp(share, places, channel))) for channel in shades.T]
    light = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]
    return "#" + "".join(f"{v:02x}" for v in mixed), INK if light > 130 else "#ffffff"


def _marks(layout: Any, x: Axis, y: Axis, top: float, bottom: float) -> list[str]:
    """Thresholds and cuts: straight lines across the plot, with their words."""
    parts = []
    for shape in layout.shapes:
        dash = f'stroke="{shape.line.color}" stroke-width="1.2" stroke-dasharray="2 3"'
        if shape.x0 == shape.x1:
            parts.append(f'<path d="M{x.at([shape.x0])[0]:.1f},{top:.1f}V{bottom:.1f}" {dash}/>')
        else:
            parts.append(f'<path d="M{x.start:.1f},{y.at([shape.y0])[0]:.1f}H{x.end:.1f}" {dash}/>')
    for note in layout.annotations:
        if note.yref == "paper":
            parts.append(f'<text x="{x.at([note.x])[0] + 4:.1f}" y="{top + 10:.1f}">{note.text}</text>')
        else:
            parts.append(
                f'<text x="{x.end:.1f}" y="{y.at([note.y])[0] - 4:.1f}" text-anchor="end">{note.text}</text>'
            )
    return parts


def _legend(traces: Sequence[Any], wanted: bool, width: float) -> tuple[str, float]:
    """Names of the traces in rows above the plot, and how high they are."""
    shown = [t for t in traces if wanted and t.name and t.showlegend is not False]
    x, y, parts = 62.0, 16.0, []
    for trace in shown:
        length = 30 + LETTER * len(trace.name)
        if x + length > width - 10 and x > 62:
            x, y = 62.0, y + 18
        line = trace.type == "scatter" and "lines" in (trace.mode or "lines")
        shade = trace.line.color if line else trace.marker.color
        dash = DASH.get(trace.line.dash or "solid", "") if line else ""
        parts.append(
            f'<path d="M{x:.0f},{y - 4:.0f}h18" stroke="{shade}" stroke-width="{2 if line else 8}" stroke-dasharray="{dash}"/>'
        )
        parts.append(f'<text x="{x + 24:.0f}" y="{y:.0f}">{trace.name}</text>')
        x += length + 14
    return "\n".join(parts), y + 12 if shown else 16.0
