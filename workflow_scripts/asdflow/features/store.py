"""The feature cache: one HDF5 file per machine with contiguous float16 frames, written whole and read through a memory map."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from asdflow.errors import InputError
from asdflow.features.front_end import FrontEndConfig

FORMAT = "asdflow-features"
VERSION = 1
INDEX = ("clip_id", "n_frames", "offset", "content_hash", "crc32")
REMEDY = "remove it and run the extract_features step again"
Frames = npt.NDArray[np.float16]
RESIDENT_BYTES = 32_000_000
"""Bytes of frames that a store keeps mapped at most: memory must not grow with the number of clips."""
NOT_PICKLED = ("_maps", "_handles", "_resident", "_checked")


def front_end_digest(config: FrontEndConfig) -> str:
    """Hexadecimal SHA-256 of a front end's parameters: features with equal digests may be mixed."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()


def _index_digest(file: h5py.File) -> str:
    """SHA-256 over the index and the parameters, so that any change of them shows."""
    digest = hashlib.sha256(str(file.attrs["front_end"]).encode())
    for name in INDEX:
        digest.update(np.ascontiguousarray(file[name][:]).tobytes())
    return digest.hexdigest()


class FeatureWriter:
    """Writes one machine's feature file: laid out at once from the clips' lengths, filled in any order by any thread.

    Use: `FeatureWriter(path, clip_ids, n_frames, config)`, `write(row, frames, content_hash)` for every row, `finish()`.
    The bytes of the file depend on the content only, not on the order of writing. Give a temporary path.
    """

    def __init__(
        self, path: Path, clip_ids: Sequence[str], n_frames: npt.ArrayLike, config: FrontEndConfig
    ) -> None:
        self.path, self.bins = path, config.bins
        self.n_frames = np.asarray(n_frames, dtype=np.int64)
        self.offset = np.concatenate([[0], np.cumsum(self.n_frames)[:-1]]).astype(np.int64)[: len(clip_ids)]
        self.crc32 = np.zeros(len(clip_ids), np.uint32)
        self.content_hash = np.zeros(len(clip_ids), "S64")
        self.first_byte = self._lay_out(clip_ids, config)
        self._file = path.open("r+b", buffering=0)

    def _lay_out(self, clip_ids: Sequence[str], config: FrontEndConfig) -> int:
        """Create the file with room for everything; return where the frames begin in it."""
        with h5py.File(self.path, "w", libver="v110") as file:
            file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
            file.attrs["front_end"] = json.dumps(config.to_dict(), sort_keys=True)
            file.attrs["front_end_digest"] = front_end_digest(config)
            strings = h5py.string_dtype("utf-8", max((len(i.encode()) for i in clip_ids), default=0) or 1)
            file.create_dataset("clip_id", data=np.array([i.encode() for i in clip_ids], dtype=strings))
            file.create_dataset("n_frames", data=self.n_frames)
            file.create_dataset("offset", data=self.offset)
            file.create_dataset("content_hash", data=self.content_hash)
            file.create_dataset("crc32", data=self.crc32)
            file.attrs["index_digest"] = "0" * 64
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.CONTIGUOUS)
            properties.set_obj_track_times(False)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((int(self.n_frames.sum()), self.bins))
            frames = h5py.h5d.create(file.id, b"frames", h5py.h5t.IEEE_F16LE, space, properties)
            return frames.get_offset() or 0

    def write(self, row: int, frames: Frames, content_hash: str) -> None:
        """Write the frames float16 [n_frames, bins] of the clip in `row`; threads may write different rows at once."""
        if frames.shape != (self.n_frames[row], self.bins) or frames.dtype != np.float16:
            raise ValueError(
                f"row {row} takes float16 {(self.n_frames[row], self.bins)}, not {frames.dtype} {frames.shape}"
            )
        data = np.ascontiguousarray(frames).data.cast("B")
        position = self.first_byte + int(self.offset[row]) * self.bins * 2
        while data:
            written = os.pwrite(self._file.fileno(), data, position)
            data, position = data[written:], position + written
        self.crc32[row] = zlib.crc32(np.ascontiguousarray(frames).data)
        self.content_hash[row] = content_hash.encode()

    def finish(self) -> None:
        """Write the checksums and content hashes: the last thing to do."""
        self._file.close()
        with h5py.File(self.path, "r+", libver="v110") as file:
            file["crc32"][:] = self.crc32
            file["content_hash"][:] = self.content_hash
            file.attrs.modify("index_digest", _index_digest(file))


