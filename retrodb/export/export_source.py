"""What every format is written from: a neighbour table as of a snapshot, and the positions of its chunks in the export.

Legend: Q rows of a block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from retrodb.config import ExportParams
from retrodb.export.positions import ExportPositions, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF


@dataclass(frozen=True)
class TablePositions:
    """The positions of an export: those of the chunks that are neighbours, and those of the table's rows."""

    chunks: ExportPositions  # of the database's chunks
    rows: ExportPositions  # of the query set's chunks; the same object when the query set is the database


class ExportSource:
    """A neighbour table with the chunks of its query set and of the database, each at its position.

    Attributes:
        subsets: all tables of an export of several, by what they are for; the first one is this. Empty for a single table.
        params: those that only some formats have.
        scratch: folder of files that others are written from.
    """

    def __init__(self, table: NeighbourTable, positions: TablePositions, params: ExportParams, scratch: Path) -> None:
        self.params, self.scratch = params, scratch
        self.subsets: Mapping[str, ExportSource] = {}
        self.table, self.view, self.settings = table, table.view, table.view.settings
        self.chunks, self.rows = positions.chunks, positions.rows
        self.database: ChunkSet = self.view.chunks
        self.queries: ChunkSet = self.view.query_set(table.query_set)
        self.k: int = table.k
        self.chunk_tokens: int = self.settings.chunk_tokens

    @classmethod
    def of_tables(
        cls,
        tables: Mapping[str, NeighbourTable],
        positions: Mapping[str, TablePositions],
        params: ExportParams,
        scratch: Path,
    ) -> ExportSource:
        """The source of one table, whose name in the mapping is "", or of several with their subsets."""
        sources = {subset: cls(table, positions[subset], params, scratch) for subset, table in tables.items()}
        first = next(iter(sources.values()))
        if "" not in sources:
            first.subsets = sources
        return first

    @property
    def tables(self) -> Mapping[str, ExportSource]:
        """All tables by subset; "" is the only one of an export without subsets."""
        return self.subsets or {"": self}

    @property
    def has_own_rows(self) -> bool:
        """Whether the rows are the database's own chunks."""
        return self.table.query_set == SELF

    def neighbours(self, rows: Int64Array) -> Int64Array:
        """(Q, K) positions of the live neighbours of query rows, -1 where there is none and for deleted rows."""
        positions = missing_last(self.chunks.positions(self.table.read(rows)[0]))
        return np.where(self.queries.is_live(rows)[:, None], positions, -1)

    def continuations(self, ids: Int64Array) -> Int64Array:
        """(Q,) positions of the live continuations of the database's chunks, -1 where there is none."""
        return self.chunks.positions(self.database.continuation(ids))

    def chunks_digest(self, span: PositionSpan) -> str:
        """Of everything that the tokens and continuations of the database's chunks in a span depend on."""
        return live_chunks_digest(self.database, span)

    def rows_digest(self, span: PositionSpan) -> str:
        """The same for the chunks of the query set."""
        return live_chunks_digest(self.queries, span)

    def neighbours_digest(self, span: PositionSpan) -> str:
        """Of the neighbours of a span of rows."""
        return arrays_digest(self.neighbours(rows) for rows in span.blocks())


def live_chunks_digest(chunks: ChunkSet, span: PositionSpan) -> str:
    """A digest of which chunks with a position are live. As an id always means the same chunk, it covers their tokens."""
    is_live = map(chunks.is_live, span.blocks())
    return arrays_digest([np.frombuffer(span.record.digest.encode(), np.uint8), *is_live])


def arrays_digest(arrays: Iterable[AnyArray]) -> str:
    """A digest of arrays, one after the other."""
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def missing_last(positions: Int64Array) -> Int64Array:
    """Every row of (Q, K) with its -1 moved to the end; the others keep their order."""
    order = np.argsort(positions < 0, axis=1, kind="stable")
    sorted_QK: Int64Array = np.take_along_axis(positions, order, axis=1)
    return sorted_QK
