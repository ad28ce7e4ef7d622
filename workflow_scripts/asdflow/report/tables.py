"""Tables of the report: from the results files to rows of cells, and the same as CSV, LaTeX and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from asdflow.ablations import every_row, system_name

PART_NAMES = ("encoder", "labels", "tuning", "objective", "augmentation", "pooling", "backend")
# what counts in the official score, by year: 2022 and later, 2021, 2020
COUNTED = (
    ("auc_source", "auc_target", "pauc"),
    ("auc_source", "pauc_source", "auc_target", "pauc_target"),
    ("auc", "pauc"),
)
METRIC_NAMES = {
    "auc_source": "AUC source",
    "auc_target": "AUC target",
    "pauc": "pAUC",
    "auc": "AUC",
    "pauc_source": "pAUC source",
    "pauc_target": "pAUC target",
    "nmi": "NMI",
    "ari": "ARI",
    "homogeneity": "Homogeneity",
    "official_score": "Official score",
}


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, the unrounded number behind it, a link, a shade in [0, 1] around chance, a mark."""

    text: str
    value: float | None = None
    link: str | None = None
    shade: float | None = None
    strong: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells with headers; `numeric` columns are aligned on the right."""

    caption: str
    headers: list[str]
    rows: list[list[Cell]]
    numeric: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The shown texts only, for tables that the page builds when they are asked for."""
        return {
            "caption": self.caption,
            "headers": self.headers,
            "numeric": self.numeric,
            "rows": [[cell.text for cell in row] for row in self.rows],
        }


def number(value: float | None, decimals: int = 2, **marks: Any) -> Cell:
    """A cell for a number, rounded for the eye; a missing one is a dash."""
    if value is None or not math.isfinite(float(value)):
        return Cell("–", None, **marks)
    return Cell(f"{float(value):.{decimals}f}".replace("-", "−"), float(value), **marks)


def text(value: object, **marks: Any) -> Cell:
    """A cell for a text; None and NaN are a dash."""
    missing = value is None or (isinstance(value, float) and math.isnan(value)) or value == ""
    return Cell("–" if missing else str(value), **marks)


def hmean(values: Sequence[float] | np.ndarray) -> float:
    """Harmonic mean, clamped at the machine epsilon as the challenge's evaluator does."""
    clamped = np.maximum(np.asarray(values, dtype=float), np.finfo(float).eps)
    return float(len(clamped) / np.sum(1.0 / clamped))


def counted_metrics(metrics: pd.DataFrame) -> tuple[str, ...]:
    """The metrics that the official score is made of, by what metrics.csv holds; () if none of the known sets."""
    present = set(metrics["metric"])
    if "pauc_source" in present:
        return COUNTED[1]
    if "auc_source" in present:  # machines whose clips state no domain have a plain AUC in its place
        return (*COUNTED[0], "auc") if "auc" in present else COUNTED[0]
    return COUNTED[2] if "auc" in present else ()


def read_metrics(path: Any) -> pd.DataFrame:
    """metrics.csv with sections as text (`00`) and empty machine and section as ""."""
    table = pd.read_csv(
        path, dtype={"system": str, "machine": str, "section": str, "metric": str}, keep_default_na=False
    )
    table["seed"] = pd.to_numeric(table["seed"], errors="coerce")
    table["value"] = pd.to_numeric(table["value"], errors="coerce")
    return table


def machine_scores(metrics: pd.DataFrame) -> pd.DataFrame:
    """Per system, machine and seed the score in percent by the year's own mean, over the machine's sections.

    2021 and later the harmonic mean of the counted metrics, 2020 the arithmetic one; columns system, machine, seed, score.
    """
    counted = counted_metrics(metrics)
    rows = metrics[metrics["metric"].isin(counted) & (metrics["machine"] != "") & (metrics["section"] != "")]
    average = np.mean if "mean_auc" in set(metrics["metric"]) else hmean  # mean_auc is of 2020 only
    groups = rows.groupby(["system", "machine", "seed"], sort=False)["value"]
    found = [(*key, 100 * float(average(values.to_numpy()))) for key, values in groups]
    return pd.DataFrame(found, columns=["system", "machine", "seed", "score"])


