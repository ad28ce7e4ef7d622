"""Detection on new recordings: scores, decisions and what stands behind them, one row a recording."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from asdflow.data.audio import AudioInfo
from asdflow.data.listing import AUDIO_SUFFIXES
from asdflow.detection.drift import SILENT_DB, Sound, better_channel, describe, warnings
from asdflow.detection.system import System, WindowScores
from asdflow.detection.threshold import percent
from asdflow.detection.windows import Window, inspect_recording, windows
from asdflow.errors import InputError
from asdflow.files import atomic_path
from asdflow.tables import write_parquet

log = logging.getLogger(__name__)

WINDOWS_PER_PASS = 16
SOUNDS_PER_RECORDING = 32
"""Windows of a recording that are described for drift warnings; of a longer one, so many from its beginning."""
MOST_SECONDS_AT_ONCE = 120.0


@dataclass(frozen=True)
class Recording:
    """What came out for one recording; a refused one has a problem and no score.

    Attributes
    ----------
    anomaly_score : of the worst window. threshold : what it was compared with.
    expected_false_alarm_rate : share of normal recordings of this length expected to score as high.
    decision : 1 anomalous, 0 not. windows, windows_over : how many windows, and how many of them over the threshold of a
    single window. worst_start_s, worst_end_s : time of the worst window. nearest_clip, nearest_attributes : the normal
    training clip that the worst window is nearest to, and its attributes as JSON.
    """

    recording: str
    machine: str
    section: str
    anomaly_score: float | None = None
    threshold: float | None = None
    expected_false_alarm_rate: float | None = None
    decision: int | None = None
    duration_s: float | None = None
    windows: int = 0
    windows_over: int = 0
    worst_start_s: float | None = None
    worst_end_s: float | None = None
    nearest_clip: str = ""
    nearest_attributes: str = ""
    notes: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Scored:
    """A recording's row, its windows (start in s, score) float64 [n, 2], and what it sounds like."""

    row: Recording
    over_time: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    sounds: tuple[Sound, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to detect: seconds between windows (None: half a window), another false-alarm rate, threads, device."""

    hop: float | None = None
    false_alarm_rate: float | None = None
    workers: int = 1


DEFAULT_OPTIONS = Options()


def find_recordings(paths: Iterable[Path]) -> list[Path]:
    """The files given and the WAV and FLAC files below the folders given, each once, in order.

    Raises InputError for a folder without recordings.
    """
    found: dict[Path, None] = {}
    empty = []
    for path in map(Path, paths):
        if not path.is_dir():
            found[path] = None
            continue
        inside = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith(".")
        )
        empty += [] if inside else [f"{path}: no WAV or FLAC file"]
        found |= dict.fromkeys(inside)
    if empty:
        raise InputError("there is nothing to score", empty, "give WAV or FLAC files, or folders with them")
    return list(found)


def score_recording(
    system: System, path: Path, options: Options, passes: ThreadPoolExecutor | None = None
) -> Scored:
    """Score one recording; what is wrong with it becomes its `problem`.

    `passes` are threads that score its windows; without them they are scored one batch after the other.
    """
    info = inspect_recording(path, system.audio, system.lengths)
    if isinstance(info, str):
        return Scored(Recording(str(path), system.machine, system.section, problem=info))
    try:
        starts, scores, nearest, sounds = _score_windows(system, path, info, options, passes)
    except InputError as error:
        problem = "; ".join(error.problems) or error.summary
        return Scored(Recording(str(path), system.machine, system.section, problem=problem))
    over_time = np.stack([starts / system.rate, scores], axis=1)
    row = _row(system, path, info, over_time, nearest, options)
    return Scored(_with_notes(row, _notes(system, path, info, sounds)), over_time, tuple(sounds))


def _score_windows(
    system: System, path: Path, info: AudioInfo, options: Options, passes: ThreadPoolExecutor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Sound]]:
    """Starts, scores and nearest training clips of a recording's windows [n], and what the first of them sound like."""
    hop = round(options.hop * system.rate) if options.hop else system.lengths.window // 2
    at_once = max(1, min(WINDOWS_PER_PASS, int(MOST_SECONDS_AT_ONCE * system.rate / system.lengths.window)))
    starts: list[int] = []
    found: list[WindowScores] = []
    sounds: list[Sound] = []
    running: deque[Future[WindowScores]] = deque()
    for batch in _batches(windows(path, info, system.audio, system.lengths, max(1, hop)), at_once):
        samples = [window.samples for window in batch]
        starts += [window.start for window in batch]
        sounds += [describe(one) for one in samples[: SOUNDS_PER_RECORDING - len(sounds)]]
        if passes is None:
            found.append(system.score(samples))
            continue
        running.append(passes.submit(system.score, samples))
        if len(running) > options.workers:  # so many batches are held in memory, however long the recording
            found.append(running.popleft().result())
    found += [one.result() for one in running]
    values = np.concatenate([one.anomaly_score for one in found])
    if not np.isfinite(values).all():
        raise InputError("the anomaly score is not a finite number", [], "")
    return np.array(starts), values, np.concatenate([one.nearest for one in found]), sounds


def _batches(items: Iterator[Window], size: int) -> Iterator[list[Window]]:
    while batch := list(islice(items, size)):
        yield batch


def _row(
    system: System, path: Path, info: AudioInfo, over_time: np.ndarray, nearest: np.ndarray, options: Options
) -> Recording:
    """The row of a recording: its worst window against the threshold for a recording of this length."""
    threshold = system.unit.threshold
    seconds, window = info.n_samples / info.sample_rate, system.lengths.window / system.rate
    chances = max(1.0, seconds / window)
    rate = options.false_alarm_rate or threshold.false_alarm_rate
    single = threshold.threshold if options.false_alarm_rate is None else threshold.at_rate(rate)
    limit = single if chances == 1.0 else threshold.at_rate(-math.expm1(math.log1p(-rate) / chances))
    worst = int(np.argmax(over_time[:, 1]))
    score = float(over_time[worst, 1])
    of_window = min(float(threshold.false_alarms_at([score])[0]), 1.0)
    start = float(over_time[worst, 0])
    return Recording(
        recording=str(path),
        machine=system.machine,
        section=system.section,
        anomaly_score=score,
        threshold=limit,
        expected_false_alarm_rate=-math.expm1(chances * math.log1p(-of_window)) if of_window < 1 else 1.0,
        decision=int(score > limit),
        duration_s=seconds,
        windows=len(over_time),
        windows_over=int(np.sum(over_time[:, 1] > single)),
        worst_start_s=start,
        worst_end_s=min(start + window, seconds),
        nearest_clip=system.unit.clip_ids[int(nearest[worst])],
        nearest_attributes=system.unit.attributes[int(nearest[worst])],
    )


def _notes(system: System, path: Path, info: AudioInfo, sounds: Sequence[Sound]) -> list[str]:
    """What a reader should know about the recording beside its score."""
    notes = []
    if info.sample_rate != system.rate:
        notes.append(f"resampled from {info.sample_rate} Hz")
    if info.channels > 1:
        notes.append(f"{info.channels} channels, taken: {system.audio.get('channel', 'mean')}")
        if (hint := better_channel(path, system.reference, sounds[0])) is not None:
            notes.append(hint)
    if all(sound.level < SILENT_DB for sound in sounds):
        notes.append("silent")
    if np.mean([sound.clipping for sound in sounds]) > max(2 * system.reference.clipping, 1e-4):
        notes.append("clipped")
    return notes


def _with_notes(row: Recording, notes: Sequence[str]) -> Recording:
    return Recording(**{**row.to_dict(), "notes": "; ".join(notes)})


def one_threaded(workers: int) -> ThreadPoolExecutor:
    """Threads whose tensor operations take one thread each."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def score_all(
    system: System,
    paths: Sequence[Path],
    options: Options,
    done: Callable[[Scored], None] = lambda scored: None,
) -> list[Scored]:
    """Score recordings in parallel threads, results in the order of `paths`; `done` is called in this order as they come.

    Threads that read recordings hand their windows to as many threads that score them, so that one long recording keeps
    all of them busy too.
    """
    results = []
    with one_threaded(options.workers) as passes, one_threaded(options.workers) as readers:
        waiting = iter(paths)
        running = deque(
            readers.submit(score_recording, system, path, options, passes)
            for path in islice(waiting, 2 * options.workers)
        )
        while running:
            scored = running.popleft().result()
            running.extend(
                readers.submit(score_recording, system, path, options, passes) for path in islice(waiting, 1)
            )
            done(scored)
            results.append(scored)
    return results


def drift_warnings(system: System, scored: Iterable[Scored]) -> list[str]:
    """What the recordings as a whole have that the training clips have not."""
    return warnings([sound for one in scored for sound in one.sounds], system.reference)


def results_table(rows: Iterable[Recording]) -> pd.DataFrame:
    """One row a recording, the columns of `Recording`."""
    columns = list(Recording.__dataclass_fields__)
    table = pd.DataFrame([row.to_dict() for row in rows], columns=columns)
    return table.astype({"decision": "Int64", "windows": "int64", "windows_over": "int64"})


def write_results(rows: Iterable[Recording], path: Path) -> None:
    """Write the results as CSV or Parquet, after the suffix of `path`; raises InputError for another suffix."""
    write_table(results_table(rows), path)


def write_windows(scored: Iterable[Scored], path: Path) -> None:
    """Write the score over time: recording, start_s, anomaly_score; CSV or Parquet."""
    parts = [
        pd.DataFrame(
            {"recording": s.row.recording, "start_s": s.over_time[:, 0], "anomaly_score": s.over_time[:, 1]}
        )
        for s in scored
    ]
    empty = pd.DataFrame({"recording": [], "start_s": [], "anomaly_score": []})
    write_table(pd.concat(parts, ignore_index=True) if parts else empty, path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically as CSV or Parquet."""
    check_output(path)
    if Path(path).suffix == ".parquet":
        write_parquet(table, path)
        return
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def check_output(path: Path) -> None:
    """Raise InputError for an output that is neither CSV nor Parquet."""
    if Path(path).suffix not in (".csv", ".parquet"):
        raise InputError(
            f"{path}: results are written as .csv or .parquet", remedy="give --output one of these suffixes"
        )


def exit_code(rows: Iterable[Recording]) -> int:
    """0 none anomalous, 1 some anomalous, 2 some could not be scored (whatever else)."""
    known = list(rows)
    if any(row.problem for row in known):
        return 2
    return int(any(row.decision for row in known))


def summary_line(row: Recording) -> str:
    """One line for the terminal."""
    if row.problem:
        return f"refused    {row.recording}: {row.problem}"
    verdict = "ANOMALOUS " if row.decision else "normal    "
    attributes = ", ".join(f"{k} {v}" for k, v in json.loads(row.nearest_attributes or "{}").items())
    where = (
        ""
        if row.windows == 1
        else f", worst at {row.worst_start_s:.1f}-{row.worst_end_s:.1f} s of {row.duration_s:.1f} s"
    )
    return (
        f"{verdict} {row.recording}: score {row.anomaly_score:.3f} (threshold {row.threshold:.3f}; "
        f"{percent(row.expected_false_alarm_rate or 0.0)} of normal recordings score as high){where}; "
        f"nearest {row.nearest_clip}{' (' + attributes + ')' if attributes else ''}"
        f"{'; ' + row.notes if row.notes else ''}"
    )


def detect(
    model_dir: Path,
    recordings: Sequence[Path],
    machine: str | None = None,
    section: str | None = None,
    output: Path | None = None,
    plot_dir: Path | None = None,
    windows_output: Path | None = None,
    options: Options = DEFAULT_OPTIONS,
    device: str = "cpu",
) -> list[Recording]:
    """Score recordings with a trained system's folder; what the `detect` rule and the command do.

    Parameters
    ----------
    model_dir : folder that `export_detector` wrote.
    recordings : WAV or FLAC files and folders of them.
    machine, section : which machine was recorded; may be left out where the system knows one only.
    output, windows_output : CSV or Parquet for the results, and for the score over time.
    plot_dir : folder for one PNG a recording.

    Returns one row a recording; a recording that cannot be scored has a `problem` and the others go on. Raises InputError for a
    wrong folder, machine, output, or a folder without recordings.
    """
    from asdflow.detection.plot import plot_names, plot_recording

    for path in filter(None, (output, windows_output)):
        check_output(path)
    paths = find_recordings(recordings)
    system = System(model_dir, machine, section, device)
    names = plot_names(paths)

    def report(scored: Scored) -> None:
        log.info("%s", summary_line(scored.row))
        if plot_dir is not None and not scored.row.problem:
            plot_recording(system, scored, Path(plot_dir) / names[Path(scored.row.recording)])

    results = score_all(system, paths, options, report)
    for warning in drift_warnings(system, results):
        log.warning("Warning, the recordings as a whole differ from the training clips - %s", warning)
    if output is not None:
        write_results([scored.row for scored in results], output)
    if windows_output is not None:
        write_windows(results, windows_output)
    return [scored.row for scored in results]
