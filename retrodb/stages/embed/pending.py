"""Rows that have no vector in a space yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.format.entries import QueriesEntry
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class PendingRows:
    """The rows of one file of chunks that have no vector."""

    query_set: str  # SELF for the database's own chunks
    chunks: FileRecord
    hashes: FileRecord  # of the texts
    rows: RowSet

    @cached_property
    def ids(self) -> Int64Array:
        """Chunk ids, or rows of the query set, ascending."""
        return self.chunks.first_chunk + self.rows.present


def find_pending_rows(view: View, space: str) -> tuple[PendingRows, ...]:
    """All live, screened key chunks, and all key chunks of query sets, that have no vector in a space."""
    pending = []
    for query_set in (SELF, *view.snapshot.names(QueriesEntry)):
        chunks, covered = view.query_set(query_set), view.query_vectors(query_set, space)
        for record in chunks.ranges:
            span = record.span
            keys = view.embeddable_mask(*span) if query_set == SELF else chunks.key_mask(*span)
            mask = keys & ~covered.covered_mask(*span)
            if mask.any():
                rows = RowSet.from_mask(mask)
                pending.append(PendingRows(query_set, chunks.file("chunks", *span), chunks.file("hashes", *span), rows))
    return tuple(pending)


def own_ids(pending: tuple[PendingRows, ...]) -> Int64Array:
    """The pending chunks of the database itself, without rows of query sets."""
    return np.concatenate([np.empty(0, np.int64), *(part.ids for part in pending if part.query_set == SELF)])
