"""What the overview says at once: the result in one sentence, and the false alarms beside those that the thresholds state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binom

from asdflow.files import read_json
from asdflow.report.tables import Cell, Table, ranked, text

Thresholds = Mapping[tuple[str, str], tuple[float, float]]
"""(machine, section) -> (threshold, false-alarm rate that it states); section "" for the unit of a whole machine."""
SIGNIFICANT = 0.05


def finding(official: pd.DataFrame, significance: pd.DataFrame | None, baseline: str | None) -> str:
    """The best system, its score, and whether its lead over the baseline is more than chance; "" without scores."""
    scored = [row for row in ranked(official) if row["n"]]
    if not scored:
        return ""
    best = scored[0]
    spread = f" ± {best['std']:.2f} over {best['n']:.0f} seeds" if best["n"] > 1 else " with one seed"
    sentence = f"{best['system']} scores highest: {best['mean']:.2f} %{spread}"
    tested = {} if significance is None else {r["system"]: r for r in significance.to_dict("records")}
    if baseline not in tested or len(scored) == 1:
        return sentence + "."
    if best["system"] == baseline:
        return sentence + "; no system is above this baseline."
    row = tested.get(best["system"])
    if row is None:
        return sentence + "."
    verdict = "more than chance explains" if row["p"] < SIGNIFICANT else "no more than chance explains"
    p = "p < 0.01" if row["p"] < 0.01 else f"p = {row['p']:.2f}"
    way = "above" if row["difference"] >= 0 else "below"
    return f"{sentence}, {abs(row['difference']):.2f} points {way} the baseline {baseline}, which is {verdict} ({p})."


def read_thresholds(path: Path | None) -> dict[tuple[str, str], tuple[float, float]]:
    """The thresholds in a detector.json; `{}` where there is none."""
    if path is None or not path.is_file():
        return {}
    units: list[dict[str, Any]] = read_json(path, "run the score step again")["units"]
    return {
        (unit["machine"], unit["section"]): (
            float(unit["threshold"]["threshold"]),
            float(unit["threshold"]["expected_false_alarm_rate"]),
        )
        for unit in units
    }


def stated_rate(thresholds: Thresholds, machine: str) -> float | None:
    """The false-alarm rate that a machine's thresholds state, where its sections agree on one."""
    rates = {round(rate, 6) for (name, _), (_, rate) in thresholds.items() if name == machine}
    return rates.pop() if len(rates) == 1 else None


def alarm_table(scores: pd.DataFrame, thresholds: Thresholds) -> Table | None:
    """Per machine the stated false-alarm rate and what normal test clips of each domain show; None without decisions.

    `scores`: machine, domain, condition, decision. A rate is strong where so many false alarms lie outside the 95 %
    binomial interval of the stated rate.
    """
    normal = scores[(scores["condition"] == "normal") & scores["decision"].notna()]
    domains = [d for d in ("source", "target", "") if (normal["domain"] == d).any()]
    if not domains:
        return None
    rows = []
    for machine, clips in normal.groupby("machine"):
        stated = stated_rate(thresholds, str(machine))
        rows.append([text(machine), _rate(stated), *_domain_cells(clips, domains, stated)])
    rates = {row[1].value for row in rows}
    stated = rates.pop() if len(rates) == 1 else None
    rows.append([text("all machines"), _rate(stated), *_domain_cells(normal, domains, stated)])
    headers = ["Machine", "Stated"]
    for domain in domains:
        headers += [f"False alarms, {domain}" if domain else "False alarms", "Rate"]
    return Table("False alarms on normal test clips", headers, rows, list(range(1, len(headers))))


def _domain_cells(clips: pd.DataFrame, domains: list[str], stated: float | None) -> list[Cell]:
    cells = []
    for domain in domains:
        decisions = clips.loc[clips["domain"] == domain, "decision"]
        n, alarms = len(decisions), int((decisions == 1).sum())
        outside = False
        if n and stated is not None:
            low, high = binom.interval(0.95, n, stated)
            outside = not low <= alarms <= high
        cells += [text(f"{alarms} of {n}"), _rate(alarms / n if n else None, strong=outside)]
    return cells


def _rate(share: float | None, **marks: Any) -> Cell:
    """A share in percent; the cell's value is the share."""
    return text(None) if share is None else Cell(f"{100 * share:.0f} %", share, **marks)
