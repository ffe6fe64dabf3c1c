"""How Parquet is written and read: zstd, page checksums both ways, fixed row groups.

No other folder calls `pyarrow.parquet`, because without the checksums a flipped bit is silently another value. A test
checks this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from retrodb.errors import DamagedFileError, RetroDBError
from retrodb.format import ROW_GROUP_ROWS

ParquetFile: TypeAlias = pq.ParquetFile
ParquetWriter: TypeAlias = pq.ParquetWriter


def write_table(path: Path, table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> None:
    """Write a table; equal tables give equal bytes with equal library versions."""
    with open_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=row_group_rows)


def open_writer(path: Path | BinaryIO, schema: pa.Schema) -> ParquetWriter:
    """A writer for a file that grows by row groups."""
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=3, write_page_checksum=True)


@contextmanager
def open_parquet(
    source: Path | BinaryIO | pa.NativeFile, error_of: Callable[[Exception], RetroDBError]
) -> Iterator[ParquetFile]:
    """A Parquet file, open for reading. Page checksums are verified where the file has them.

    Args:
        source: the path, or the opened file.
        error_of: makes the error to raise when the file is not there, is not Parquet, or is damaged.

    Raises:
        RetroDBError: what `error_of` makes.
    """
    try:
        # INT96 counts in nanoseconds by default, where a date after 2262 overflows into another date.
        with pq.ParquetFile(source, page_checksum_verification=True, coerce_int96_timestamp_unit="us") as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last: a name that is not UTF-8
        raise error_of(error) from error


def read_table(path: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file (or its bytes) whole, or some of its columns.

    Raises:
        DamagedFileError: when a page's checksum or the file's structure is wrong.
    """
    with open_parquet(path, partial(damaged, path)) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def read_row_groups(path: Path, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Read some row groups of a file, in the order given. Raises as `read_table`."""
    with open_parquet(path, partial(damaged, path)) as file:
        return file.read_row_groups(list(groups), columns=None if columns is None else list(columns))


def iterate_row_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a file, one table each. Raises as `read_table`."""
    with open_parquet(path, partial(damaged, path)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=None if columns is None else list(columns), use_threads=False)


def damaged(path: Path | BinaryIO, error: Exception) -> DamagedFileError:
    """The error for a Parquet file that does not read as written."""
    return DamagedFileError(
        f"not readable as the Parquet file it was written as ({error})",
        where=str(path),
        remedy="Run 'retrodb check --read-data' to see what else is damaged.",
    )
