"""Recordings: cheap inspection before anything runs, and reading as mono float32 at the wanted rate.

Audio settings are a mapping with the keys `sample_rate` (Hz, default 16000), `resample` (default true; false
refuses other rates), `channel` (`mean`, `first`, `last`, `near`, `far`, a number counted from 0, or `refuse`;
default `mean`) and `minimum_seconds` (default 0.1).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from asdflow.errors import InputError

BLOCK_FRAMES = 1 << 16
READ_FRAMES = 1 << 20
_UNKNOWN_SIZE = 0xFFFFFFFF
_UNKNOWN_FRAMES = (1 << 63) - 1
# Two-channel clips of DCASE 2026: the near microphone is left, the far one right.
_NAMED_CHANNELS: dict[str | int, int] = {"first": 0, "last": -1, "near": 0, "far": 1}


class AudioInfo(NamedTuple):
    """What a file holds: samples per channel, Hz, number of channels."""

    n_samples: int
    sample_rate: int
    channels: int


class _WavTruncatedError(Exception):
    """The file ends before the samples that its header declares."""


def inspect_audio(path: str | Path, settings: Mapping[str, Any]) -> AudioInfo | str:
    """Look at a recording without decoding all of it; an `AudioInfo`, or a text saying what is wrong.

    Found: missing and empty files, what is not audio, a declared length that the file does not hold (WAV: chunk
    sizes; FLAC: the last block is decoded), not a number or infinite in float formats (full scan, in blocks), a
    refused sample rate or number of channels, less than `minimum_seconds`. Costs well under a millisecond for
    integer formats.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            return "is empty (0 bytes)"
        with path.open("rb") as handle:
            _check_wav_chunks(handle)
        with soundfile.SoundFile(path) as sound:
            return _inspect_open(sound, settings)
    except _WavTruncatedError as error:
        return str(error)
    except soundfile.LibsndfileError as error:
        return f"cannot be read as audio ({error.error_string.rstrip('.')})"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"


def _inspect_open(sound: soundfile.SoundFile, settings: Mapping[str, Any]) -> AudioInfo | str:
    if sound.frames == _UNKNOWN_FRAMES:
        return "declares no length (as a streaming encoder writes it); encode the recording again from a file"
    info = AudioInfo(sound.frames, sound.samplerate, sound.channels)
    if problem := rate_problem(info.sample_rate, settings) or channel_problem(info.channels, settings):
        return problem
    seconds, least = info.n_samples / info.sample_rate, float(settings.get("minimum_seconds", 0.1))
    if seconds < least:
        return f"is {seconds:.3f} s long, shorter than {least:g} s"
    if sound.format == "FLAC" and not _last_block_is_there(sound):
        return f"is truncated: {info.n_samples} samples are declared, the end cannot be decoded"
    if sound.subtype in ("FLOAT", "DOUBLE") and (position := _first_not_finite(sound)) is not None:
        return f"holds a value that is not a finite number, at sample {position}"
    return info


