"""The one error class for what a user can mend: a summary, every problem found, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(Exception):
    """Wrong input: names the files and values, and what to do about them.

    Parameters
    ----------
    summary : one sentence saying what is wrong.
    problems : every offending file or value, one line each, so that all can be mended in one go.
    remedy : what the user can do.
    """

    def __init__(self, summary: str, problems: Iterable[str] = (), remedy: str = "") -> None:
        self.summary = summary
        self.problems = list(problems)
        self.remedy = remedy
        super().__init__(summary)

    def __str__(self) -> str:
        lines = [self.summary, *(f"  - {problem}" for problem in self.problems)]
        if self.remedy:
            lines.append(f"Remedy: {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type[InputError], tuple[str, list[str], str]]:
        return type(self), (self.summary, self.problems, self.remedy)
