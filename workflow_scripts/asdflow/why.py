"""Why jobs would run, in words: which configuration key, code file, recording or input differs from what was recorded."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asdflow.provenance import DATA_SUFFIXES

NAMED = 4
"""So many jobs of the same rule and reason are named, the rest counted."""


@dataclass(frozen=True)
class PlannedJob:
    """A job that would run, and what is recorded of the time it last ran.

    Attributes
    ----------
    missing : outputs that are not there. newer : inputs that changed after the outputs were made.
    made_by_others : inputs that another job of the plan makes.
    interrupted : an earlier run ended while this job was writing.
    inputs, params : today's input files, and parameters as text (`repr`), each sorted.
    recorded_inputs, recorded_params : the same of the last time; None where nothing is recorded.
    """

    rule: str
    wildcards: Mapping[str, str] = field(default_factory=dict)
    output: Sequence[str] = ()
    missing: Sequence[str] = ()
    newer: Sequence[str] = ()
    made_by_others: Sequence[str] = ()
    interrupted: bool = False
    inputs: Sequence[str] = ()
    params: Sequence[str] = ()
    recorded_inputs: Sequence[str] | None = None
    recorded_params: Sequence[str] | None = None


def explain(jobs: Sequence[PlannedJob]) -> str:
    """What would run and why: jobs with a reason of their own first, then those that only follow from them."""
    if not jobs:
        return "Nothing would run: every result is as its configuration, code and inputs say."
    own: dict[tuple[str, tuple[str, ...]], list[PlannedJob]] = {}
    following: Counter[str] = Counter()
    for job in jobs:
        reasons = tuple(reasons_of(job))
        if reasons:
            own.setdefault((job.rule, reasons), []).append(job)
        else:
            following[job.rule] += 1
    lines = [f"{_count(len(jobs), 'job')} would run."]
    for (rule, reasons), group in own.items():
        lines += ["", f"{rule} {_names(group)}".rstrip(), *(f"    {reason}" for reason in reasons)]
    if following:
        text = ", ".join(f"{rule} ({count})" for rule, count in following.items())
        lines += ["", f"What follows from these: {text}"]
    return "\n".join(lines)


def reasons_of(job: PlannedJob) -> list[str]:
    """Reasons of the job itself; empty when it only follows from others that run."""
    if job.interrupted:
        return ["an earlier run ended while it was writing, so its output is not whole"]
    if job.missing and job.recorded_params is None:
        return ["not made yet"]
    reasons = [f"output missing: {_some(job.missing)}"] if job.missing else []
    if job.recorded_params is not None:
        reasons += _changed_params(job.recorded_params, job.params)
    if job.recorded_inputs is not None:
        added = sorted({*job.inputs} - {*job.recorded_inputs})
        removed = sorted({*job.recorded_inputs} - {*job.inputs})
        reasons += [f"input added: {_some(added)}"] if added else []
        reasons += [f"input no longer used: {_some(removed)}"] if removed else []
    newer = sorted({*job.newer} - {*job.made_by_others})
    return reasons + ([f"input newer than the output: {_some(newer)}"] if newer else [])


def _changed_params(recorded: Sequence[str], today: Sequence[str]) -> Iterator[str]:
    """Name what differs between two lists of parameters, which carry no names of their own."""
    before = [ast.literal_eval(text) for text in sorted({*recorded} - {*today})]
    after = [ast.literal_eval(text) for text in sorted({*today} - {*recorded})]
    for value in after:
        partner = max(before, key=lambda other: _likeness(other, value), default=None)
        if partner is not None and _likeness(partner, value):
            before.remove(partner)
            yield from _differences(partner, value)
        else:
            yield "its code was not recorded file by file" if _is_code(value) else f"new setting: {value!r}"
    for value in before:
        yield f"setting no longer used: {value!r}"


def _likeness(one: Any, other: Any) -> int:
    """How many keys two parameters share, 1 for two plain values of the same type."""
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one.keys() & other.keys()) + (_is_code(one) and _is_code(other))
    return int(type(one) is type(other) and not isinstance(one, dict))


def _is_code(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(Path(str(key)).suffix in {".py", *DATA_SUFFIXES} for key in value)
    )


def _differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Every entry in which two nested plain values differ, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        code = _is_code({**before, **after})
        for key in sorted({*before, *after}):
            if code:
                yield from _code_difference(key, before.get(key), after.get(key))
            elif key not in after:
                yield f"{where}{key}: {before[key]!r} no longer given"
            elif key not in before:
                yield f"{where}{key}: {after[key]!r} is new"
            else:
                yield from _differences(before[key], after[key], f"{where}{key}.")
    elif before != after:
        name = where.removesuffix(".")
        if name == "listing":
            yield "recordings were added, removed or replaced"
        else:
            yield f"{name + ': ' if name else ''}{before!r} -> {after!r}"


def _code_difference(file: str, before: str | None, after: str | None) -> Iterator[str]:
    kind = "module" if file.endswith(".py") and "/" in file else "file"
    if before is None:
        yield f"{kind} {file} is newly used"
    elif after is None:
        yield f"{kind} {file} is no longer used"
    elif before != after:
        yield f"{kind} {file} changed"


def _names(jobs: Sequence[PlannedJob]) -> str:
    """The jobs of one rule by their wildcards: `demo/frozen seed 0, demo/frozen seed 1 and 4 more`."""
    return _some([_job_name(job.wildcards) for job in jobs if job.wildcards])


def _job_name(wildcards: Mapping[str, str]) -> str:
    name = "/".join(value for key, value in wildcards.items() if key != "seed")
    return f"{name} seed {wildcards['seed']}" if "seed" in wildcards else name


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