def rate_problem(sample_rate: int, settings: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a sample rate in Hz under the settings, or None."""
    wanted = int(settings.get("sample_rate", 16000))
    if sample_rate == wanted or settings.get("resample", True):
        return None
    return f"has a sample rate of {sample_rate} Hz, {wanted} Hz is wanted and audio.resample is false"


def channel_problem(channels: int, settings: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a number of channels under the settings, or None."""
    policy = settings.get("channel", "mean")
    if policy == "refuse" and channels > 1:
        return f"has {channels} channels and audio.channel is refuse"
    index = _NAMED_CHANNELS.get(policy, policy)
    if isinstance(index, int) and index >= channels:
        return f"has {channels} channel{'s' * (channels > 1)}, audio.channel wants {policy}"
    return None


def _check_wav_chunks(handle: BinaryIO) -> None:
    """Compare a WAV file's declared data size with what is really there (libsndfile silently reads less)."""
    head = handle.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return
    end = handle.seek(0, 2)
    position, long_size = 12, 0
    while position + 8 <= end:
        handle.seek(position)
        chunk, size = struct.unpack("<4sI", handle.read(8))
        if chunk == b"data":
            size = long_size if long_size and size == _UNKNOWN_SIZE else size
            held = end - position - 8
            if size != _UNKNOWN_SIZE and size > held:
                raise _WavTruncatedError(
                    f"is truncated: {size} bytes of samples are declared, {held} are there"
                )
            return
        if not chunk.isascii() or b"\0" in chunk:
            return
        if chunk == b"ds64" and size >= 16:
            long_size = int.from_bytes(handle.read(16)[8:], "little")
        position += 8 + size + size % 2
    raise _WavTruncatedError("is truncated: the file ends before its samples begin")


def _last_block_is_there(sound: soundfile.SoundFile) -> bool:
    wanted = min(1024, sound.frames)
    try:
        sound.seek(sound.frames - wanted)
        return len(sound.read(wanted, dtype="int32")) == wanted
    except soundfile.LibsndfileError:
        return False


def _first_not_finite(sound: soundfile.SoundFile) -> int | None:
    sound.seek(0)
    start = 0
    for block in sound.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            return start + int(np.argmin(finite))
        start += len(block)
    return None


def read_audio(path: str | Path, settings: Mapping[str, Any]) -> np.ndarray:
    """Read a whole recording: float32 [samples] in [-1, 1], mono, at the wanted rate (soxr, high quality).

    Raises `InputError` for a file that cannot be decoded or whose rate or channels the settings refuse.
    """
    parts = list(_read_parts(Path(path), settings))
    return np.concatenate(parts) if len(parts) != 1 else parts[0]


def content_hash(samples: np.ndarray) -> str:
    """Hexadecimal SHA-256 of a recording's samples, float32 [samples] as `read_audio` gives them: equal where two sound the same."""
    return hashlib.sha256(np.ascontiguousarray(samples, dtype=np.float32).data).hexdigest()


def read_blocks(path: str | Path, settings: Mapping[str, Any], block_samples: int) -> Iterator[np.ndarray]:
    """Stream a recording of any length in bounded memory: float32 blocks, the very samples of `read_audio`.

    Every block has `block_samples` samples at the wanted rate, but the last, which has what is left (at least 1).
    Raises as `read_audio` does.
    """
    held: list[np.ndarray] = []
    n_held = 0
    for part in _read_parts(Path(path), settings):
        held.append(part)
        n_held += len(part)
        if n_held < block_samples:
            continue
        samples = np.concatenate(held)
        whole = n_held // block_samples * block_samples
        yield from samples[:whole].reshape(-1, block_samples)
        held, n_held = [samples[whole:]], n_held - whole
    if n_held:
        yield np.concatenate(held)


def _read_parts(path: Path, settings: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Yield the mono samples at the wanted rate in pieces of about a minute."""
    wanted = int(settings.get("sample_rate", 16000))
    try:
        with soundfile.SoundFile(path) as sound:
            problem = rate_problem(sound.samplerate, settings) or channel_problem(sound.channels, settings)
            if problem:
                raise InputError("A recording cannot be used.", [f"{path}: {problem}"], _REMEDY)
            policy = settings.get("channel", "mean")
            if sound.samplerate == wanted:
                for block in _stored_parts(sound):
                    yield _mono(block, policy)
                return
            stream = soxr.ResampleStream(sound.samplerate, wanted, 1, dtype="float32", quality="HQ")
            for block in _stored_parts(sound):
                yield stream.resample_chunk(_mono(block, policy))
            yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError("A recording cannot be read.", [f"{path}: {error}"], _REMEDY) from error


_REMEDY = "Replace the file, or change the audio settings of its data set (audio.resample, audio.channel)."


def _stored_parts(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Yield the stored samples, float32 [frames, channels]; at least one piece, so that no reader sees nothing."""
    block = sound.read(READ_FRAMES, dtype="float32", always_2d=True)
    while True:
        yield block
        block = sound.read(READ_FRAMES, dtype="float32", always_2d=True)
        if not len(block):
            return


def _mono(block: np.ndarray, policy: str | int) -> np.ndarray:
    """Reduce float32 [frames, channels] to [frames] by the channel policy."""
    if block.shape[1] == 1:
        return block[:, 0]
    index = _NAMED_CHANNELS.get(policy, policy)
    if not isinstance(index, int):
        return block.mean(axis=1, dtype=np.float32)
    return np.ascontiguousarray(block[:, index])
