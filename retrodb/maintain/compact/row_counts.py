"""How many rows of shards and index parts are deleted: from the bitmaps of manifest records and the tombstones.

One shard is looked at after another, and no file of a shard is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrodb.format.arrays import BoolArray
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet, serialize_bitmap
from retrodb.view.chunk_set import ChunkSet

if TYPE_CHECKING:
    from pyroaring import BitMap


class HeldRows(NamedTuple):
    """Rows of an index part."""

    num_present: int  # that the files of shards hold, too
    num_live: int


def dead_mask(chunks: ChunkSet, record: FileRecord) -> BoolArray | None:
    """(N,) bool: which rows of a shard are not live, by the record of its documents file; None when all are."""
    by_reason = chunks.tombstones.deleted_by_reason(*record.span)
    if not by_reason and record.num_rows == record.num_chunks:
        return None
    dead = ~record.row_set.mask
    for mask in by_reason.values():
        dead |= mask
    return dead


def num_deleted_rows(chunks: ChunkSet, record: FileRecord) -> int:
    """The number of rows of a shard that its files hold and that are deleted."""
    dead = dead_mask(chunks, record)
    return 0 if dead is None else int(dead.sum()) - (record.num_chunks - record.num_rows)


def count_held_rows(chunks: ChunkSet, span: ChunkRange, rows: RowSet) -> HeldRows:
    """Count the rows (of a range of ids) that an index part holds."""
    held, num_present, num_live = _bitmap(rows), 0, 0
    for record in chunks.overlapping("documents", *span):
        held_here = _rows_between(held, record.first_chunk - span.first_chunk, record.num_chunks)
        dead = dead_mask(chunks, record)
        if dead is None:
            num_present, num_live = num_present + len(held_here), num_live + len(held_here)
        elif held_here:
            positions = np.frombuffer(held_here.to_array(), dtype=np.uint32)
            num_present += int((record.row_set.rank(positions.astype(np.int64)) >= 0).sum())
            num_live += int((~dead[positions]).sum())
    return HeldRows(num_present, num_live)


def live_row_set(chunks: ChunkSet, span: ChunkRange) -> RowSet:
    """The live rows of a range of ids."""
    from pyroaring import BitMap

    live = BitMap()
    for record in chunks.overlapping("documents", *span):
        dead = dead_mask(chunks, record)
        rows = np.arange(record.num_chunks) if dead is None else np.flatnonzero(~dead)
        rows = rows + record.first_chunk - span.first_chunk
        rows = rows[(rows >= 0) & (rows < span.num_chunks)]
        live |= BitMap(rows.astype(np.uint32), optimize=False)  # without runs, so that equal sets give equal bytes
    return RowSet(span.num_chunks, None if len(live) == span.num_chunks else serialize_bitmap(live))


def _bitmap(rows: RowSet) -> BitMap:
    from pyroaring import BitMap

    return BitMap(range(rows.num_rows_total)) if rows.bitmap is None else BitMap.deserialize(rows.bitmap)


def _rows_between(rows: BitMap, start: int, count: int) -> BitMap:
    """The rows from `start` (which may be negative) to `start + count`, counted from `start`."""
    from pyroaring import BitMap

    return (rows & BitMap(range(max(start, 0), max(start + count, 0)))).shift(-start)
