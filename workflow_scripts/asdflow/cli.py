"""The `asdflow` command: evaluate anyone's submission, detect anomalies in new recordings."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from asdflow.errors import InputError

app = typer.Typer(
    help="Learn what a healthy machine sounds like and find the sounds that differ.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Learn what a healthy machine sounds like and find the sounds that differ."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("asdflow").setLevel(logging.INFO)


def readable_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show an InputError as its message and end with exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from None

    return run


@app.command()
@readable_errors
def evaluate(
    year: Annotated[int, typer.Option(help="Challenge year whose rules hold, 2020 to 2026.")],
    submission: Annotated[Path, typer.Option(help="Folder with the submission's CSV files.")],
    labels: Annotated[
        Path, typer.Option(help="CSV with file_name, machine, section, domain, label; or a clips.parquet.")
    ],
    against: Annotated[
        Path | None, typer.Option(help="A second submission: the difference with its paired interval.")
    ] = None,
    replicates: Annotated[int, typer.Option(min=0, help="Bootstrap resamples; 0 gives no intervals.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Official metrics of a submission folder, matched by file name, with 95 % intervals."""
    from asdflow.detection.evaluate_submission import evaluate_submission

    result = evaluate_submission(year, submission, labels, against, replicates)
    typer.echo(result.as_json() if json else result.as_text())


if __name__ == "__main__":
    app()
