"""Rows that the tasks of a join leave for each other: one file of each task, in which every row group is for one reader.

A reader reads its own row groups and no others, so a file is read once in all, however many readers there are. The files are in
the folder of the run. They have page checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import iterate_row_groups_of, open_writer
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

GROUP_ROWS = 4096
"""Rows of a row group at most: 4,096 * 384 dimensions * 2 bytes (float16) = 3 MB of vectors."""
_READER = "reader"  # the column with the number of the reader


class ExchangeWriter:
    """Writes one file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = open_writer(
            path, schema.append(pa.field(_READER, pa.int32(), nullable=False)), is_compressed=False
        )
        self.num_rows = 0

    def add(self, reader: int, table: pa.Table) -> None:
        """Add rows for a reader."""
        if table.num_rows:
            numbers = pa.array(np.full(table.num_rows, reader, dtype=np.int32))
            self._writer.write_table(
                table.append_column(pa.field(_READER, pa.int32(), nullable=False), numbers), row_group_size=GROUP_ROWS
            )
            self.num_rows += table.num_rows

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def publish_exchange(
    storage: Storage,
    run: str,
    names: Sequence[str],
    schemas: Sequence[pa.Schema],
    produce: Callable[[list[ExchangeWriter]], None],
) -> list[FileRecord]:
    """Publish files of the run that are written together.

    Args:
        produce: writes them.
    """
    records: list[FileRecord] = []

    def write(local: Path, writers: list[ExchangeWriter]) -> None:
        number = len(writers)
        writer = ExchangeWriter(local, schemas[number])
        if number + 1 < len(names):
            publish_next([*writers, writer])
        else:
            produce([*writers, writer])
        writer.close()

    def publish_next(writers: list[ExchangeWriter]) -> None:
        path = path_of("runs", run=run, file=f"join/{names[len(writers)]}.parquet")
        records.append(publish(storage, "runs", path, lambda local: write(local, writers)))

    publish_next([])
    return records[::-1]


def read_exchange(storage: Storage, file: FileRecord, reader: int) -> Iterator[pa.Table]:
    """The rows for a reader, a row group at a time in the order of their writing. Raises DamagedFileError."""
    for table in iterate_row_groups_of(storage.local(file.path), _READER, reader):
        yield table.drop_columns([_READER])


def fixed_lists(values: AnyArray) -> pa.Array:
    """An Arrow column whose rows are the rows of an array (Q, w)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def fixed_rows(column: pa.ChunkedArray, width: int) -> AnyArray:
    """The array (Q, width) of a column of `fixed_lists`."""
    values: AnyArray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, width)


def ragged_lists(values: AnyArray, offsets: Int64Array) -> pa.Array:
    """An Arrow column whose row q is `values[offsets[q]:offsets[q + 1]]`."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def ragged_rows(column: pa.ChunkedArray) -> tuple[AnyArray, Int64Array]:
    """The values and offsets of a column of `ragged_lists`."""
    lists = column.combine_chunks()
    sizes = lists.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False), offsets


def binary_rows(vectors: AnyArray) -> pa.Array:
    """An Arrow column whose row q has the bytes of `vectors[q]`, (Q, D)."""
    contiguous = np.ascontiguousarray(vectors)
    kind = pa.binary(contiguous.shape[1] * contiguous.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(contiguous), [None, pa.py_buffer(contiguous)])
