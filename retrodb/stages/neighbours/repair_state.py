"""A neighbour table, what its rows were compared with, and what they should be compared with now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block
from retrodb.ann.rerank import LivePart
from retrodb.ann.reverse_join import NewRows
from retrodb.config import NeighboursParams
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.neighbours.block_join import lists_of_rows
from retrodb.stages.neighbours.table_inputs import database_side
from retrodb.stages.neighbours.table_rows import allowed_ids, query_ids, spans_of
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import ComparedSets, ids_of
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
    after: ComparedSets  # that rows computed now are compared with

    @staticmethod
    def of(view: View, name: str) -> RepairState:
        """The state of a table as of a snapshot. Raises MissingStep when there is no such table."""
        table = NeighbourTable(view, name)
        queries, space = table.query_set, table.entry.space
        params = table.entry.params
        parts = database_side(view, space, params)
        rows = (query_ids(view, queries, space, span) for span in spans_of(view, queries))
        after = ComparedSets.of(allowed_ids(parts), rows)
        return RepairState(view, table, params, parts, ComparedSets.read(view, name), after)

    @cached_property
    def new_chunks(self) -> Block:
        """The chunks that the rows were not compared with."""
        new_ids, blocks = ids_of(self.after.database - self.before.database), []
        for part in self.parts:
            is_new = np.isin(part.ids_N, new_ids, assume_unique=True)
            rows = np.flatnonzero(is_new if part.allowed_N is None else is_new & part.allowed_N)
            keys = {kind: key[rows] for kind, key in part.keys.items()}
            blocks.append(Block(part.ids_N[rows], part.fetch(rows), None, keys))
        ids = np.concatenate([np.empty(0, np.int64), *(block.ids_N for block in blocks)])
        vectors = np.concatenate([block.vectors_ND for block in blocks]) if blocks else np.empty((0, 0), np.float32)
        kinds = self.params.exclude if blocks else ()
        keys = {kind: np.concatenate([block.keys[kind] for block in blocks]) for kind in kinds}
        return Block(ids, vectors, None, keys)

    @cached_property
    def codebook(self) -> Codebook:
        """The codebook of the space, opened once."""
        return open_codebook(self.view, self.table.entry.space)

    @cached_property
    def new_by_list(self) -> NewRows:
        """The new chunks by the lists that they probe."""
        entry, new = self.table.entry, self.new_chunks
        probes = lists_of_rows(self.view, entry.space, SELF, new.ids_N, self.parts, self.codebook, entry.nprobe, 1)
        return NewRows.of(new, probes, self.codebook.num_lists)


@lru_cache(maxsize=1)
def planned_state(storage: Storage, snapshot: PlannedSnapshot, table: str) -> RepairState:
    """The state of a table as of a planned snapshot, opened once per process."""
    return RepairState.of(planned_view(storage, snapshot), table)
