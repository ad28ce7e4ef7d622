"""A picture of one recording: its spectrogram, and below it the anomaly score over time with the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from asdflow.data.audio import read_blocks
from asdflow.detection.threshold import percent
from asdflow.files import atomic_path

if TYPE_CHECKING:
    from asdflow.detection.detect import Scored
    from asdflow.detection.system import System

WIDTH, TOP, MIDDLE, BOTTOM = 1000, 260, 30, 200
LEFT, RIGHT, HEAD, FOOT = 80, 20, 56, 44
FFT, HOP, BANDS = 1024, 512, 130
DYNAMIC_RANGE_DB = 80.0
INK, GRID, SCORE, LIMIT = (30, 30, 30), (220, 220, 220), (0, 90, 160), (200, 50, 30)
COLOURS = np.array(
    [(0, 0, 4), (60, 15, 110), (150, 45, 125), (225, 85, 95), (252, 165, 105), (252, 253, 191)], dtype=float
)
"""Six colours from dark to light of even steps in brightness, between which is interpolated."""

Floats = npt.NDArray[np.float64]


def plot_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for each recording's picture: its stem, with a number where stems repeat."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        name, number = f"{path.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}.png"
        taken.add(name)
        names[path] = name
    return names


def plot_recording(system: System, scored: Scored, path: Path) -> None:
    """Draw a scored recording as a PNG; reads the recording once more, in bounded memory."""
    row = scored.row
    assert row.duration_s is not None and row.threshold is not None
    picture = Image.new("RGB", (LEFT + WIDTH + RIGHT, HEAD + TOP + MIDDLE + BOTTOM + FOOT), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    verdict, rate = "anomalous" if row.decision else "normal", row.expected_false_alarm_rate or 0.0
    _text(draw, (LEFT, 8), f"{Path(row.recording).name} - {row.machine}: {verdict}", 18)
    _text(
        draw,
        (LEFT, 32),
        f"anomaly score {row.anomaly_score:.3f}, threshold {row.threshold:.3f}, "
        f"{percent(rate)} of normal recordings score as high",
        13,
    )
    picture.paste(colour(spectrogram(system, Path(row.recording), row.duration_s)), (LEFT, HEAD))
    for hertz in (100, 500, 1000, 2000, 4000, 8000):
        y = HEAD + TOP - 1 - round((TOP - 1) * float(_mel(hertz) / _mel(8000)))
        _text(draw, (LEFT - 8, y), f"{hertz / 1000:g} kHz", 12, "rm")
    _score_curve(draw, scored, system.lengths.window / system.rate)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _score_curve(draw: ImageDraw.ImageDraw, scored: Scored, window: float) -> None:
    """Each window's score as a step over the time it covers, centre to centre; the threshold as a line."""
    row, (starts, scores) = scored.row, scored.over_time.T
    assert row.duration_s is not None and row.threshold is not None
    seconds = row.duration_s
    low = min(0.0, float(scores.min()))
    high = 1.1 * max(float(scores.max()), row.threshold, low + 1e-9)
    top, bottom = HEAD + TOP + MIDDLE, HEAD + TOP + MIDDLE + BOTTOM

    def x(second: float) -> float:
        return LEFT + WIDTH * min(second / seconds, 1.0)

    def y(score: float) -> float:
        return bottom - BOTTOM * (score - low) / (high - low)

    for value in _ticks(low, high):
        draw.line([(LEFT, y(value)), (LEFT + WIDTH, y(value))], GRID)
        _text(draw, (LEFT - 8, y(value)), f"{value:g}", 12, "rm")
    for second in _ticks(0.0, seconds, 8):
        draw.line([(x(second), bottom), (x(second), bottom + 5)], INK)
        _text(draw, (x(second), bottom + 8), _clock(second, seconds), 12, "mt")
    points = [
        (x(start + min(window, seconds) / 2), y(score)) for start, score in zip(starts, scores, strict=True)
    ]
    points = [(LEFT, points[0][1]), *points, (LEFT + WIDTH, points[-1][1])]
    draw.line(points, SCORE, 2)
    draw.line([(LEFT, y(row.threshold)), (LEFT + WIDTH, y(row.threshold))], LIMIT, 1)
    _text(draw, (LEFT + WIDTH - 4, y(row.threshold) - 3), "threshold", 12, "rb", LIMIT)
    draw.rectangle([LEFT, top, LEFT + WIDTH, bottom], outline=INK)
    _text(draw, (LEFT + 4, top + 4), "anomaly score", 12, "lt")


