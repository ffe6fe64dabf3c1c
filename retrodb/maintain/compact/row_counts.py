"""How many rows of shards and index parts are deleted: from the bitmaps of manifest records and the tombstones.

One shard is looked at after another, and no file of a shard is opened.
"""

from __future__ import annotations

from typing import NamedTuple

from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.view.chunk_set import ChunkSet


class HeldRows(NamedTuple):
    """Rows of an index part."""

    num_present: int  # that the files of shards hold, too
    num_live: int


def num_deleted_rows(chunks: ChunkSet, record: FileRecord) -> int:
    """The number of rows of a shard that its files hold and that are deleted."""
    return record.num_rows - len(chunks.live_rows(*record.span))


def count_held_rows(chunks: ChunkSet, span: ChunkRange, rows: RowSet) -> HeldRows:
    """Count the rows (of a range of ids) that an index part holds."""
    num_present = num_live = 0
    for record in chunks.overlapping("documents", *span):
        held_here = rows.rows_in(span.first_chunk - record.first_chunk, record.num_chunks)
        num_present += len(held_here & chunks.present_rows(*record.span))
        num_live += len(held_here & chunks.live_rows(*record.span))
    return HeldRows(num_present, num_live)
