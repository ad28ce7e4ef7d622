"""Tables on disk: the one writer and the one reader of Parquet files, with a digest of the content that is compared on reading."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from asdflow.errors import InputError
from asdflow.files import atomic_path

DIGEST = b"asdflow.sha256"
REMEDY = "remove it and run the same command again: the step that makes it then runs"


def write_parquet(table: pd.DataFrame, path: str | Path, schema: Any = None) -> None:
    """Write the columns of `table` atomically; the same rows give the same bytes, and any Parquet reader takes the file.

    schema : Arrow schema of the columns, told from the values where none is given.
    """
    columns = pa.Table.from_pandas(table, schema=schema, preserve_index=False).replace_schema_metadata(None)
    with atomic_path(path) as temporary:
        pq.write_table(
            columns.replace_schema_metadata({DIGEST: _digest(columns)}), temporary, compression="zstd"
        )


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Read a Parquet file; raises InputError where it is missing, unreadable, or its content does not fit its digest.

    Parquet's own checksums leave the names, types and lengths in its headers out, so the digest is over what is read. A file
    without digest, made by another program, is taken as it is.
    """
    return read_columns(path).to_pandas()


def read_columns(path: str | Path) -> Any:
    """The same as an Arrow table."""
    try:
        columns = pq.read_table(path, partitioning=None)
        if DIGEST not in (columns.schema.metadata or {}):
            return columns
        stored = columns.schema.metadata[DIGEST]
        columns = columns.replace_schema_metadata(None)
        intact = stored == _digest(columns)
    except Exception as error:  # a damaged header comes out as whatever it happens to say: no common class
        reason = [f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
        raise InputError(f"{path} cannot be read as a table", reason, REMEDY) from error
    if not intact:
        raise InputError(f"{path} is damaged", ["its content does not fit its checksum"], REMEDY)
    return columns


def _digest(columns: Any) -> bytes:
    """Hexadecimal SHA-256 of the names, types and values of an Arrow table, whatever way they are stored."""
    digest = hashlib.sha256()
    for field, column in zip(columns.schema, columns.columns, strict=True):
        digest.update(json.dumps([field.name, str(field.type), column.to_pylist()], default=str).encode())
    return digest.hexdigest().encode()
