"""Figures of the report: each function takes a table and returns a plotly figure; the page adds theme and fonts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.cluster.hierarchy import dendrogram as scipy_dendrogram

# Wong (2011), safe for colour-blind readers, reordered and lengthened by darker kin; the page swaps them in dark mode
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#6a51a3",
    "#8c6d31",
    "#7f7f7f",
    "#b2182b",
)
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
INK, MUTED, FAINT = "#1c1f23", "#6b7280", "#c9ced6"
# brown below chance, white at 50, blue above
SCORE_SCALE = [[0.0, "#a6611a"], [0.25, "#dfc27d"], [0.5, "#f7f7f5"], [0.75, "#7fb4d8"], [1.0, "#08519c"]]
MOST_CATEGORIES = len(PALETTE) * len(SYMBOLS)
CURVE_GRID = np.unique(np.concatenate([np.linspace(0, 0.1, 41), np.linspace(0.1, 1, 46)]))


def plain(value: object) -> str:
    """A name as plotly shows it letter by letter: plotly reads tags and entities in every text."""
    return html.escape(str(value), quote=False)


def colour(index: int) -> str:
    """The palette's colour for the index-th system or category, round and round."""
    return PALETTE[index % len(PALETTE)]


def faded(shade: str, opacity: float) -> str:
    """A colour of the palette as rgba with the given opacity."""
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _figure(height: int, x: str | None = None, y: str | None = None, legend: bool = True) -> go.Figure:
    figure = go.Figure(layout={"template": "none"})
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 12, "t": 28, "b": 48},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hoverlabel={"namelength": -1},
    )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _f4(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def _tenths(values: Any) -> list[float]:
    """Places on a map, as fine as the eye can tell and no longer."""
    return [round(float(value), 1) for value in values]


def official_scores(official: pd.DataFrame, seeds: pd.DataFrame, intervals: pd.DataFrame | None) -> go.Figure:
    """Dot plot, best on top: mean with its interval, the seeds as faint dots.

    `official`: system, mean; `seeds`: system, score; `intervals`: system, low, high or None.
    """
    ranked = official.dropna(subset="mean").sort_values("mean", kind="stable")
    names = [plain(s) for s in ranked["system"]]
    figure = _figure(90 + 30 * len(names), "Official score (%)", legend=False)
    if intervals is not None and len(intervals):
        known = intervals.set_index("system").reindex(ranked["system"])
        for name, low, high in zip(names, known["low"], known["high"], strict=True):
            figure.add_scatter(
                x=[low, high],
                y=[name, name],
                mode="lines",
                line={"color": FAINT, "width": 6},
                hoverinfo="skip",
            )
    figure.add_scatter(
        x=_f4(seeds["score"]), y=[plain(s) for s in seeds["system"]], mode="markers", name="one seed",
        marker={"color": MUTED, "size": 5, "opacity": 0.6}, hovertemplate="%{x:.2f} (one seed)<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=_f4(ranked["mean"]), y=names, mode="markers", name="mean", marker={"color": PALETTE[0], "size": 11},
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names, automargin=True)
    shown = [ranked["mean"], seeds["score"]] + (
        [intervals["low"], intervals["high"]] if intervals is not None else []
    )
    values = pd.concat(shown).dropna().astype(float)
    if len(values):
        margin = max(0.06 * (values.max() - values.min()), 0.5)
        figure.update_xaxes(range=[values.min() - margin, values.max() + margin])
    return figure


def score_heat_map(scores: pd.DataFrame, systems: Sequence[str]) -> go.Figure:
    """Machines x systems, mean score in percent; `scores`: system, machine, score."""
    table = (
        scores.groupby(["machine", "system"])["score"].mean().unstack("system").reindex(columns=list(systems))
    )
    values = table.to_numpy(dtype=float)
    figure = _figure(110 + 24 * len(table), legend=False)
    figure.add_heatmap(
        z=values, x=[plain(s) for s in systems], y=[plain(m) for m in table.index], colorscale=SCORE_SCALE, zmid=50,
        zmin=20, zmax=80, text=np.char.mod("%.1f", np.nan_to_num(values)), texttemplate="%{text}", xgap=2, ygap=2,
        colorbar={"title": {"text": "%"}, "thickness": 10}, hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    figure.update_xaxes(type="category", automargin=True)
    return figure


def roc(curves: pd.DataFrame, panels: Sequence[str], featured: str | None) -> go.Figure:
    """ROC curves, one panel a set of clips; the area up to a rate of 0.1 is shaded for the featured system.

    `curves`: panel, system, fpr, tpr.
    """
    figure = _figure(360, legend=True)
    width = 1.0 / len(panels)
    systems = list(dict.fromkeys(curves["system"]))
    for index, panel in enumerate(panels):
        suffix = "" if index == 0 else str(index + 1)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        left, right = index * width, (index + 1) * width - (0.05 if index < len(panels) - 1 else 0)
        figure.layout[f"xaxis{suffix}"] = {"domain": [left, right], "anchor": f"y{suffix}", "range": [0, 1],
                                           "title": {"text": f"False-positive rate<br>{plain(panel)}"}, "nticks": 6}  # fmt: skip
        figure.layout[f"yaxis{suffix}"] = {"range": [0, 1.005], "anchor": f"x{suffix}", "nticks": 6, "showticklabels": index == 0,
                                           "title": {"text": "True-positive rate" if index == 0 else None}}  # fmt: skip
        figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": FAINT, "width": 1, "dash": "dot"}, showlegend=False,
                           hoverinfo="skip", **axes)  # fmt: skip
        for number, system in enumerate(systems):
            curve = curves[(curves["panel"] == panel) & (curves["system"] == system)]
            if len(curve):
                _add_curve(
                    figure,
                    curve,
                    system,
                    number,
                    system == featured,
                    index == len(panels) - 1,
                    index == 0,
                    axes,
                )
    figure.update_layout(margin={"b": 64, "t": 28}, meta={"stack": len(panels)})
    return figure


def _add_curve(
    figure: go.Figure,
    curve: pd.DataFrame,
    system: str,
    number: int,
    featured: bool,
    last: bool,
    in_legend: bool,
    axes: dict[str, str],
) -> None:
    shade = colour(number)
    if featured and last:
        low = curve[curve["fpr"] <= 0.1]
        figure.add_scatter(x=_f4(low["fpr"]), y=_f4(low["tpr"]), mode="none", fill="tozeroy", fillcolor=faded(shade, 0.25),
                           legendgroup=plain(system), showlegend=False, hoverinfo="skip", **axes)  # fmt: skip
    figure.add_scatter(
        x=_f4(curve["fpr"]), y=_f4(curve["tpr"]), mode="lines", name=plain(system), legendgroup=plain(system), showlegend=in_legend,
        line={"color": shade, "width": 2.5 if featured else 1.4, "dash": DASHES[(number // len(PALETTE)) % len(DASHES)]},
        hovertemplate="%{y:.2f} at %{x:.2f}", **axes,
    )  # fmt: skip


def score_histogram(scores: pd.DataFrame, threshold: float | None) -> go.Figure:
    """Anomaly scores by domain (rows) and condition (colour), with the decision threshold.

    `scores`: anomaly_score, domain, condition.
    """
    domains = [d for d in ("source", "target", "") if (scores["domain"] == d).any()]
    figure = _figure(150 + 110 * len(domains), "Anomaly score")
    values = scores["anomaly_score"].to_numpy(dtype=float)
    low, high = float(values.min()), float(values.max())
    bins = {
        "start": low,
        "end": high + 1e-9,
        "size": max((high - low) / int(np.clip(3 * np.sqrt(len(values)), 12, 40)), 1e-9),
    }
    height = 1.0 / max(len(domains), 1)
    for index, domain in enumerate(domains):
        suffix = "" if index == 0 else str(index + 1)
        bottom = 1 - (index + 1) * height
        figure.layout[f"yaxis{suffix}"] = {
            "domain": [bottom, bottom + height * 0.88],
            "title": {"text": domain or "clips"},
            "nticks": 4,
        }
        for condition, shade in (("normal", PALETTE[0]), ("anomaly", PALETTE[1])):
            part = scores[(scores["domain"] == domain) & (scores["condition"] == condition)]["anomaly_score"]
            figure.add_histogram(x=_f4(part), name=condition, legendgroup=condition, showlegend=index == 0, xbins=bins, autobinx=False,
                                 marker={"color": shade}, opacity=0.62, yaxis=f"y{suffix}",
                                 hovertemplate="%{y} clips near %{x}<extra>" + condition + "</extra>")  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0.04)
    figure.layout.xaxis.anchor = f"y{len(domains)}" if len(domains) > 1 else "y"
    if threshold is not None:
        figure.add_shape(type="line", xref="x", yref="paper", x0=threshold, x1=threshold, y0=0, y1=1,
                         line={"color": INK, "width": 1.2, "dash": "dot"})  # fmt: skip
        figure.add_annotation(
            x=threshold,
            y=1,
            yref="paper",
            text="threshold",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            xshift=3,
        )
    return figure


def embedding_map(points: pd.DataFrame, category: str) -> go.Figure:
    """2-D map coloured by a category; `points`: x, y, number (of the clip's name in the page) and the category's column."""
    figure = _figure(400)
    names = points[category]
    unknown = points[names.isna()]
    if len(unknown):
        figure.add_scatter(x=_tenths(unknown["x"]), y=_tenths(unknown["y"]), mode="markers", name="not known", hoverinfo="skip",
                           marker={"color": FAINT, "size": 4, "opacity": 0.6})  # fmt: skip
    for index, name in enumerate(sorted(names.dropna().unique())):
        part = points[names == name]
        symbol = SYMBOLS[(index // len(PALETTE)) % len(SYMBOLS)]
        figure.add_scatter(
            x=_tenths(part["x"]), y=_tenths(part["y"]), mode="markers", name=plain(name), meta={"names": part["number"].tolist()},
            marker={"color": colour(index), "symbol": symbol, "size": 6, "opacity": 0.78}, hovertemplate="%{text}",
        )  # fmt: skip
    hidden = {"showticklabels": False, "ticks": "", "zeroline": False, "showgrid": False, "showline": False}
    figure.update_xaxes(**hidden)
    figure.update_yaxes(scaleanchor="x", **hidden)
    figure.update_layout(
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"y": -0.02, "yanchor": "top", "itemsizing": "constant"},
    )
    return figure


def dendrogram(linkage: np.ndarray, cut: float, leaves: int = 60) -> go.Figure:
    """The last `leaves` merges of a clustering with the height of the cut; linkage [n - 1, 4] as scipy's.

    Merges below the cut take a colour by cluster, those above are grey.
    """
    tree = scipy_dendrogram(np.asarray(linkage, dtype=float), no_plot=True, p=leaves, truncate_mode="lastp", color_threshold=cut,
                            above_threshold_color="above")  # fmt: skip
    figure = _figure(320, "Clips (groups of clips at the bottom)", "Distance", legend=False)
    shades: dict[str, str] = {"above": MUTED}
    for name in tree["color_list"]:
        shades.setdefault(name, colour(len(shades) - 1))
    for name, shade in shades.items():
        x: list[float | None] = []
        y: list[float | None] = []
        for xs, ys, own in zip(tree["icoord"], tree["dcoord"], tree["color_list"], strict=True):
            if own == name:
                x += [*xs, None]
                y += [*ys, None]
        if x:
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": shade, "width": 1.3},
                hovertemplate="%{y:.3f}<extra></extra>",
            )
    figure.add_hline(y=cut, line={"color": INK, "width": 1.2, "dash": "dot"})
    figure.add_annotation(
        x=1, xref="paper", y=cut, text="cut", showarrow=False, xanchor="right", yanchor="bottom"
    )
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def cluster_sizes(sizes: pd.DataFrame) -> go.Figure:
    """Bars of clips per cluster; `sizes`: cluster, clips."""
    figure = _figure(240, "Cluster", "Clips", legend=False)
    figure.add_bar(x=[plain(c) for c in sizes["cluster"]], y=sizes["clips"].to_numpy(), marker={"color": PALETTE[0]},
                   hovertemplate="cluster %{x}: %{y} clips<extra></extra>")  # fmt: skip
    figure.update_xaxes(type="category")
    return figure


def silhouette(candidates: np.ndarray, chosen: int) -> go.Figure:
    """Silhouette against the number of clusters [candidates, 2], the chosen number marked."""
    figure = _figure(240, "Number of clusters", "Silhouette", legend=False)
    candidates = np.asarray(candidates, dtype=float)
    figure.add_scatter(x=candidates[:, 0], y=_f4(candidates[:, 1]), mode="lines+markers", line={"color": PALETTE[0], "width": 1.6},
                       marker={"size": 5}, hovertemplate="%{y:.3f} with %{x} clusters<extra></extra>")  # fmt: skip
    if np.ptp(candidates[:, 0]) <= 12:
        figure.update_xaxes(dtick=1)
    mark = candidates[candidates[:, 0] == chosen]
    figure.add_scatter(x=mark[:, 0], y=_f4(mark[:, 1]), mode="markers", marker={"size": 12, "color": PALETTE[1]},
                       hovertemplate="chosen: %{x} clusters<extra></extra>")  # fmt: skip
    return figure


def history(table: pd.DataFrame, metric: str) -> go.Figure:
    """One metric over the steps, a line a run; `table`: run, step, value."""
    runs = list(dict.fromkeys(table["run"]))
    figure = _figure(260, "Step", legend=len(runs) > 1)
    for index, run in enumerate(runs):
        part = table[table["run"] == run]
        figure.add_scatter(x=part["step"].to_numpy(), y=_f4(part["value"]), mode="lines+markers" if len(part) < 12 else "lines",
                           name=plain(run), line={"color": colour(index), "width": 1.5}, marker={"size": 5},
                           hovertemplate="%{y:.4g} at step %{x}")  # fmt: skip
    values = table["value"]
    if metric.startswith("loss") and (values > 0).all() and values.max() > 50 * values.min():
        figure.update_yaxes(type="log")
    if metric in ("peak_memory_mb", "clips_per_second"):
        figure.update_yaxes(rangemode="tozero")
    if metric == "learning_rate":
        figure.update_yaxes(exponentformat="e")
    return figure


def stage_times(benchmarks: pd.DataFrame) -> go.Figure:
    """Bars of the time per rule, summed over its jobs; `benchmarks`: rule, seconds."""
    totals = benchmarks.groupby("rule")["seconds"].sum().sort_values()
    figure = _figure(90 + 22 * len(totals), "Seconds, summed over jobs", legend=False)
    figure.add_bar(x=_f4(totals), y=[plain(r) for r in totals.index], orientation="h", marker={"color": PALETTE[0]},
                   hovertemplate="%{y}: %{x:.1f} s<extra></extra>")  # fmt: skip
    figure.update_yaxes(type="category", automargin=True)
    return figure
