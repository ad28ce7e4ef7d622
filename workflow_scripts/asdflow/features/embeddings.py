"""Embeddings on disk: one HDF5 file with a matrix [clips, width] and the clip ids of its rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from asdflow.errors import InputError
from asdflow.files import atomic_path, require_space

FORMAT = "asdflow-embeddings"
VERSION = 1
BLOCK_ROWS = 4096
CLIP_ID_BYTES = 300
"""More than a clip's id takes."""
REMEDY = "remove it and run the step that makes it again"
Rows = Callable[[npt.ArrayLike, npt.ArrayLike], None]


def _digest(file: h5py.File) -> str:
    """SHA-256 over clip ids and embeddings, read in blocks."""
    digest = hashlib.sha256(file["clip_id"][:].tobytes())
    embedding = file["embedding"]
    for first in range(0, len(embedding), BLOCK_ROWS):
        digest.update(np.ascontiguousarray(embedding[first : first + BLOCK_ROWS]).tobytes())
    return digest.hexdigest()


def _new_file(path: Path, n_bytes: int) -> h5py.File:
    """An empty HDF5 file for about `n_bytes`; raises OSError where they do not fit."""
    require_space(path, n_bytes + 4096)
    return h5py.File(path, "w", libver="v110")


@contextlib.contextmanager
def embeddings_writer(path: str | Path, clip_ids: Sequence[str], width: int) -> Iterator[Rows]:
    """Open `path` for writing a matrix [len(clip_ids), width] in any order of rows; it appears when all is written.

    Yields `write(rows, values)`: `rows` int [k] (each written once), `values` float [k, width].
    """
    with (
        atomic_path(path) as temporary,
        _new_file(temporary, len(clip_ids) * (4 * width + CLIP_ID_BYTES)) as file,
    ):
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        strings = h5py.string_dtype("utf-8", max((len(i.encode()) for i in clip_ids), default=0) or 1)
        file.create_dataset("clip_id", data=np.array([i.encode() for i in clip_ids], dtype=strings))
        dataset = file.create_dataset("embedding", (len(clip_ids), width), dtype=np.float32)

        def write(rows: npt.ArrayLike, values: npt.ArrayLike) -> None:
            order = np.argsort(np.asarray(rows))
            if not len(order):
                return
            places, ordered = np.asarray(rows)[order], np.asarray(values, dtype=np.float32)[order]
            if places[-1] - places[0] == len(places) - 1:  # HDF5 is slow with long lists of single rows
                dataset[places[0] : places[-1] + 1] = ordered
            else:
                dataset[places] = ordered

        yield write
        file.attrs["digest"] = _digest(file)


def write_embeddings(path: str | Path, clip_ids: Sequence[str], matrix: npt.ArrayLike) -> None:
    """Write `matrix` float [n, width], whose rows belong to `clip_ids`, atomically."""
    values = np.asarray(matrix, dtype=np.float32)
    if values.ndim != 2 or len(values) != len(clip_ids):
        raise ValueError(f"{len(clip_ids)} clip ids do not fit a matrix of shape {values.shape}")
    with embeddings_writer(path, clip_ids, values.shape[1]) as write:
        write(np.arange(len(values)), values)


def read_embeddings(path: str | Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Read (clip ids, float32 [n, width]); raises InputError for a missing, damaged or foreign file."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"{path} is not a file of embeddings", remedy=REMEDY)
            if file.attrs["digest"] != _digest(file):
                raise InputError(f"{path} is damaged", ["its content does not fit its checksum"], REMEDY)
            return [i.decode() for i in file["clip_id"][:]], file["embedding"][:]
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as a file of embeddings", [str(error)], REMEDY) from error
