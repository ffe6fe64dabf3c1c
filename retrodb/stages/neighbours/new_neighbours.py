"""Which new chunks enter the lists of which known rows, by the bounds of these rows: no list of neighbours is read.

A new chunk enters a list where it is below the bound (see `repair_task`). The bound's distance is a column of its own, of 4 bytes
a row; its id is in the list and decides ties only. So what is found here may have chunks of which the list says that they
do not enter, and `NewNeighbours.below` leaves them out. A row whose bound is infinity or `CAPPED` lacks neighbours, which may be
in any list: it is compared with all new chunks, as each row of an exact table is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodb.ann.exact import exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.metric import CAPPED, check_vectors
from retrodb.ann.reverse_join import BLOCK_QUERIES, reverse_join
from retrodb.ann.topk import TopK, empty_topk
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array, VectorArray
from retrodb.format.records import ChunkRange
from retrodb.stages.neighbours.block_join import lists_of_rows
from retrodb.stages.neighbours.repair_state import RepairState
from retrodb.stages.neighbours.table_inputs import exclusion_of

_NO_ID = np.iinfo(np.int64).max
_MOST_PRODUCTS = 1 << 14
"""New chunks whose products with a row are computed before anything else. To find the row's lists takes about as long."""


@dataclass(frozen=True)
class NewNeighbours:
    """New chunks by the rows that they may enter."""

    rows_Q: Int64Array  # ascending; each has a new chunk
    ids_QW: Int64Array  # the nearest new chunks that are not above the bound's distance; -1 where there are fewer
    distances_QW: Float32Array  # infinity where there are fewer

    def below(self, rows: Int64Array, bound: Float32Array, last: Int64Array) -> TopK:
        """The new chunks of some rows, ascending, below their bounds (distance, id): (Q, w) each, -1 and infinity for none."""
        ids, distances = empty_topk(len(rows), self.ids_QW.shape[1])
        is_here = np.isin(rows, self.rows_Q, assume_unique=True)
        where = np.searchsorted(self.rows_Q, rows[is_here])
        ids[is_here], distances[is_here] = self.ids_QW[where], self.distances_QW[where]
        is_above = (distances == bound[:, None]) & (ids > last[:, None])
        ids[is_above], distances[is_above] = -1, np.inf
        return ids, distances


def find_new_neighbours(
    state: RepairState, known: Int64Array, asked: Int64Array, span: ChunkRange, threads: int
) -> NewNeighbours:
    """The new chunks of the known rows of a range, ascending: of all that they may enter, and in any case of those asked for."""
    found = [NewNeighbours(known[:0], *empty_topk(0, state.table.width))]
    if len(state.new_ids) and len(known):
        rows, is_by_codes = known, state.finds_rows_by_codes
        if is_by_codes:
            rows = np.union1d(known[state.near(known, span)], asked)
        for start in range(0, len(rows), BLOCK_QUERIES):
            block = rows[start : start + BLOCK_QUERIES]
            if not is_by_codes and len(state.new_ids) <= _MOST_PRODUCTS:
                block = block[_may_be_within(state, block, threads)]
            found.append(_of_rows(state, block, threads))
    return NewNeighbours(
        np.concatenate([each.rows_Q for each in found]),
        np.concatenate([each.ids_QW for each in found]),
        np.concatenate([each.distances_QW for each in found]),
    )


def _may_be_within(state: RepairState, rows: Int64Array, threads: int) -> BoolArray:
    """(Q,) which rows may have a new chunk, excluded or not, within their bounds: all that have, and few others."""
    queries = check_vectors(_vectors(state, rows), state.new_vectors.dim, where="queries")
    return state.new_vectors.may_be_within(queries, state.table.bounds(rows), state.metric, threads)


def _of_rows(state: RepairState, rows: Int64Array, threads: int) -> NewNeighbours:
    """Which of some rows new chunks enter, and which new chunks."""
    width, bounds = state.table.width, state.table.bounds(rows)
    best = np.full((len(rows), width), _NO_ID), np.repeat(bounds[:, None], width, axis=1)
    takes_all = (bounds >= CAPPED) | (state.table.entry.nprobe == 0)  # what a row lacks may be in any list
    for join, chosen in ((_compare_with_all, takes_all), (_join_by_lists, ~takes_all)):
        positions = np.flatnonzero(chosen)
        if len(positions):
            of_chosen = best[0][positions], best[1][positions]
            join(state, rows[positions], of_chosen, threads)
            best[0][positions], best[1][positions] = of_chosen
    ids, distances = best
    is_none = ids == _NO_ID
    ids[is_none], distances[is_none] = -1, np.inf
    has_new = ids[:, 0] >= 0
    return NewNeighbours(rows[has_new], ids[has_new], distances[has_new])


def _compare_with_all(state: RepairState, rows: Int64Array, best: TopK, threads: int) -> None:
    """Merge into the best of rows all new chunks."""
    vectors, exclusion = _vectors(state, rows), _exclusion(state, rows)
    exact_topk(vectors, [state.new_chunks], state.table.width, state.metric, exclusion, threads, best)


def _join_by_lists(state: RepairState, rows: Int64Array, best: TopK, threads: int) -> None:
    """Merge into the best of rows the new chunks whose own list they read. Rows with the same first list follow one another."""
    space, queries = state.table.entry.space, state.table.query_set
    lists = lists_of_rows(state.view, space, queries, rows, state.codebook_of_rows, state.probes, threads)
    order = np.argsort(lists[:, 0], kind="stable")
    vectors, exclusion = _vectors(state, rows[order]), _exclusion(state, rows).rows(order)
    ordered = best[0][order], best[1][order]
    reverse_join(vectors, lists[order], state.new_by_home, state.metric, exclusion, ordered, threads)
    best[0][order], best[1][order] = ordered


def _vectors(state: RepairState, rows: Int64Array) -> VectorArray:
    return state.view.vectors(state.table.entry.space, rows, state.table.query_set)


def _exclusion(state: RepairState, rows: Int64Array) -> Exclusion:
    return exclusion_of(state.view, state.table.query_set, state.params, rows)