def seed_scores(metrics: pd.DataFrame) -> pd.DataFrame:
    """Official score per system and seed in percent: columns system, seed, score."""
    rows = metrics[metrics["metric"] == "official_score"]
    scale = 100.0 if len(rows) and rows["value"].max() <= 1.0 else 1.0
    return pd.DataFrame(
        {"system": rows["system"], "seed": rows["seed"], "score": rows["value"] * scale}
    ).reset_index(drop=True)


def official_table(
    official: pd.DataFrame, significance: pd.DataFrame | None, baseline: str | None, featured: str | None
) -> Table:
    """The main table: mean, spread, seeds, interval, difference to the baseline with its significance.

    `significance` as from `asdflow.report.significance.compare_systems` or None.
    """
    headers = ["System", "Official score", "Std", "Seeds"]
    found = {} if significance is None else {str(r["system"]): r for r in significance.to_dict("records")}
    with_baseline = baseline in found
    if found:
        headers.append("95 % interval")
    if with_baseline:
        headers += [f"Difference to {baseline}", "95 % interval of the difference", "p"]
    best = official["mean"].max()
    rows = []
    for row in ranked(official):
        name = text(row["system"], strong=row["system"] == featured)
        spread = _score_cells(row)[1:]
        cells = [name, number(row["mean"], strong=row["mean"] == best), *spread]
        if found:
            tested = found.get(str(row["system"])) if row["n"] else None
            cells += _significance_cells(tested, baseline if with_baseline else None)
        rows.append(cells)
    return Table("Official score per system, in percent", headers, rows, list(range(1, len(headers))))


