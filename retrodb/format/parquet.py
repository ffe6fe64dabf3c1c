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

MAX_STRING_BYTES = (1 << 31) - 1
"""Greatest offset of an Arrow array of strings, which has 32 bits."""


def write_table(path: Path, table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> None:
    """Write a table; equal tables give equal bytes with equal library versions."""
    with open_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=row_group_rows)


def open_writer(path: Path | BinaryIO, schema: pa.Schema, *, is_compressed: bool = True) -> ParquetWriter:
    """A writer for a file that grows by row groups."""
    compression, level = ("zstd", 3) if is_compressed else ("none", None)
    return pq.ParquetWriter(path, schema, compression=compression, compression_level=level, write_page_checksum=True)


def open_sorted_writer(path: Path, schema: pa.Schema) -> ParquetWriter:
    """A writer for a file of integers that is sorted by its first column: differences are stored.

    The statistics of that column, and of no other, are in the footer, for `iterate_row_groups_between`.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        write_page_checksum=True,
        use_dictionary=False,
        column_encoding=dict.fromkeys(schema.names, "DELTA_BINARY_PACKED"),
        write_statistics=schema.names[:1],
    )


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
    except (OSError, pa.ArrowException, UnicodeError) as error:  # a damaged name of a column is not UTF-8
        raise error_of(error) from error


def read_table(path: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file (or its bytes) whole, or some of its columns.

    Raises:
        DamagedFileError: when a page's checksum or the file's structure is wrong.
    """
    with open_parquet(path, partial(damaged, path)) as file:
        return widened(file.read(columns=_existing(file, columns), use_threads=False))


def num_rows_of(path: Path) -> int:
    """The number of rows that the footer of a file states. Raises as `read_table`."""
    with open_parquet(path, partial(damaged, path)) as file:
        return int(file.metadata.num_rows)


def read_row_groups(path: Path, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Read some row groups of a file, in the order given. Raises as `read_table`."""
    with open_parquet(path, partial(damaged, path)) as file:
        return widened(file.read_row_groups(list(groups), columns=_existing(file, columns), use_threads=False))


def widened(table: pa.Table) -> pa.Table:
    """The table, with `large_string` for strings of more than 2 GiB: Arrow cannot take rows of them or join their chunks."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and table.column(index).nbytes > MAX_STRING_BYTES:
            wide = pa.field(field.name, pa.large_string(), field.nullable)
            table = table.set_column(index, wide, table.column(index).cast(pa.large_string()))
    return table


def iterate_row_groups_of(path: Path, column: str, value: int) -> Iterator[pa.Table]:
    """The row groups with a value in a column, one table each; all rows of a group have the same. Raises as `read_table`."""
    with open_parquet(path, partial(damaged, path)) as file:
        number = file.schema_arrow.get_field_index(column)
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(number).statistics
            if statistics is None or statistics.min != statistics.max:
                raise damaged(path, ValueError(f"row group {group} has no single value of {column}"))
            if statistics.min == value:
                yield file.read_row_group(group, use_threads=False)


def iterate_row_groups_between(
    path: Path, column: str, is_wanted: Callable[[int, int], bool], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The row groups that are wanted, one table each. Raises as `read_table`.

    Args:
        is_wanted: is told the least and the greatest value of the column in a row group.
    """
    with open_parquet(path, partial(damaged, path)) as file:
        number, metadata = file.schema_arrow.get_field_index(column), file.metadata
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(number).statistics if number >= 0 else None
            if statistics is None or not statistics.has_min_max:
                raise damaged(path, ValueError(f"row group {group} has no least and greatest value of {column}"))
            if is_wanted(statistics.min, statistics.max):
                yield file.read_row_group(group, columns=_existing(file, columns), use_threads=False)


def iterate_row_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a file, one table each. Raises as `read_table`."""
    with open_parquet(path, partial(damaged, path)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=_existing(file, columns), use_threads=False)


def read_checked_groups(
    path: Path, schema: pa.Schema, num_rows: int, groups: Sequence[int], columns: Sequence[str]
) -> pa.Table:
    """Read some columns (none: no page) of row groups of a file, in this thread.

    Raises:
        DamagedFileError: the file has another schema, number of rows or row groups than expected. And as `read_table`.
    """
    with open_parquet(path, partial(damaged, path)) as file:
        _check_structure(path, file, schema, num_rows)
        return file.read_row_groups(list(groups), columns=list(columns), use_threads=False)


def _check_structure(path: Path, file: ParquetFile, schema: pa.Schema, num_rows: int) -> None:
    """Raises DamagedFileError for a footer that does not fit, which no checksum protects: Arrow would read it as nulls."""
    metadata = file.metadata
    rows_of_groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    expected = [min(ROW_GROUP_ROWS, num_rows - first) for first in range(0, num_rows, ROW_GROUP_ROWS)]
    if metadata.num_rows != num_rows or rows_of_groups != expected:
        raise damaged(path, ValueError(f"{metadata.num_rows:,} rows instead of {num_rows:,}, or in other row groups"))
    if not file.schema_arrow.equals(schema):
        raise damaged(path, ValueError("its columns are not those of the format"))


def _existing(file: ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    """The columns, which Arrow leaves out without an error where a file does not have them."""
    if columns is None:
        return None
    if missing := set(columns) - set(file.schema_arrow.names):
        raise pa.ArrowInvalid(f"there is no column {', '.join(sorted(missing))}")
    return list(columns)


def damaged(path: Path | BinaryIO, error: Exception) -> DamagedFileError:
    """The error for a Parquet file that does not read as written."""
    return DamagedFileError(
        f"not readable as the Parquet file it was written as ({error})",
        where=str(path),
        remedy="Run 'retrodb check --read-data' to see what else is damaged.",
    )
