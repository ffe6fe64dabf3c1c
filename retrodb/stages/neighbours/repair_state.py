"""A neighbour table, what its rows were compared with, and what they should be compared with now.

A repair asks for the rows that can change, and looks at no others: their lists and vectors, and what is new or lost for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block
from retrodb.ann.list_rows import ListRows
from retrodb.ann.rerank import LivePart
from retrodb.ann.reverse_join import NewRows
from retrodb.config import NeighboursParams
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.records import ChunkRange
from retrodb.format.rows import is_in
from retrodb.stages.index.live_parts import database_keys, key_kinds, open_codebook, open_files, parts_of
from retrodb.stages.neighbours.block_join import lists_of_rows
from retrodb.stages.neighbours.compared_states import split_ranges
from retrodb.stages.neighbours.compared_tasks import ComparedSides, TableInputs, compared_sides
from retrodb.stages.neighbours.range_rows import ListRange, rows_in_lists
from retrodb.stages.neighbours.table_inputs import database_side
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedSets, with_gaps
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from pyroaring import BitMap

_NEAR_LISTS = 2  # times the lists that a row probes: those near a new chunk have almost all rows that probe its list
_MOST_PROBED = 1 << 22  # ids, int64: 32 MB, and three times as much while they are sorted


@dataclass(frozen=True)
class RepairState:
    """A table before and after its repair."""

    view: View
    table: NeighbourTable
    params: NeighboursParams
    before: ComparedSets  # that the rows of the table were compared with
    now: ComparedSides  # that they are compared with after the repair

    @cached_property
    def new_ids(self) -> Int64Array:
        """The chunks that the rows were not compared with, ascending."""
        return self._difference(lambda now, before: now - before)

    @cached_property
    def lost_ids(self) -> Int64Array:
        """The chunks that the rows were compared with, and that are deleted or not chosen now, ascending."""
        return self._difference(lambda now, before: before - now)

    @cached_property
    def _database_ranges(self) -> list[ChunkRange]:
        """The ranges of all chunks that are compared now or were compared before, ascending."""
        return with_gaps([record.span for record in self.view.chunks.ranges], self.before.ranges(DATABASE))

    @cached_property
    def _changed_ranges(self) -> list[ChunkRange]:
        """Those of them that are not as they were: nothing of the others is new or lost."""
        return split_ranges(self.before, self.now.inputs.states(self.view), DATABASE).to_look_at

    @cached_property
    def changed_ids(self) -> Int64Array:
        """The chunks that may be in the list of a row, and that are lost, or new again, ascending."""
        end = max((span.end for span in self.before.ranges(DATABASE)), default=0)  # later ids are in no list
        return np.union1d(self.lost_ids, self.new_ids[self.new_ids < end])

    def _difference(self, of_rows: Callable[[BitMap, BitMap], BitMap]) -> Int64Array:
        ids = [np.empty(0, dtype=np.int64)]
        for span in self._changed_ranges:
            rows = of_rows(self.now.rows(DATABASE, span), self.before.rows(DATABASE, *span))
            ids.append(span.first_chunk + np.frombuffer(rows.to_array(), dtype=np.uint32).astype(np.int64))
        return np.concatenate(ids)

    def are_allowed(self, ids: Int64Array) -> BoolArray:
        """Which ids (any shape) can be neighbours now."""
        return self._are_in(ids, lambda span: self.now.rows(DATABASE, span))

    def were_compared(self, ids: Int64Array) -> BoolArray:
        """Which ids (any shape) the rows were compared with."""
        return self._are_in(ids, lambda span: self.before.rows(DATABASE, *span))

    def _are_in(self, ids: Int64Array, rows_of: Callable[[ChunkRange], BitMap]) -> BoolArray:
        distinct, numbers = np.unique(ids, return_inverse=True)
        mask = np.zeros(len(distinct), dtype=np.bool_)
        for span in self._database_ranges:
            low, high = np.searchsorted(distinct, [span.first_chunk, span.end])
            if low < high:
                mask[low:high] = is_in(rows_of(span), distinct[low:high] - span.first_chunk, span.num_chunks)
        return mask[numbers].reshape(ids.shape)

    @cached_property
    def new_chunks(self) -> Block:
        """The chunks that the rows were not compared with."""
        ids, space = self.new_ids, self.table.entry.space
        keys = {kind: database_keys(self.view, kind, ids) for kind in key_kinds(self.params.exclude)}
        return Block(ids, self.view.vectors(space, ids), None, keys)

    def known_rows(self, span: ChunkRange) -> BitMap:
        """The rows of a range of the query set that the table has computed."""
        return self.before.rows(QUERIES, *span)

    @cached_property
    def codebook(self) -> Codebook:
        """The codebook of the space, opened once."""
        return open_codebook(self.view, self.table.entry.space)

    @cached_property
    def new_by_list(self) -> NewRows:
        """The new chunks by the lists near them, in which the rows are that may probe the list of a new chunk."""
        return self._new_in_lists(_NEAR_LISTS * self.table.entry.nprobe)

    @cached_property
    def new_by_home(self) -> NewRows:
        """The new chunks by their own list, in which a row that probes it finds them."""
        return self._new_in_lists(1)

    def _new_in_lists(self, num_lists: int) -> NewRows:
        new = self.new_chunks
        lists = lists_of_rows(self.view, self.table.entry.space, SELF, new.ids_N, self.codebook, num_lists, 1)
        return NewRows.of(new, lists, self.codebook.num_lists)

    def are_probed(self, rows: Int64Array, span: ChunkRange, threads: int) -> BoolArray:
        """(Q,) which of some of the database's own rows, ascending in a range, may get a new neighbour.

        These are the rows whose nearest list is near a new chunk, and those that are in no part, whose list is not known.
        """
        if self._probed_ids is None:
            homes = lists_of_rows(self.view, self.table.entry.space, SELF, rows, self.codebook, 1, threads)[:, 0]
            return self._is_probed_L[homes]
        in_parts = is_in(self.now.parts.covered_rows(*span), rows - span.first_chunk, span.num_chunks)
        return np.isin(rows, self._probed_ids, assume_unique=True) | ~in_parts

    @cached_property
    def _is_probed_L(self) -> BoolArray:
        is_probed: BoolArray = np.diff(self.new_by_list.groups.offsets_L1) > 0
        return is_probed

    @cached_property
    def _probed_ids(self) -> Int64Array | None:
        """The chunks in the lists near new chunks, ascending; None where they are too many for the memory."""
        lists, ids, count = np.flatnonzero(self._is_probed_L), [np.empty(0, dtype=np.int64)], 0
        for files in parts_of(self.view, self.table.entry.space):
            rows = open_files(self.view.files, files).rows_of_lists(lists)
            ids.append(files.span.first_chunk + files.row_set(self.view.files).select(rows))
            count += len(rows)
            if count > _MOST_PROBED:
                return None
        return np.unique(np.concatenate(ids))

    @cached_property
    def database(self) -> Sequence[LivePart] | Sequence[ListRows]:
        """The database side, for the rows that are computed again."""
        space = self.table.entry.space
        if self.table.entry.nprobe == 0:
            return database_side(self.view, space, self.params)
        return list(rows_in_lists(self.view, space, self.params, ListRange(0, self.codebook.num_lists)))


@lru_cache(maxsize=1)
def planned_state(storage: Storage, snapshot: PlannedSnapshot, table: str) -> RepairState:
    """The state of a table as of a planned snapshot, opened once per process. Raises MissingStep when there is no such table."""
    view = planned_view(storage, snapshot)
    of_table = NeighbourTable(view, table)
    entry, params = of_table.entry, of_table.entry.params
    inputs = TableInputs(snapshot, table, entry.queries, entry.space, params)
    return RepairState(view, of_table, params, ComparedSets.read(view, table), compared_sides(storage, inputs))
