"""Parquet files, and Hugging Face datasets saved on disk (Arrow files)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from retrodb.corpus.document import ID_NAMES, TEXT_NAMES, Document, Fields, Limits, Reject, documents_of
from retrodb.corpus.readers.source import SourceFile, damaged, read_capped
from retrodb.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256  # rows held as Python values at a time; a corpus row is 2 to 200 KB
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """One row a record, row group after row group; only the columns that are kept are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(_random_access(source, limits), page_checksum_verification=True) as file:
            groups = range(source.start, file.num_row_groups if source.end is None else source.end)
            row = sum(file.metadata.row_group(group).num_rows for group in range(source.start))
            columns = _kept_columns(file.schema_arrow.names, fields)
            batches = file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False)
            yield from _documents(batches, row, source, fields, limits)
    except (pa.ArrowException, OSError) as error:
        raise damaged(source, "Parquet", error) from error


def read_arrow(source: SourceFile, fields: Fields, limits: Limits) -> Iterator[Document | Reject]:
    """One row a record of an Arrow IPC stream (what `datasets` saves) or file.

    Raises:
        InputError: the file is damaged, or cut off: a stream must carry its end mark.
    """
    import pyarrow as pa

    try:
        with _random_access(source, limits) as file:
            is_file = file.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
            if not is_file:
                _check_end_mark(file, source)
            file.seek(0)
            reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else iter(reader)
            sliced = (batch.slice(at, BATCH_ROWS) for batch in batches for at in range(0, batch.num_rows, BATCH_ROWS))
            yield from _documents(sliced, 0, source, fields, limits)
    except (pa.ArrowException, OSError) as error:
        raise damaged(source, "Arrow", error) from error


def num_row_groups(path: str) -> int:
    """How many row groups a Parquet file has; 0 when it cannot be read (reading it then says why)."""
    return _counted(path)[0]


def num_rows(path: str) -> int:
    """How many rows a Parquet file has; 0 when it cannot be read."""
    return _counted(path)[1]


def _counted(path: str) -> tuple[int, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return int(file.num_row_groups), int(file.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return 0, 0


def _random_access(source: SourceFile, limits: Limits) -> Any:
    import pyarrow as pa

    if source.file is not None:
        return pa.OSFile(source.file)
    content = read_capped(source, limits)
    if isinstance(content, Reject):
        what = f"compressed or in an archive, and larger than {limits.max_record_bytes} bytes"
        raise InputError(what, where=source.path, remedy="Unpack it first: this format is read at random places.")
    return pa.BufferReader(content)


def _check_end_mark(file: Any, source: SourceFile) -> None:
    file.seek(max(file.size() - len(ARROW_STREAM_END), 0))
    if file.read(len(ARROW_STREAM_END)) != ARROW_STREAM_END:
        raise damaged(source, "Arrow", ValueError("cut off: the end mark is missing"))


def _kept_columns(names: list[str], fields: Fields) -> list[str] | None:
    if fields.metadata is None and not fields.drop_metadata:
        return None
    wanted = {fields.id, fields.text, fields.key, fields.value, *(fields.metadata or ())}
    wanted |= set(ID_NAMES if fields.id is None else ()) | set(TEXT_NAMES if fields.text is None else ())
    return [name for name in names if name in wanted]


def _documents(
    batches: Iterator[pa.RecordBatch], row: int, source: SourceFile, fields: Fields, limits: Limits
) -> Iterator[Document | Reject]:
    for batch in batches:
        for record in _rows(batch, source):
            yield from documents_of(record, fields, limits, path=source.path, place=f"record {row}")
            row += 1


def _rows(batch: pa.RecordBatch, source: SourceFile) -> list[dict[str, Any]]:
    """Rows as Python values, top-level strings as unchecked bytes: one bad byte must cost its row, not the batch."""
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
        rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
        return rows
    except UnicodeDecodeError as error:
        raise damaged(source, "Arrow", error) from error
