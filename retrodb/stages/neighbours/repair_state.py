"""A neighbour table, what its rows were compared with, and what they should be compared with now.

A repair asks for the rows that can change, and looks at no others: their lists and vectors, and what is new or lost for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, FixedRows
from retrodb.ann.list_rows import ListRows
from retrodb.ann.metric import CAPPED, check_vectors
from retrodb.ann.near_rows import near_rows
from retrodb.ann.part import Part
from retrodb.ann.rerank import LivePart
from retrodb.ann.reverse_join import NewRows
from retrodb.ann.routing import Probes, probes_of
from retrodb.config import NeighboursParams
from retrodb.format.arrays import BoolArray, Float32Array, Int32Array, Int64Array
from retrodb.format.entries import Metric, SpaceEntry
from retrodb.format.records import ChunkRange
from retrodb.format.rows import is_in, mask_of
from retrodb.stages.index.live_parts import (
    LiveParts,
    PartFiles,
    database_keys,
    key_kinds,
    open_codebook,
    open_files,
    parts_of,
)
from retrodb.stages.index.operating_point import home_lists
from retrodb.stages.neighbours.block_join import lists_of_rows
from retrodb.stages.neighbours.compared_states import split_ranges
from retrodb.stages.neighbours.compared_tasks import ComparedSides, TableInputs, compared_before, compared_sides
from retrodb.stages.neighbours.range_rows import ListRange, rows_in_lists
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import DATABASE, LISTS, QUERIES, ComparedSets, with_gaps
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from pyroaring import BitMap

_NEAR_LISTS = 2  # times the lists that a row probes: those near a new chunk have almost all rows that probe its list
_MOST_NEW = 64  # chunks that are compared with the codes of all lists: a product of many with all vectors is faster
_OPEN_PARTS = 16
_MOST_LISTS = 1 << 22  # of all new chunks together: 16 MB, twice


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
    def _range_starts(self) -> Int64Array:
        return np.array([span.first_chunk for span in self._database_ranges], dtype=np.int64)

    @cached_property
    def _changed_ranges(self) -> list[ChunkRange]:
        """Those of them that are not as they were: nothing of the others is new or lost."""
        return split_ranges(self.before, self.now.inputs.states(self.view), DATABASE).to_look_at

    @cached_property
    def _are_changed(self) -> frozenset[ChunkRange]:
        return frozenset(self._changed_ranges)

    def _rows_now(self, span: ChunkRange) -> BitMap:
        """The chunks of one of the ranges that can be neighbours now; of one that is as it was they are stored."""
        return self.now.rows(DATABASE, span) if span in self._are_changed else self.before.rows(DATABASE, *span)

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
        return self._are_in(ids, self._rows_now)

    def were_compared(self, ids: Int64Array) -> BoolArray:
        """Which ids (any shape) the rows were compared with."""
        return self._are_in(ids, lambda span: self.before.rows(DATABASE, *span))

    def _are_in(self, ids: Int64Array, rows_of: Callable[[ChunkRange], BitMap]) -> BoolArray:
        distinct, numbers = np.unique(ids, return_inverse=True)
        mask = np.zeros(len(distinct), dtype=np.bool_)
        of_each = np.searchsorted(self._range_starts, distinct, side="right") - 1
        indices, starts = np.unique(of_each, return_index=True)
        for index, (low, high) in zip(indices.tolist(), pairwise([*starts.tolist(), len(distinct)]), strict=True):
            if index >= 0:
                span = self._database_ranges[index]
                rows = distinct[low:high] - span.first_chunk
                rows = rows[rows < span.num_chunks]  # the others are between two ranges
                mask[low : low + len(rows)] = is_in(rows_of(span), rows, span.num_chunks)
        return mask[numbers].reshape(ids.shape)

    @cached_property
    def new_chunks(self) -> Block:
        """The chunks that the rows were not compared with."""
        ids, space = self.new_ids, self.table.entry.space
        keys = {kind: database_keys(self.view, kind, ids) for kind in key_kinds(self.params.exclude)}
        return Block(ids, self.view.vectors(space, ids), None, keys)

    @cached_property
    def new_vectors(self) -> FixedRows:
        """The vectors of the new chunks."""
        vectors = self.new_chunks.vectors_ND
        return FixedRows.of(check_vectors(vectors, vectors.shape[1], where="new vectors"))

    @cached_property
    def metric(self) -> Metric:
        """The metric of the table's space."""
        return self.view.snapshot.existing(SpaceEntry, self.table.entry.space).metric

    def known_rows(self, span: ChunkRange) -> BitMap:
        """The rows of a range of the query set that the table has computed."""
        return self.before.rows(QUERIES, *span)

    @cached_property
    def codebook(self) -> Codebook:
        """The codebook of the space, opened once."""
        return open_codebook(self.view, self.table.entry.space)

    @cached_property
    def filled_lists(self) -> Int64Array:
        """The lists in which a restricted table has or had chunks, with those of new chunks, ascending; empty for others."""
        if not self.table.entry.filled_lists:
            return np.empty(0, dtype=np.int64)
        stored = self.before.rows(LISTS, 0, self.codebook.num_lists).to_array()
        return np.union1d(np.array(stored, dtype=np.int64), home_lists(self.view, self.table.entry.space, self.new_ids))

    @cached_property
    def codebook_of_rows(self) -> Codebook:
        """The codebook, which finds the lists that rows may read."""
        return self.codebook.within(self.filled_lists)

    @cached_property
    def probes(self) -> Probes:
        """The lists that each row reads."""
        entry = self.table.entry
        return probes_of(entry).among(entry.filled_lists, len(self.filled_lists))

    @cached_property
    def new_by_home(self) -> NewRows:
        """The new chunks by their own list, in which a row that probes it finds them."""
        return self._new_in(self._nearest_lists(1))

    @cached_property
    def _new_by_list(self) -> NewRows:
        """The new chunks by the lists near them, in which the rows are that may probe the list of a new chunk."""
        if self.table.entry.nprobe == 0:
            lists = np.arange(self.codebook.num_lists, dtype=np.int32)
            return self._new_in(np.tile(lists, (len(self.new_ids), 1)))
        return self._new_in(self._nearest_lists(self._num_near))

    @property
    def _num_near(self) -> int:
        """How many lists are looked at for rows that may probe the list of a new chunk."""
        probes, num_lists = self.probes, self.codebook.num_lists
        looked_at = max(_NEAR_LISTS * probes.nprobe, probes.routing.num_lists if probes.routing else 0)
        return min(-(-looked_at * num_lists // self.codebook_of_rows.num_findable), num_lists)

    def _nearest_lists(self, num_lists: int) -> Int32Array:
        nearest = Probes(num_lists)
        return lists_of_rows(self.view, self.table.entry.space, SELF, self.new_ids, self.codebook, nearest, 1)

    def _new_in(self, lists: Int32Array) -> NewRows:
        return NewRows.of(self.new_chunks, lists, self.codebook.num_lists)

    @cached_property
    def finds_rows_by_codes(self) -> bool:
        """Whether `near` is to say which rows may get a new neighbour: those of other query sets have no codes.

        An exact table compares each new chunk with all lists, and a restricted one with very many where its lists are few: many
        new chunks are joined without looking at codes first.
        """
        if self.table.query_set != SELF:
            return False
        num_new, entry = len(self.new_ids), self.table.entry
        if entry.filled_lists:
            return num_new * self._num_near <= _MOST_LISTS
        return entry.nprobe > 0 or (num_new <= _MOST_NEW and num_new * self.codebook.num_lists <= _MOST_LISTS)

    def near(self, known: Int64Array, span: ChunkRange) -> BoolArray:
        """(Q,) which of some of the database's own rows, ascending in a range, may get a new neighbour.

        Of the rows in the lists near a new chunk these are all that it is near enough to, and few others. A row that is in
        no part may always get one, because its list is not known, and so may a row that lacks neighbours.
        """
        view = self.view
        is_known = np.zeros(span.num_chunks, dtype=np.bool_)
        is_known[known - span.first_chunk] = True
        bounds = np.where(is_known, self.table.bounds_in(*span), np.float32(-np.inf))  # to others, nothing is near
        is_near = np.zeros(span.num_chunks, dtype=np.bool_)
        for number, files in enumerate(self._parts):
            offset, row_set = files.span.first_chunk - span.first_chunk, files.row_set(view.files)
            first, end = row_set.position_from(-offset), row_set.position_from(span.num_chunks - offset)
            if first < end:
                rows = np.frombuffer(row_set.rows_in(offset, span.num_chunks).to_array(), dtype=np.uint32)
                bounds_of = partial(_of_positions, bounds, rows, first)
                part = self._opened_part(number)
                near = near_rows(part, self._new_by_list, self.metric, bounds_of, range(first, end))
                is_near[rows[near - first]] = True
        is_near |= ~mask_of(self.now.parts.covered_rows(*span), span.num_chunks) | (bounds >= CAPPED)
        return is_near[known - span.first_chunk]

    @cached_property
    def _parts(self) -> list[PartFiles]:
        return parts_of(self.view, self.table.entry.space)

    @cached_property
    def _opened_part(self) -> Callable[[int], Part]:
        """Opens a part by its number; ranges that follow one another have rows of the same parts."""
        return lru_cache(maxsize=_OPEN_PARTS)(lambda number: open_files(self.view.files, self._parts[number]))

    @cached_property
    def database(self) -> Sequence[LivePart] | Sequence[ListRows]:
        """The database side, for the rows that are computed again."""
        space = self.table.entry.space
        if self.table.entry.nprobe == 0:
            parts = LiveParts(self.view, space, key_kinds(self.params.exclude))
            return list(parts) if self.now.restriction is None else [self._chosen(part) for part in parts]
        lists = ListRange(0, self.codebook.num_lists)
        return list(rows_in_lists(self.view, space, self.params, lists, are_chosen=self.are_allowed))

    def _chosen(self, part: LivePart) -> LivePart:
        """A part with the rows that a restriction chooses."""
        chosen = self.are_allowed(part.ids_N)
        return replace(part, allowed_N=chosen if part.allowed_N is None else chosen & part.allowed_N)


@lru_cache(maxsize=1)
def planned_state(storage: Storage, snapshot: PlannedSnapshot, table: str) -> RepairState:
    """The state of a table as of a planned snapshot, opened once per process. Raises MissingStep when there is no such table."""
    view = planned_view(storage, snapshot)
    of_table = NeighbourTable(view, table)
    now = compared_sides(storage, TableInputs.of(of_table))
    return RepairState(view, of_table, of_table.entry.params, compared_before(view, table), now)


def _of_positions(
    bounds: Float32Array, rows: npt.NDArray[np.uint32], first: int, positions: Int64Array
) -> Float32Array:
    """The bounds of rows of a range by their positions in a part, of which the range's first row has one."""
    return bounds[rows[positions - first]]
