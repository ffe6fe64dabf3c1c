"""The rows of neighbour tables: what computing, repairing and folding a table have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.ann.metric import CAPPED
from retrodb.ann.topk import TopK
from retrodb.config import NeighboursParams
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.arrays import Float32Array, Int64Array
from retrodb.format.entries import IndexEntry, SpaceEntry, TableDependencies
from retrodb.format.kinds import path_of
from retrodb.format.parquet import open_writer
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import neighbours_schema
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.naming import NamedPairs
from retrodb.view.shard_counts import num_covered
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from pyroaring import BitMap

TASK_ROWS = 1 << 20  # query rows of a task: a whole shard, so that many of them probe the same lists


def spans_of(view: View, queries: str) -> list[ChunkRange]:
    """The rows of a query set in ranges, one for each task."""
    return [
        ChunkRange(start, min(TASK_ROWS, record.span.end - start))
        for record in view.query_set(queries).ranges
        for start in range(record.first_chunk, record.span.end, TASK_ROWS)
    ]


def query_rows(view: View, queries: str, space: str, span: ChunkRange) -> BitMap:
    """The live rows of a range of a query set that have a vector, relative to its start. Reads row bitmaps, and no chunk."""
    return view.query_vectors(queries, space).covered_rows(*span) & view.query_set(queries).live_rows(*span)


def num_query_rows(view: View, queries: str, space: str) -> int:
    """The number of all query rows of a table: of the database's own chunks from the counts of shards."""
    if queries == SELF:
        return int(num_covered(view, space).sum())
    return sum(len(query_rows(view, queries, space, span)) for span in spans_of(view, queries))


def query_ids(view: View, queries: str, space: str, span: ChunkRange) -> Int64Array:
    """`query_rows` as ids, ascending."""
    rows = np.frombuffer(query_rows(view, queries, space, span).to_array(), dtype=np.uint32)
    return span.first_chunk + rows.astype(np.int64)


def table_dependencies(view: View, queries: str, space: str, params: NeighboursParams) -> TableDependencies:
    """The inputs, other than the chunks, that decide the neighbours of a row. If they differ, no row can be reused."""
    documents = [
        record.path
        for record in (() if queries == SELF else view.manifest.files("queries", queries))
        if record.path.rpartition("/")[2].startswith("documents.")
    ]
    clusters = view.manifest.files("duplicates") if "cluster" in params.exclude else ()
    return TableDependencies(
        space=view.snapshot.existing(SpaceEntry, space).fingerprint,
        queries=tuple(documents),
        clusters=tuple(record.path for record in clusters),
        codebook=None if params.exact else view.snapshot.existing(IndexEntry, space).codebook,
    )


@dataclass(frozen=True)
class TableRows:
    """Rows of a query set with their neighbours."""

    rows_Q: Int64Array  # ascending
    ids_QW: Int64Array
    distances_QW: Float32Array

    def __len__(self) -> int:
        return len(self.rows_Q)


def num_short(rows: TopK, k: int) -> dict[str, int]:
    """How many rows (Q, w) have fewer than k neighbours (`short`), and of these, have not read all lists (`capped`)."""
    ids_QW, distances_QW = rows
    is_short_Q = np.count_nonzero(ids_QW >= 0, axis=1) < k
    return {"short": int(is_short_Q.sum()), "capped": int((is_short_Q & (distances_QW[:, -1] == CAPPED)).sum())}


def publish_rows(
    storage: Storage,
    table: str,
    task: str,
    span: ChunkRange,
    rows: Int64Array,
    ids: Int64Array,
    distances: Float32Array,
) -> tuple[FileRecord, FileRecord]:
    """Publish rows (Q,) of a range of the query set, with their neighbours and distances (Q, w), as `publish_row_blocks`."""
    mask = np.zeros(span.num_chunks, dtype=bool)
    mask[rows - span.first_chunk] = True
    blocks = [TableRows(rows, ids, distances)]
    return publish_row_blocks(storage, table, task, span, RowSet.from_mask(mask), ids.shape[1], blocks)


def publish_row_blocks(
    storage: Storage, table: str, task: str, span: ChunkRange, rows: RowSet, width: int, blocks: Iterable[TableRows]
) -> tuple[FileRecord, FileRecord]:
    """Publish rows of a range of the query set that come in blocks, of which one is in memory. Blocks change no byte.

    Args:
        rows: of the range.
        width: number of neighbours of a row.

    Returns:
        The records of the table's file, and of the one that says which of its rows name a chunk. For this one the first is read
        again, and its neighbours are in memory, 12 bytes each.
    """
    import pyarrow as pa

    schema = neighbours_schema(width)

    def table_of(block: TableRows) -> pa.Table:
        arrays = [
            pa.array(block.rows_Q),
            pa.FixedSizeListArray.from_arrays(pa.array(block.ids_QW.ravel()), width),
            pa.FixedSizeListArray.from_arrays(pa.array(block.distances_QW.ravel()), width),
            pa.array(np.ascontiguousarray(block.distances_QW[:, -1])),
        ]
        columns = [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)]
        return pa.Table.from_arrays(columns, schema=schema)

    def write(local: Path) -> None:
        rest = schema.empty_table()
        with open_writer(local, schema) as writer:
            for block in blocks:
                rest = pa.concat_tables([rest, table_of(block)])
                while rest.num_rows >= ROW_GROUP_ROWS:
                    writer.write_table(rest.slice(0, ROW_GROUP_ROWS).combine_chunks())
                    rest = rest.slice(ROW_GROUP_ROWS)
            if rest.num_rows:
                writer.write_table(rest.combine_chunks())

    of_table, of_naming = (path_of(kind, name=table, task=task) for kind in ("neighbours", "naming"))
    publish_file = partial(publish, storage, name=table, first_chunk=span.first_chunk, rows=rows)
    record = publish_file("neighbours", of_table, write)
    pairs = NamedPairs.of_file(storage.local(of_table), span)
    return record, publish_file("naming", of_naming, pairs.write)