def ranked(official: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows of official_scores.csv, the highest mean first."""
    return official.sort_values("mean", ascending=False, kind="stable").to_dict("records")


def _score_cells(row: Mapping[Hashable, Any]) -> list[Cell]:
    """Mean, spread and number of seeds of a system."""
    return [number(row["mean"]), number(row["std"]), number(row["n"], 0)]


def _significance_cells(row: Mapping[Hashable, Any] | None, baseline: str | None) -> list[Cell]:
    if row is None:
        return [text(None)] * (1 if baseline is None else 4)
    cells = [_interval(row["low"], row["high"])]
    if baseline is None:
        return cells
    if row["system"] == baseline:
        return [*cells, Cell("baseline"), text(None), text(None)]
    p = float(row["p"])
    sign = "+" if row["difference"] > 0 else ""
    difference = number(row["difference"], strong=p < 0.05)
    cells.append(Cell(sign + difference.text, difference.value, strong=difference.strong))
    return [
        *cells,
        _interval(row["difference_low"], row["difference_high"]),
        Cell("< 0.01" if p < 0.01 else f"{p:.2f}", p),
    ]


def _interval(low: float, high: float) -> Cell:
    return Cell(f"{number(low).text} to {number(high).text}") if math.isfinite(low) else text(None)


def heat_table(scores: pd.DataFrame, systems: Sequence[str], links: dict[str, str]) -> Table:
    """Machines in rows, systems in columns, mean score over the seeds; the best of a row is strong."""
    means = (
        scores.groupby(["machine", "system"])["score"].mean().unstack("system").reindex(columns=list(systems))
    )
    rows = []
    for machine, row in means.iterrows():
        best = row.max()
        cells = [number(v, 1, shade=_shade(v), strong=bool(v == best and len(systems) > 1)) for v in row]
        rows.append([Cell(str(machine), link=links.get(str(machine))), *cells])
    caption = "Score per machine and system in percent, mean over the seeds; 50 is chance"
    return Table(caption, ["Machine", *systems], rows, list(range(1, len(systems) + 1)))


def _shade(score: float) -> float | None:
    """-1 at 20 percent and below, 0 at chance (50), 1 at 90 and above: how deep a cell is tinted."""
    if not math.isfinite(score):
        return None
    return round(float(np.clip((score - 50) / (40 if score > 50 else 30), -1, 1)), 3)


def metric_table(metrics: pd.DataFrame, machine: str, systems: Sequence[str]) -> Table:
    """The counted metrics of one machine per system and section: mean and, from two seeds on, spread."""
    counted = counted_metrics(metrics)
    mine = metrics[
        (metrics["machine"] == machine) & metrics["metric"].isin(counted) & (metrics["section"] != "")
    ]
    headers = ["System", "Section"]
    for metric in counted:
        headers += [METRIC_NAMES[metric], "std"]
    rows = []
    for (system, section), group in mine.groupby(["system", "section"], sort=False):
        cells = [text(system), text(section)]
        for metric in counted:
            values = group.loc[group["metric"] == metric, "value"]
            mean = float(values.mean()) if len(values) else None
            cells += [number(mean, 4), number(float(values.std()) if len(values) > 1 else None, 4)]
        rows.append(cells)
    order = {name: i for i, name in enumerate(systems)}
    rows.sort(key=lambda cells: (order.get(cells[0].text, len(order)), cells[1].text))
    return Table(f"Metrics of {machine}, mean over the seeds", headers, rows, list(range(2, len(headers))))


def agreement_table(metrics: pd.DataFrame) -> Table | None:
    """Agreement of pseudo labels with the hidden attributes per system and machine; None where nothing is known."""
    names = ("nmi", "ari", "homogeneity")
    known = metrics[metrics["metric"].str.removesuffix("_unadapted").isin(names)]
    if not len(known):
        return None
    unadapted = known["metric"].str.endswith("_unadapted").any()
    columns = [n + suffix for n in names for suffix in (("", "_unadapted") if unadapted else ("",))]
    headers = ["System", "Machine"] + [
        METRIC_NAMES[c.removesuffix("_unadapted")]
        + (" before pre-training" if c.endswith("_unadapted") else "")
        for c in columns
    ]
    means = (
        known.groupby(["system", "machine", "metric"], sort=False)["value"]
        .mean()
        .unstack("metric")
        .reindex(columns=columns)
    )
    rows = [
        [text(key[0]), text(key[1] or "all"), *(number(v, 3) for v in row)]
        for key, row in zip(means.index, means.to_numpy(), strict=True)
    ]
    return Table(
        "Agreement of pseudo labels with the hidden attributes", headers, rows, list(range(2, len(headers)))
    )


def parts_table(
    parts: dict[str, dict[str, Any]], official: pd.DataFrame, baseline: str | None
) -> tuple[Table, str]:
    """Systems in rows, the parts in which they differ in columns, and a line that names the parts they share.

    A part is told by its kind and by those of its settings that differ among systems with the same kind; it is strong
    where it differs from the baseline's.
    """
    parts = {system: _in_use(entry) for system, entry in parts.items()}
    scored = [row for row in ranked(official) if row["system"] in parts]
    systems = [str(row["system"]) for row in scored]
    shown = {name: _part_texts({s: parts[s].get(name) for s in systems}) for name in _part_names(parts)}
    shared = {
        name: texts for name, texts in shown.items() if len(set(texts.values())) == 1 and len(texts) > 1
    }
    columns = [name for name in shown if name not in shared]
    rows = []
    for system, row in zip(systems, scored, strict=True):
        cells = [text(system)]
        for name in columns:
            differs = baseline in parts and shown[name][system] != shown[name].get(str(baseline))
            cells.append(text(shown[name][system], strong=differs))
        rows.append([*cells, *_score_cells(row)])
    titles = [name.replace("_", " ").capitalize() for name in columns]
    headers = ["System", *titles, "Official score", "Std", "Seeds"]
    table = Table(
        "Systems and the parts they are made of", headers, rows, [len(headers) - i for i in (3, 2, 1)]
    )
    return table, ", ".join(
        f"{name.replace('_', ' ')} {next(iter(texts.values()))}" for name, texts in shared.items()
    )


def ablation_table(name: str, table: Mapping[str, Any], official: pd.DataFrame) -> Table | None:
    """The rows of an ablation table (`asdflow.ablations`) with the parts as columns; None where no row has a score.

    The difference is to the first row; the best score is strong.
    """
    found = official[official["n"] > 0].set_index("system")
    rows = [row for row in every_row(table) if system_name(name, row) in found.index]
    if not rows:
        return None
    scores = found.loc[[system_name(name, row) for row in rows]]
    first = scores["mean"].iloc[0] if rows[0] == every_row(table)[0] else None
    cells = []
    for row, mean, std, n in zip(rows, scores["mean"], scores["std"], scores["n"], strict=True):
        gap = None if first is None or row == rows[0] else mean - first
        best = number(mean, strong=bool(mean == scores["mean"].max()))
        cells.append([*map(text, row), best, number(std), number(n, 0), number(gap)])
    headers = [part["part"].capitalize() for part in table["parts"]]
    caption = table["title"] or f"{name}: parts of {table['base']}"
    headers += ["Official score", "Std", "Seeds", "Difference to the first row"]
    return Table(caption, headers, cells, [len(headers) - i for i in (4, 3, 2, 1)])


def _in_use(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A system's parts without its title and what is switched off: weight or probability 0, and all learning where nothing is learnt."""
    used = {name: part for name, part in entry.items() if name != "title"}
    for name in ("objective", "augmentation"):
        if isinstance(used.get(name), Mapping):
            used[name] = switched_on(used[name]) or None
    tuning = used.get("tuning")
    if isinstance(tuning, Mapping) and tuning.get("method") in ("none", "autoencoder"):
        used |= {name: None for name in ("objective", "augmentation") if name in used}
        kept = tuning.get("autoencoder") if tuning["method"] == "autoencoder" else None
        used["tuning"] = {"method": tuning["method"], **(kept or {})}
    return used


def switched_on(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The losses or augmentations that a recipe uses, out of all that it names: weight and probability not 0, several segments."""

    def off(part: Any) -> bool:
        return isinstance(part, Mapping) and (
            0 in (part.get("weight"), part.get("probability")) or part.get("count") == 1
        )

    return {name: part for name, part in settings.items() if not off(part)}


def _part_names(parts: dict[str, dict[str, Any]]) -> list[str]:
    further = sorted({name for entry in parts.values() for name in entry} - set(PART_NAMES))
    return [name for name in (*PART_NAMES, *further) if any(name in entry for entry in parts.values())]


def _part_texts(entries: dict[str, Any]) -> dict[str, str]:
    """System -> one part in words: its kind, then the settings that tell it from others of its kind."""
    settings = {system: _flat(entry) for system, entry in entries.items()}
    kinds = {system: _kind(entry) for system, entry in entries.items()}
    texts = {}
    for system, own in settings.items():
        peers = [settings[other] for other in settings if kinds[other] == kinds[system]]
        telling = [key for key in own if any(peer.get(key) != own[key] for peer in peers)]
        extra = ", ".join(
            f"{key.replace('_', ' ')} {own[key]}" for key in telling if own[key] != kinds[system]
        )
        texts[system] = f"{kinds[system]} ({extra})" if extra else kinds[system]
    return texts


def _kind(entry: Any) -> str:
    if isinstance(entry, dict):
        named = next((entry[key] for key in ("kind", "method", "name") if key in entry), None)
        used = [key for key, value in entry.items() if value not in (None, False, [], {})]
        return str(named) if named is not None else " + ".join(used) or "none"
    if isinstance(entry, list | tuple):
        return " + ".join(map(str, entry)) or "none"
    return "none" if entry is None or entry is False else str(entry)


def _flat(entry: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of a part's settings by their path, each as text."""
    if not isinstance(entry, dict):
        return {prefix.rstrip(" "): _kind(entry)} if prefix else {}
    flat: dict[str, str] = {}
    for key, value in entry.items():
        flat |= _flat(value, f"{prefix}{key} ")
    return flat


def as_csv(table: Table) -> str:
    """The table as CSV with unrounded numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.headers)
    for row in table.rows:
        writer.writerow([cell.text if cell.value is None else repr(cell.value) for cell in row])
    return out.getvalue()


def as_markdown(table: Table) -> str:
    """The table for a README or an issue; strong cells in bold."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("\\", "\\\\").replace("|", "\\|") for c in cells) + " |"

    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.headers))]
    body = [line([f"**{c.text}**" if c.strong else c.text for c in row]) for row in table.rows]
    return "\n".join([line(table.headers), "|" + "|".join(rule) + "|", *body]) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$"}  # fmt: skip


def as_latex(table: Table) -> str:
    """The table as a booktabs tabular; strong cells in bold."""

    def escaped(value: str) -> str:
        return "".join(_LATEX.get(c, c) for c in value)

    def cell(content: Cell) -> str:
        return rf"\textbf{{{escaped(content.text)}}}" if content.strong else escaped(content.text)

    columns = "".join("r" if i in table.numeric else "l" for i in range(len(table.headers)))
    body = [" & ".join(cell(c) for c in row) + r" \\" for row in table.rows]
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escaped, table.headers)) + r" \\",
        r"\midrule",
    ]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"