def spectrogram(system: System, path: Path, seconds: float) -> Floats:
    """Mel power in dB [BANDS, WIDTH], averaged over the time that each column of the picture covers."""
    weights = mel_triangles(system.rate)
    sums, counts = np.zeros((BANDS, WIDTH)), np.zeros(WIDTH)
    held, position = np.zeros(0, dtype=np.float32), 0
    for block in read_blocks(path, system.audio, 1 << 18):
        held = np.concatenate([held, block])
        if len(held) < FFT:
            continue
        frames = np.lib.stride_tricks.sliding_window_view(held, FFT)[::HOP]
        power = (np.abs(np.fft.rfft(frames * np.hanning(FFT), axis=1)) ** 2) @ weights
        centres = (position + HOP * np.arange(len(frames)) + FFT / 2) / (seconds * system.rate)
        columns = np.minimum((centres * WIDTH).astype(int), WIDTH - 1)
        np.add.at(sums.T, columns, power)
        np.add.at(counts, columns, 1)
        position, held = position + HOP * len(frames), held[HOP * len(frames) :]
    filled = np.flatnonzero(counts)
    if not len(filled):
        return np.full((BANDS, WIDTH), -100.0)
    nearest = filled[np.abs(np.arange(WIDTH)[:, None] - filled[None, :]).argmin(axis=1)]
    return np.asarray(10 * np.log10(sums[:, nearest] / counts[nearest] + 1e-10), dtype=np.float64)


def mel_triangles(rate: int) -> Floats:
    """Triangular filters [FFT // 2 + 1, BANDS], equally wide on the mel scale up to 8 kHz, each with at least one bin."""
    hertz = np.arange(FFT // 2 + 1) * rate / FFT
    corners = np.linspace(0, _mel(8000), BANDS + 2)
    position = _mel(hertz)
    step = corners[1]
    triangles = np.maximum(0.0, 1 - np.abs(position[:, None] - corners[None, 1:-1]) / step)
    empty = triangles.sum(axis=0) == 0
    triangles[
        np.abs(position[:, None] - corners[None, 1:-1]).argmin(axis=0)[empty], np.flatnonzero(empty)
    ] = 1.0
    return np.asarray(triangles / triangles.sum(axis=0), dtype=np.float64)


def _mel(hertz: npt.ArrayLike) -> Floats:
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0), dtype=np.float64)


def colour(decibels: Floats) -> Image.Image:
    """A spectrogram [BANDS, WIDTH] in dB as a picture, low frequencies at the bottom."""
    top = float(np.quantile(decibels, 0.999))
    share = np.clip(1 + (decibels - top) / DYNAMIC_RANGE_DB, 0, 1)[::-1]
    steps = np.linspace(0, 1, len(COLOURS))
    pixels = np.stack([np.interp(share, steps, COLOURS[:, c]) for c in range(3)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).resize((WIDTH, TOP), Image.Resampling.BILINEAR)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high."""
    step = 10 ** np.floor(np.log10(max(high - low, 1e-12) / about))
    step *= min((m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about), default=10)
    return [
        float(f"{value:.10g}") for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    ]


def _clock(second: float, total: float) -> str:
    if total < 120:
        return f"{second:g} s"
    minutes = round(second) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{round(second) % 60:02d}"


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    anchor: str = "la",
    fill: tuple[int, int, int] = INK,
) -> None:
    draw.text(place, text, fill, ImageFont.load_default(size), anchor)
