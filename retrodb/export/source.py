"""What every format is written from: a neighbour table as of a snapshot, and the places that its chunks have in the export.

Legend: Q rows of a block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

from retrodb.export.layout import ExportPositions
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF


@dataclass(frozen=True)
class Layouts:
    """The places of an export."""

    chunks: ExportPositions  # of the database
    rows: ExportPositions  # of the query set: the same object for the database's own chunks

    @classmethod
    def of(cls, table: NeighbourTable) -> Layouts:
        """Everything that is live now."""
        chunks = ExportPositions.of_live(table.view.chunks)
        is_own = table.query_set == SELF
        return cls(chunks, chunks if is_own else ExportPositions.of_live(table.view.query_set(table.query_set)))


class ExportSource:
    """A neighbour table with the chunks of its query set and of the database, each at its place."""

    def __init__(self, table: NeighbourTable, layouts: Layouts) -> None:
        self.table, self.view, self.settings = table, table.view, table.view.settings
        self.chunks, self.rows = layouts.chunks, layouts.rows
        self.database: ChunkSet = self.view.chunks
        self.queries: ChunkSet = self.view.query_set(table.query_set)
        self.k: int = table.k
        self.chunk_tokens: int = self.settings.chunk_tokens
        self.state_of_chunks = lru_cache(maxsize=None)(lambda: live_state(self.database, self.chunks))
        self.state_of_rows = lru_cache(maxsize=None)(lambda: live_state(self.queries, self.rows))
        self.state_of_neighbours = lru_cache(maxsize=None)(self._state_of_neighbours)

    @property
    def is_own(self) -> bool:
        """Whether the rows are the database's own chunks."""
        return self.table.query_set == SELF

    def neighbours(self, rows: Int64Array) -> Int64Array:
        """(Q, K) places of the live neighbours of query rows, -1 where there is none and for deleted rows."""
        places = left_packed(self.chunks.places(self.table.read(rows)[0]))
        return np.where(self.queries.is_live(rows)[:, None], places, -1)

    def continuations(self, ids: Int64Array) -> Int64Array:
        """(Q,) places of the live continuations of the database's chunks, -1 where there is none."""
        return self.chunks.places(self.database.continuation(ids))

    def _state_of_neighbours(self) -> str:
        return state_of(self.neighbours(rows) for rows in self.rows.blocks())


def live_state(chunks: ChunkSet, layout: ExportPositions) -> str:
    """A digest of which chunks of a layout are live, and so of all their tokens: an id means the same chunk for ever."""
    return state_of([np.frombuffer(layout.digest.encode(), np.uint8), *map(chunks.is_live, layout.blocks())])


def state_of(arrays: Iterable[AnyArray]) -> str:
    """A digest of arrays, one after the other."""
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def left_packed(places: Int64Array) -> Int64Array:
    """Every row of (Q, K) with its -1 moved behind the others, whose order stays."""
    order = np.argsort(places < 0, axis=1, kind="stable")
    packed: Int64Array = np.take_along_axis(places, order, axis=1)
    return packed
