"""A run on one machine: how much memory its jobs may share, and what is said when the run has ended."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
SHARE_FOR_JOBS = 0.9
LAST_LINES = 12
"""So many lines of a failed job's last message are repeated at the end; the rest stands in its log."""


@dataclass(frozen=True)
class RunJob:
    """One job of a run: its rule, its name beside that, its log, and how it ended."""

    rule: str
    name: str = ""
    log: Path | None = None
    benchmark: Path | None = None
    state: str = "waiting"
    """`done`, `failed` or `waiting`."""


def memory_for_jobs() -> int:
    """MB (10^6 bytes) that the jobs of a run may ask for together: most of what the machine or the container has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    if limit.isdigit():
        total = min(total, int(limit))
    return int(total * SHARE_FOR_JOBS) // 10**6


def closing_summary(jobs: Sequence[RunJob], seconds: float, report: Path | None, why: str) -> str:
    """What ran, how long it took, what failed and where that is told, and what to do next.

    Parameters
    ----------
    jobs : all jobs of the run. seconds : its duration. report : the page, where there is one. why : the command that explains
        what is left.
    """
    states = Counter(job.state for job in jobs)
    length = timedelta(seconds=round(seconds))
    lines = _what_ran([job for job in jobs if job.state == "done"])
    if not states["failed"] and not states["waiting"]:
        place = [f"Report: {report.resolve()}"] if report is not None and report.is_file() else []
        return "\n".join([f"Finished: {_jobs(states['done'])} in {length}.", *lines, *place])
    head = f"Not finished after {length}: {_jobs(states['done'])} done, {states['failed']} failed, {states['waiting']} not started."
    for job in jobs:
        if job.state == "failed":
            lines += [f"FAILED {job.rule} {job.name}".rstrip(), *_last_message(job.log)]
    advice = [
        "What is done stays. Mend what is named above, then start the same command again: it goes on from here, training from its",
        f"last checkpoint. What is left, and why: {why}",
    ]
    return "\n".join([head, *lines, *advice])


def _what_ran(jobs: Sequence[RunJob]) -> list[str]:
    """One line a rule: jobs and their time together."""
    groups: dict[str, list[RunJob]] = {}
    for job in jobs:
        groups.setdefault(job.rule, []).append(job)
    width = max(map(len, groups), default=0)
    return [
        f"  {rule:{width}}  {_jobs(len(group)):>9}  {timedelta(seconds=round(sum(map(_seconds, group))))}"
        for rule, group in groups.items()
    ]


def _seconds(job: RunJob) -> float:
    """A job's duration from Snakemake's benchmark table; 0 without one."""
    if job.benchmark is None or not job.benchmark.is_file():
        return 0.0
    lines = job.benchmark.read_text(encoding="utf-8").splitlines()
    return float(lines[1].split("\t")[0]) if len(lines) > 1 else 0.0


def _last_message(log: Path | None) -> list[str]:
    """Where a failed job's log is, and the last message in it."""
    if log is None or not log.is_file() or not log.stat().st_size:
        return ["    it left no log: it did not start, or was killed at once"]
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("[")]
    message = lines[starts[-1] if starts else 0 :]
    cut = ["    ..."] if len(message) > LAST_LINES else []
    return [f"    log: {log}", *(f"    {line}" for line in message[:LAST_LINES]), *cut]


def _jobs(number: int) -> str:
    return f"{number} job{'s' * (number != 1)}"
