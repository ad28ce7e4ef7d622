"""The `asdflow` command: evaluate anyone's submission, detect anomalies in new recordings, compare two runs."""

from __future__ import annotations

import functools
import logging
import os
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


class Terminal(logging.Handler):
    """Shows messages on standard output, warnings and errors on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        typer.echo(self.format(record), err=record.levelno >= logging.WARNING)


@app.callback()
def main() -> None:
    """Learn what a healthy machine sounds like and find the sounds that differ."""
    logger = logging.getLogger("asdflow")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, Terminal) for handler in logger.handlers):
        logger.addHandler(Terminal())


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


@app.command()
@readable_errors
def detect(
    model_dir: Annotated[
        Path, typer.Argument(help="Folder of a trained system, as the workflow exports it.")
    ],
    recordings: Annotated[
        list[Path] | None, typer.Argument(help="WAV or FLAC files, and folders of them.")
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Which machine was recorded.")] = None,
    section: Annotated[str | None, typer.Option(help="Which section, where the machine has several.")] = None,
    output: Annotated[Path | None, typer.Option(help="Results as .csv or .parquet.")] = None,
    windows: Annotated[
        Path | None, typer.Option(help="The score over time of every recording as .csv or .parquet.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for one picture (PNG) a recording.")] = None,
    watch: Annotated[
        Path | None, typer.Option(help="Follow a folder that a recorder writes to; needs --output.")
    ] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(min=1e-9, max=0.999, help="Another false-alarm rate than the trained one.")
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(min=0.01, help="Seconds between windows of long recordings; half a window."),
    ] = None,
    settle: Annotated[
        float, typer.Option(min=0, help="--watch: seconds a file must have stood still.")
    ] = 2.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Recordings scored at once; all cores.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Score new recordings. Exit code 0: none anomalous, 1: some anomalous, 2: some recordings or arguments are wrong."""
    from asdflow.detection.command import run_detect, run_watch
    from asdflow.detection.detect import Options

    options = Options(hop, false_alarm_rate, workers or len(os.sched_getaffinity(0)))
    if watch is not None:
        code = run_watch(
            model_dir, recordings or [], watch, machine, section, output, options, settle, device
        )
    else:
        code = run_detect(
            model_dir, recordings or [], machine, section, output, plot, windows, options, device
        )
    raise typer.Exit(code)


@app.command()
@readable_errors
def compare(
    run_a: Annotated[Path, typer.Argument(help="Results folder of the earlier run.")],
    run_b: Annotated[Path, typer.Argument(help="Results folder of the later run.")],
) -> None:
    """Tell what changed between two results folders: code, configuration, scores. Exit code 0: nothing, 1: something, 2: error."""
    from asdflow.report.compare import compare as compare_runs

    comparison = compare_runs(run_a, run_b)
    typer.echo(comparison.as_text())
    raise typer.Exit(0 if comparison.identical else 1)


if __name__ == "__main__":
    app()
