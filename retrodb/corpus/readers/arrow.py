"""Parquet files, and Arrow files as `datasets.save_to_disk` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from retrodb.corpus.document import Document, Fields, Limits, Reject, UnreadableValue, documents_of
from retrodb.corpus.file_names import escape_name
from retrodb.corpus.input_sources import arrow_source
from retrodb.corpus.readers.arrow_values import column_types, json_values, validate
from retrodb.corpus.readers.field_names import check_columns, kept_columns
from retrodb.corpus.readers.open_file import OpenFile, read_whole, unreadable_file
from retrodb.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.parquet import ParquetFile

BATCH_ROWS = 256  # rows held as Python values at a time; a row of a corpus has 2 to 200 KB
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a Parquet file, one per row. Only the columns that are kept are read."""
    from retrodb.format.parquet import open_parquet

    with open_parquet(_random_access(source, limits), partial(unreadable_file, source.path, "Parquet")) as file:
        groups = range(source.start, file.num_row_groups if source.end is None else source.end)
        first_row = sum(file.metadata.row_group(group).num_rows for group in range(source.start))
        columns = check_schema(file.schema_arrow, source.path, fields)
        batches = file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
        yield from _documents(batches, first_row, source, fields, limits)


def read_parquet_records(path: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(row number from 1, fields) of every row of a Parquet file that must have no errors.

    Raises:
        InputError: the file does not exist, is not a readable Parquet file, or has a value that JSON cannot express.
    """
    with _open_path(path) as file:
        check_schema(file.schema_arrow, path, Fields())
        batches = file.iter_batches(BATCH_ROWS, use_threads=False)
        for number, row in enumerate((row for batch in batches for row in _rows(batch)), 1):
            for name, value in row.items():
                if isinstance(value, UnreadableValue):
                    where = f"{escape_name(path)}, row {number}, column {name}"
                    raise InputError(f"{value.reason}: {value.content!r}", where=where, remedy="Correct the file.")
            yield number, row


def parquet_row_groups(path: str) -> tuple[int, ...]:
    """The number of rows of each row group; empty if the file cannot be read (the error comes when it is read)."""
    try:
        with _open_path(path) as file:
            return tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    except InputError:
        return ()


def read_arrow(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of an Arrow IPC stream (what `datasets` saves) or an Arrow IPC file, one per row.

    Raises:
        InputError: the file is damaged, or a stream has no end mark and so is cut off.
    """
    import pyarrow as pa

    try:
        with _random_access(source, limits) as file:
            is_file = file.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
            if not is_file:
                _check_end_mark(file, source.path)
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            check_schema(reader.schema, source.path, fields)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else iter(reader)
            slices = (batch.slice(row, BATCH_ROWS) for batch in batches for row in range(0, batch.num_rows, BATCH_ROWS))
            yield from _documents(map(_validated, slices), 0, source, fields, limits)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a name that is not UTF-8
        raise unreadable_file(source.path, "Arrow", error) from error


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, whose offsets point into its buffers. In a damaged file they may point anywhere."""
    for column in batch.columns:
        validate(column)
    return batch


@contextmanager
def _open_path(path: str) -> Iterator[ParquetFile]:

    from retrodb.format.parquet import open_parquet

    error_of = partial(_unreadable_parquet, path)
    try:
        source = arrow_source(path)
    except OSError as error:
        raise error_of(error) from error
    with source, open_parquet(source, error_of) as file:
        yield file


def _unreadable_parquet(path: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError("no such file", where=escape_name(path), remedy="Check the path.")
    return unreadable_file(escape_name(path), "Parquet", error)


def _random_access(source: OpenFile, limits: Limits) -> pa.NativeFile:
    import pyarrow as pa

    if source.disk_path is not None:
        return arrow_source(source.disk_path)
    content = read_whole(source, limits)
    if isinstance(content, Reject):
        what = f"compressed or in an archive, and larger than {limits.max_record_bytes} bytes"
        raise InputError(what, where=source.path, remedy="Unpack it first: this format is read at random positions.")
    return pa.BufferReader(content)


def _check_end_mark(file: pa.NativeFile, path: str) -> None:
    file.seek(max(file.size() - len(ARROW_STREAM_END), 0))
    if file.read(len(ARROW_STREAM_END)) != ARROW_STREAM_END:
        raise unreadable_file(path, "Arrow", ValueError("cut off: the end mark is missing"))


def check_schema(schema: pa.Schema, path: str, fields: Fields) -> list[str] | None:
    """Names of the columns that are kept; None if all are.

    Raises:
        InputError: two columns, or two fields of a struct, have one name.
    """
    from pyarrow.types import is_struct

    kept = kept_columns(schema.names, fields)
    check_columns(schema.names, kept, path)
    for field in schema:
        for kind in column_types(field.type) if kept is None or field.name in kept else ():
            if is_struct(kind):
                names = [kind.field(index).name for index in range(kind.num_fields)]
                check_columns(names, None, f"{path}, column {field.name}")
    return kept


def _documents(
    batches: Iterator[pa.RecordBatch], row: int, source: OpenFile, fields: Fields, limits: Limits
) -> Iterator[Document | Reject]:
    for batch in batches:
        for record in _rows(batch):
            yield from documents_of(record, fields, limits, path=source.path, location=f"record {row}")
            row += 1


def _rows(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """Rows as JSON values. One bad value costs its row, not the batch."""
    names = batch.schema.names
    columns = [json_values(column) for column in batch.columns]
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