def write_features(
    path: Path,
    clip_ids: Sequence[str],
    frames: Sequence[Frames],
    content_hashes: Sequence[str],
    config: FrontEndConfig,
) -> None:
    """Write a feature file from frames that are at hand (tests, small sets); `extract_features` streams."""
    writer = FeatureWriter(path, clip_ids, [len(f) for f in frames], config)
    for row, (values, content_hash) in enumerate(zip(frames, content_hashes, strict=True)):
        writer.write(row, values, content_hash)
    writer.finish()


def _describe(path: Path, file: h5py.File) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Index and facts of an open feature file; raises ValueError with what is wrong."""
    if file.attrs.get("format") != FORMAT:
        raise ValueError(f"it is not a feature file of asdflow (format {file.attrs.get('format')!r})")
    if file.attrs["version"] != VERSION:
        raise ValueError(f"its version is {file.attrs['version']}, this asdflow reads version {VERSION}")
    if _index_digest(file) != file.attrs["index_digest"]:
        raise ValueError("its index does not fit the stored digest: the file is damaged or was not finished")
    frames, n_frames, offset = file["frames"], file["n_frames"][:], file["offset"][:]
    front_end = json.loads(file.attrs["front_end"])
    first_byte = frames.id.get_offset()
    end = (first_byte or 0) + frames.size * 2
    if frames.dtype != np.float16 or frames.ndim != 2 or frames.shape[0] != n_frames.sum():
        raise ValueError(
            f"its frames are {frames.dtype} {frames.shape}, its index asks for float16 [{n_frames.sum()}, bins]"
        )
    if (first_byte is None and frames.size) or path.stat().st_size < end:
        raise ValueError(f"it has {path.stat().st_size} bytes, its frames end at byte {end}: it is cut off")
    if not np.array_equal(offset, np.cumsum(n_frames) - n_frames):
        raise ValueError("its offsets do not fit its numbers of frames")
    index = pd.DataFrame(
        {
            "clip_id": [i.decode() for i in file["clip_id"][:]],
            "n_frames": n_frames,
            "content_hash": [i.decode() for i in file["content_hash"][:]],
            "offset": offset,
            "crc32": file["crc32"][:],
        }
    )
    facts = {
        "first_byte": first_byte or 0, "shape": frames.shape, "front_end": front_end["name"], "bins": frames.shape[1],
        "digest": str(file.attrs["front_end_digest"]),
    }  # fmt: skip
    return index, facts


def read_index(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Index (clip_id, n_frames, content_hash, offset, crc32) and facts of a feature file, checked.

    Raises InputError naming the file when it is missing, damaged, cut off or foreign.
    """
    try:
        with h5py.File(path, "r") as file:
            return _describe(Path(path), file)
    except (OSError, KeyError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a feature file", [str(error)], REMEDY) from error


class FeatureStore:
    """The clips of any number of feature files, by row number, through memory maps.

    Parameters
    ----------
    paths : data set name -> its machines' feature files; the file's stem is the machine.
    check : compare each clip with its checksum the first time this object reads it (later reads are free).

    `index` has a row per clip: dataset, machine, clip_id, n_frames, content_hash. Opening a file checks its index;
    raises InputError when files are damaged, foreign, or of different front ends.
    """

    def __init__(self, paths: Mapping[str, Sequence[Path]], check: bool = True) -> None:
        self.check = check
        self.files = [(dataset, Path(path)) for dataset, group in paths.items() for path in group]
        if not self.files:
            raise InputError("no feature files were given", remedy="name at least one data set with features")
        tables, self.facts = [], []
        for number, (dataset, path) in enumerate(self.files):
            table, facts = read_index(path)
            tables.append(table.assign(dataset=dataset, machine=path.stem, file=number))
            self.facts.append(facts)
        self._refuse_mixed_front_ends()
        table = pd.concat(tables, ignore_index=True)
        self.index = table[["dataset", "machine", "clip_id", "n_frames", "content_hash"]]
        self._file = table["file"].to_numpy(np.int64)
        self._first = table["offset"].to_numpy(np.int64)
        self._n_frames = table["n_frames"].to_numpy(np.int64)
        self._crc32 = table["crc32"].to_numpy(np.uint32)
        self.front_end: str = self.facts[0]["front_end"]
        self.front_end_digest: str = self.facts[0]["digest"]
        self.bins: int = self.facts[0]["bins"]
        self._forget()

    def _refuse_mixed_front_ends(self) -> None:
        wrong = [
            f"{path}: {facts['front_end']}"
            for (_, path), facts in zip(self.files, self.facts, strict=True)
            if facts["digest"] != self.facts[0]["digest"]
        ]
        if wrong:
            first = f"{self.files[0][1]}: {self.facts[0]['front_end']}"
            raise InputError(
                "the feature files were made by different front ends",
                [first, *wrong],
                "use features of one front end",
            )

    def _forget(self) -> None:
        self._maps: list[Frames | None] = [None] * len(self.files)
        self._handles: list[mmap.mmap] = []
        self._resident = 0
        self._checked = np.zeros(len(self._file), bool)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in NOT_PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return len(self._file)

    def _open(self, number: int) -> Frames:
        """Map the frames of a file: a plain array, for slicing a numpy.memmap costs microseconds."""
        facts = self.facts[number]
        if facts["shape"][0] == 0:
            return np.zeros(facts["shape"], np.float16)
        with self.files[number][1].open("rb") as file:
            handle = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        n_values = facts["shape"][0] * facts["shape"][1]
        mapped = np.frombuffer(handle, np.float16, n_values, facts["first_byte"]).reshape(facts["shape"])
        self._handles.append(handle)
        self._maps[number] = mapped
        return mapped

    def _let_go(self, n_bytes: int) -> None:
        """Unmap the pages read so far, now and then: they stay in the system's cache, and views of them stay valid."""
        self._resident += n_bytes
        if self._resident > RESIDENT_BYTES:
            self._resident = 0
            for handle in self._handles:
                handle.madvise(mmap.MADV_DONTNEED)

    def frames(self, item: int) -> Frames:
        """The frames of clip `item`: float16 [n_frames, bins], a read-only view of the file.

        Raises InputError when the clip's bytes do not fit its checksum (checked at this object's first read of it).
        """
        number = self._file[item]
        mapped = self._maps[number]
        if mapped is None:
            mapped = self._open(number)
        first = self._first[item]
        frames = mapped[first : first + self._n_frames[item]]
        if self.check and not self._checked[item]:
            self._check(item, frames)
        self._let_go(frames.nbytes)
        return frames

    def _check(self, item: int, frames: Frames) -> None:
        if zlib.crc32(frames.data) != self._crc32[item]:
            raise InputError(
                f"{self.files[self._file[item]][1]} is damaged",
                [f"the frames of clip {self.index['clip_id'].iloc[item]} do not fit their checksum"],
                REMEDY,
            )
        self._checked[item] = True

    def verify(self) -> None:
        """Compare every clip with its checksum; raises InputError listing all damaged clips."""
        checked = self.check
        self.check = False
        try:
            wrong = [
                item for item in range(len(self)) if zlib.crc32(self.frames(item).data) != self._crc32[item]
            ]
        finally:
            self.check = checked
        problems = [
            f"{self.files[self._file[item]][1]}: clip {self.index['clip_id'].iloc[item]}" for item in wrong
        ]
        if problems:
            raise InputError("feature files are damaged: frames do not fit their checksums", problems, REMEDY)


Length = TypeVar("Length", int, npt.NDArray[np.int64])


def padded_length(n_frames: Length, pad_multiple: int) -> Length:
    """The next multiple of `pad_multiple` that holds `n_frames` (a number, or an array of them)."""
    return -(-n_frames // pad_multiple) * pad_multiple


def collate(frames: Sequence[Frames], pad_multiple: int, pad_value: float) -> torch.Tensor:
    """Stack clips float16 [n_frames, bins] into float32 [batch, T, bins], padded at the end with `pad_value`.

    T is the multiple of `pad_multiple` that holds the longest; an encoder without a mask gives the same embedding alone
    and in a batch only when all clips of the batch have the same padded length (`padded_length`).
    """
    length = padded_length(max(len(f) for f in frames), pad_multiple)
    batch = torch.empty(len(frames), length, frames[0].shape[1])
    array = batch.numpy()
    for row, values in enumerate(frames):
        array[row, : len(values)] = values
        array[row, len(values) :] = pad_value
    return batch
