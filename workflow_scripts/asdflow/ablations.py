"""Ablation tables: which systems a table of switched parts stands for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

Table = Mapping[str, Any]
NAME = re.compile(r"[A-Za-z0-9-]+")


def every_row(table: Table) -> list[list[str]]:
    """The table's rows, an option per part: those that it names, or every combination."""
    if table["rows"] is not None:
        return [list(row) for row in table["rows"]]
    return [list(row) for row in itertools.product(*(part["options"] for part in table["parts"]))]


def system_name(name: str, row: Sequence[str]) -> str:
    """What the system of a row is called: <table>_<option>_..."""
    return "_".join([name, *row])


def row_entries(name: str, table: Table) -> dict[str, list[Mapping[str, Any]]]:
    """System -> the entries to lay over each other: what it starts from, then the keys of each chosen option."""
    systems: dict[str, list[Mapping[str, Any]]] = {}
    for row in every_row(table):
        chosen = list(zip(table["parts"], row, strict=True))
        said = ", ".join(f"{part['part']} {option}" for part, option in chosen)
        start = {"like": table["base"], "title": f"{table['base']} with {said}"}
        systems[system_name(name, row)] = [start, *(part["options"][option] for part, option in chosen)]
    return systems


def table_problems(name: str, table: Table) -> list[str]:
    """What is wrong with a table: names that make no folder, rows that do not fit its parts."""
    where, parts = f"ablations.{name}", table["parts"]
    problems = [
        f"{where}: '{word}' becomes part of a folder's name; letters, digits and hyphens only"
        for word in (name, *(option for part in parts for option in part["options"]))
        if not NAME.fullmatch(word)
    ]
    for row in table["rows"] or []:
        if len(row) != len(parts):
            problems.append(f"{where}.rows: {row} has {len(row)} options for {len(parts)} parts")
            continue
        problems += [
            f"{where}.rows: {part['part']} has no option '{option}'; it has {', '.join(part['options'])}"
            for part, option in zip(parts, row, strict=True)
            if option not in part["options"]
        ]
    return problems
