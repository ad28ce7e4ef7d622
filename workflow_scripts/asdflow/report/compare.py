"""What changed between two results folders: configuration, code, scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asdflow.errors import InputError
from asdflow.report.build import read_provenance
from asdflow.report.tables import Cell, Table, as_markdown, machine_scores, number, read_metrics, text

ABSENT = "(absent)"


@dataclass(frozen=True)
class Change:
    """One key of a record that differs, its value in either run as text."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    `code`, `configuration`, `software`: what differs. `scores`: dataset, system, before, after, difference (official
    score, mean in percent; NaN where a run lacks it), spread (standard error of the difference over the seeds, NaN with
    fewer than two). `machines`: dataset, system, machine, before, after, difference, largest change first.
    """

    run_a: Path
    run_b: Path
    code: list[Change] = field(default_factory=list)
    configuration: list[Change] = field(default_factory=list)
    software: list[Change] = field(default_factory=list)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    machines: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def identical(self) -> bool:
        """No recorded difference in configuration, code, software or any official score."""
        same = bool((self.scores["difference"] == 0).all()) if len(self.scores) else True
        return same and not (self.code or self.configuration or self.software)

    def as_text(self, machines: int = 10) -> str:
        """The comparison as Markdown; of the machines the `machines` with the largest changes."""
        lines = ["# What changed", "", f"- A: {self.run_a}", f"- B: {self.run_b}", ""]
        for title, changes in (
            ("Code", self.code),
            ("Configuration", self.configuration),
            ("Software and hardware", self.software),
        ):
            lines += [f"## {title}", "", _changes_text(changes), ""]
        lines += [
            "## Official scores (percent)",
            "",
            as_markdown(_score_table(self.scores)) if len(self.scores) else "None.",
            "",
        ]
        if len(self.machines):
            shown = self.machines.head(machines)
            lines += ["## Machines that changed most", "", as_markdown(_machine_table(shown)), ""]
        return "\n".join(lines).rstrip() + "\n"


def compare(run_a: Path, run_b: Path) -> Comparison:
    """Compare two results folders (`run_b` after `run_a`).

    Reads `report/provenance.json` and every `<dataset>/official_scores.csv` and `metrics.csv`. Raises InputError naming
    each folder that holds no official scores.
    """
    runs = [Path(run_a), Path(run_b)]
    empty = [
        f"{run}: no <dataset>/official_scores.csv in it"
        for run in runs
        if not list(run.glob("*/official_scores.csv"))
    ]
    if empty:
        raise InputError(
            "These are no results folders to compare",
            empty,
            "give two folders that a finished run wrote, such as results/",
        )
    records = [read_provenance(run / "report" / "provenance.json") for run in runs]
    software = ({k: r[k] for k in ("versions", "hardware") if r.get(k)} for r in records)
    return Comparison(
        run_a=runs[0],
        run_b=runs[1],
        code=_changes(*({"git": r.get("git")} for r in records)),
        configuration=_changes(*({"": r.get("configuration")} for r in records)),
        software=_changes(*software),
        scores=_score_changes(*(_official(run) for run in runs)),
        machines=_machine_changes(*(_machines(run) for run in runs)),
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from _flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, "none" if value is None or value == {} else str(value)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Keys whose values differ, sorted; a key of one run only is absent in the other."""
    old, new = dict(_flat(before)), dict(_flat(after))
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    return [Change(k, old.get(k, ABSENT), new.get(k, ABSENT)) for k in keys]


def _official(run: Path) -> pd.DataFrame:
    tables = [
        pd.read_csv(path, dtype={"system": str}).assign(dataset=path.parent.name)
        for path in sorted(run.glob("*/official_scores.csv"))
    ]
    return pd.concat(tables, ignore_index=True)


def _score_changes(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    both = before.merge(after, on=["dataset", "system"], how="outer", suffixes=("_a", "_b"))
    spread = np.sqrt(both["std_a"] ** 2 / both["n_a"] + both["std_b"] ** 2 / both["n_b"])
    return pd.DataFrame(
        {
            "dataset": both["dataset"],
            "system": both["system"],
            "before": both["mean_a"],
            "after": both["mean_b"],
            "difference": both["mean_b"] - both["mean_a"],
            "spread": spread,
        }
    )


def _machines(run: Path) -> pd.DataFrame:
    parts = [pd.DataFrame(columns=["dataset", "system", "machine", "score"])]
    for path in sorted(run.glob("*/metrics.csv")):
        means = (
            machine_scores(read_metrics(path)).groupby(["system", "machine"], as_index=False)["score"].mean()
        )
        parts.append(means.assign(dataset=path.parent.name))
    filled = [p for p in parts if len(p)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0]


def _machine_changes(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    both = before.merge(after, on=["dataset", "system", "machine"], suffixes=("_a", "_b"))
    both["difference"] = both["score_b"] - both["score_a"]
    both = both.rename(columns={"score_a": "before", "score_b": "after"})
    order = both["difference"].abs().sort_values(ascending=False, kind="stable").index
    return both.loc[order, ["dataset", "system", "machine", "before", "after", "difference"]].reset_index(
        drop=True
    )


def _changes_text(changes: list[Change]) -> str:
    if not changes:
        return "The same in both, as far as it was recorded."
    rows = [[text(c.key), text(c.before), text(c.after)] for c in changes]
    return as_markdown(Table("", ["Key", "A", "B"], rows)).rstrip()


def _signed(value: float) -> Cell:
    cell = number(value)
    return Cell("+" + cell.text, cell.value) if value > 0 else cell


def _score_table(scores: pd.DataFrame) -> Table:
    rows = []
    for r in scores.itertuples():
        values = [number(r.before), number(r.after), _signed(r.difference), number(r.spread)]  # type: ignore[arg-type]
        rows.append([text(r.dataset), text(r.system), *values])
    headers = ["Dataset", "System", "A", "B", "Difference", "Its standard error over seeds"]
    return Table("", headers, rows, [2, 3, 4, 5])


def _machine_table(machines: pd.DataFrame) -> Table:
    rows = []
    for r in machines.itertuples():
        values = [number(r.before), number(r.after), _signed(r.difference)]  # type: ignore[arg-type]
        rows.append([text(r.dataset), text(r.system), text(r.machine), *values])
    return Table("", ["Dataset", "System", "Machine", "A", "B", "Difference"], rows, [3, 4, 5])
