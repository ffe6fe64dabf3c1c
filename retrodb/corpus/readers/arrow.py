"""Parquet files, and Arrow files as `datasets.save_to_disk` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.corpus.document import ID_NAMES, TEXT_NAMES, Document, Fields, Limits, Reject, documents_of
from retrodb.corpus.readers.open_file import OpenFile, read_whole, unreadable_file
from retrodb.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256  # rows held as Python values at a time; a row of a corpus has 2 to 200 KB
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(source: OpenFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """The documents of a Parquet file, one per row. Only the columns that are kept are read."""
    from retrodb.format.parquet import open_parquet

    with open_parquet(_random_access(source, limits), partial(unreadable_file, source.path, "Parquet")) as file:
        groups = range(source.start, file.num_row_groups if source.end is None else source.end)
        first_row = sum(file.metadata.row_group(group).num_rows for group in range(source.start))
        columns = _kept_columns(file.schema_arrow.names, fields)
        batches = file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
        yield from _documents(batches, first_row, source, fields, limits)


def read_parquet_records(path: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(row number from 1, fields) of every row of a Parquet file that must have no errors.

    Raises:
        InputError: the file does not exist, or is not a readable Parquet file.
    """
    from retrodb.format.parquet import open_parquet

    with open_parquet(Path(path), partial(_unreadable_parquet, path)) as file:
        batches = file.iter_batches(BATCH_ROWS, use_threads=False)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def parquet_row_groups(path: str) -> tuple[int, ...]:
    """The number of rows of each row group; empty if the file cannot be read (the error comes when it is read)."""
    from retrodb.format.parquet import open_parquet

    try:
        with open_parquet(Path(path), partial(_unreadable_parquet, path)) as file:
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
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else iter(reader)
            slices = (batch.slice(row, BATCH_ROWS) for batch in batches for row in range(0, batch.num_rows, BATCH_ROWS))
            yield from _documents(slices, 0, source, fields, limits)
    except (pa.ArrowException, OSError) as error:
        raise unreadable_file(source.path, "Arrow", error) from error


def _unreadable_parquet(path: str, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError("no such file", where=path, remedy="Check the path.")
    return unreadable_file(path, "Parquet", error)


def _random_access(source: OpenFile, limits: Limits) -> pa.NativeFile:
    import pyarrow as pa

    if source.disk_path is not None:
        return pa.OSFile(source.disk_path)
    content = read_whole(source, limits)
    if isinstance(content, Reject):
        what = f"compressed or in an archive, and larger than {limits.max_record_bytes} bytes"
        raise InputError(what, where=source.path, remedy="Unpack it first: this format is read at random positions.")
    return pa.BufferReader(content)


def _check_end_mark(file: pa.NativeFile, path: str) -> None:
    file.seek(max(file.size() - len(ARROW_STREAM_END), 0))
    if file.read(len(ARROW_STREAM_END)) != ARROW_STREAM_END:
        raise unreadable_file(path, "Arrow", ValueError("cut off: the end mark is missing"))


def _kept_columns(names: Sequence[str], fields: Fields) -> list[str] | None:
    if fields.metadata is None and not fields.drop_metadata:
        return None
    wanted = {fields.id, fields.text, fields.key, fields.value, *(fields.metadata or ())}
    wanted |= set(ID_NAMES if fields.id is None else ()) | set(TEXT_NAMES if fields.text is None else ())
    return [name for name in names if name in wanted]


def _documents(
    batches: Iterator[pa.RecordBatch], row: int, source: OpenFile, fields: Fields, limits: Limits
) -> Iterator[Document | Reject]:
    for batch in batches:
        for record in _rows(batch, source.path):
            yield from documents_of(record, fields, limits, path=source.path, location=f"record {row}")
            row += 1


def _rows(batch: pa.RecordBatch, path: str) -> list[dict[str, object]]:
    """Rows as Python values. Top-level strings stay unchecked bytes: one bad byte must cost its row, not the batch."""
    import pyarrow as pa
    import pyarrow.types as types

    columns = []
    for column in batch.columns:
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type):
            column = column.cast(pa.large_binary())
        columns.append(column)
    try:
        rows: list[dict[str, object]] = pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
        return rows
    except UnicodeDecodeError as error:
        raise unreadable_file(path, "Arrow", error) from error
