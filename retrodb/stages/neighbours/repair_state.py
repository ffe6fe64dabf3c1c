"""A neighbour table, what its rows were compared with, and the database side that they should be compared with now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block
from retrodb.ann.rerank import LivePart
from retrodb.ann.reverse_join import NewRows
from retrodb.config import NeighboursParams
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.records import ChunkRange
from retrodb.format.rows import is_in
from retrodb.stages.index.live_parts import key_kinds, open_codebook
from retrodb.stages.neighbours.block_join import lists_of_rows
from retrodb.stages.neighbours.table_inputs import database_side
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedSets
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class RepairState:
    """A table before and after its repair."""

    view: View
    table: NeighbourTable
    params: NeighboursParams
    parts: list[LivePart]  # the database side now
    before: ComparedSets  # that the rows of the table were compared with

    @staticmethod
    def of(view: View, name: str) -> RepairState:
        """The state of a table as of a snapshot. Raises MissingStep when there is no such table."""
        table = NeighbourTable(view, name)
        params = table.entry.params
        parts = database_side(view, table.entry.space, params)
        return RepairState(view, table, params, parts, ComparedSets.read(view, name))

    @cached_property
    def new_chunks(self) -> Block:
        """The chunks that the rows were not compared with."""
        blocks = []
        for part in self.parts:
            is_new = ~self._was_compared(part.ids_N)
            rows = np.flatnonzero(is_new if part.allowed_N is None else is_new & part.allowed_N)
            keys = {kind: key[rows] for kind, key in part.keys.items()}
            blocks.append(Block(part.ids_N[rows], part.fetch(rows), None, keys))
        ids = np.concatenate([np.empty(0, np.int64), *(block.ids_N for block in blocks)])
        vectors = np.concatenate([block.vectors_ND for block in blocks]) if blocks else np.empty((0, 0), np.float32)
        kinds = key_kinds(self.params.exclude) if blocks else ()
        keys = {kind: np.concatenate([block.keys[kind] for block in blocks]) for kind in kinds}
        return Block(ids, vectors, None, keys)

    def _was_compared(self, ids_N: Int64Array) -> BoolArray:
        """(N,) bool: which of some ascending chunks the rows were compared with."""
        was_compared = np.zeros(len(ids_N), dtype=bool)
        for span in self.before.ranges(DATABASE):
            low, high = np.searchsorted(ids_N, [span.first_chunk, span.end])
            if high > low:
                rows = ids_N[low:high] - span.first_chunk
                was_compared[low:high] |= is_in(self.before.rows(DATABASE, *span), rows, span.num_chunks)
        return was_compared

    def known_rows(self, rows: Int64Array, span: ChunkRange) -> BoolArray:
        """(Q,) bool: which rows of a range of the query set the table has computed."""
        return is_in(self.before.rows(QUERIES, *span), rows - span.first_chunk, span.num_chunks)

    @cached_property
    def codebook(self) -> Codebook:
        """The codebook of the space, opened once."""
        return open_codebook(self.view, self.table.entry.space)

    @cached_property
    def new_by_list(self) -> NewRows:
        """The new chunks by the lists that they probe."""
        entry, new = self.table.entry, self.new_chunks
        probes = lists_of_rows(self.view, entry.space, SELF, new.ids_N, self.codebook, entry.nprobe, 1)
        return NewRows.of(new, probes, self.codebook.num_lists)


@lru_cache(maxsize=1)
def planned_state(storage: Storage, snapshot: PlannedSnapshot, table: str) -> RepairState:
    """The state of a table as of a planned snapshot, opened once per process."""
    return RepairState.of(planned_view(storage, snapshot), table)
