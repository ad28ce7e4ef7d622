"""Embeddings on disk: one HDF5 file with a matrix [clips, width] and the clip ids of its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from asdflow.errors import InputError
from asdflow.files import atomic_path

FORMAT = "asdflow-embeddings"
VERSION = 1
Rows = Callable[[npt.ArrayLike, npt.ArrayLike], None]


@contextlib.contextmanager
def embeddings_writer(path: str | Path, clip_ids: Sequence[str], width: int) -> Iterator[Rows]:
    """Open `path` for writing a matrix [len(clip_ids), width] in any order of rows; it appears when all is written.

    Yields `write(rows, values)`: `rows` int [k] (each written once), `values` float [k, width].
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver="v110") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        strings = h5py.string_dtype("utf-8", max((len(i.encode()) for i in clip_ids), default=0) or 1)
        file.create_dataset("clip_id", data=np.array([i.encode() for i in clip_ids], dtype=strings))
        dataset = file.create_dataset("embedding", (len(clip_ids), width), dtype=np.float32)

        def write(rows: npt.ArrayLike, values: npt.ArrayLike) -> None:
            order = np.argsort(np.asarray(rows))
            if len(order):
                dataset[np.asarray(rows)[order]] = np.asarray(values, dtype=np.float32)[order]

        yield write


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
                raise InputError(
                    f"{path} is not a file of embeddings", remedy="remove it and run the embed step again"
                )
            return [i.decode() for i in file["clip_id"][:]], file["embedding"][:]
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} cannot be read as a file of embeddings",
            [str(error)],
            "remove it and run the embed step again",
        ) from error
