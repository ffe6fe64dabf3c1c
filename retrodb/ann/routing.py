"""Which lists a query row reads: its nearest ones, or those of few ranges of lists, chosen by expected gain.

Lists are numbered in leaf order, so a range of consecutive lists is a region of space. A routing knows which fraction of the
true neighbours the r-th nearest list of a row holds, its *gain*. A row looks at its M nearest lists: the score of a range is
the sum of the gains of those that are in it. The row takes ranges by descending score until their scores add up to the mass, and
reads its nearest lists inside them. Gains are integers, so a sum does not depend on its order. `route_learning.py` has the
choice of a routing.

Legend: Q query rows, M of their nearest lists, A lists that a row reads, L lists, R ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.metric import check_vectors
from retrodb.format.arrays import BoolArray, Float64Array, Int32Array, Int64Array, VectorArray
from retrodb.format.entries import Routing, TableEntry

ROUTED_BYTES = 64 << 20  # what `Probes.lists` holds of a block of rows at most, next to its vectors and result
PROBED_NEXT = 4  # times as many lists are probed by rows that found too few neighbours
_BLOCK_CELLS = 1 << 20
"""Of lists or ranges of a block of rows: about 50 bytes each, in arrays of float64, int64 and bool."""


@dataclass(frozen=True)
class Probes:
    """Which lists the rows of a query set read."""

    nprobe: int  # lists that a row reads at most; 0 compares with every vector
    routing: Routing | None = None  # None: the nearest lists, wherever they are
    most_lists: int = 0  # that a row reads when it finds too few neighbours; 0: all

    def lists(self, codebook: Codebook, vectors_QD: VectorArray, threads: int = 1) -> Int32Array:
        """(Q, A) int32: the lists that rows with these vectors read, nearest first, -1 where a row reads fewer."""
        count = min(self.nprobe, codebook.num_findable)
        if self.routing is None:
            return codebook.nearest_lists(vectors_QD, count, threads)
        vectors = check_vectors(vectors_QD, codebook.dim)
        lists_QA = np.empty((len(vectors), count), dtype=np.int32)
        num_looked_at = min(self.routing.num_lists, codebook.num_findable)
        num_rows = max(1, _BLOCK_CELLS // max(num_looked_at, self.routing.num_ranges))
        for start in range(0, len(vectors), num_rows):
            nearest_QM = codebook.nearest_lists(vectors[start : start + num_rows], num_looked_at, threads)
            lists_QA[start : start + num_rows] = routed_lists(nearest_QM, count, self.routing, codebook.num_lists)
        return lists_QA

    def among(self, before: int, now: int) -> Probes:
        """The lists of the same region of space, where `now` lists can be found in place of `before`."""
        if now <= before:
            return self
        nprobe, routing = -(-self.nprobe * now // before), self.routing
        if routing is not None:
            routing = replace(
                routing, gains=tuple((1, gain) for gain in _spread(gains_of(routing), before, now).tolist())
            )
        return Probes(nprobe, routing, max(self.most_lists, nprobe) if self.most_lists else 0)

    def are_partial(self, lists_QA: Int32Array, most: int) -> BoolArray:
        """(Q,) whether rows that read these lists read more of them, up to `most`, when they find too few neighbours."""
        if self.routing is None:
            return np.full(len(lists_QA), self.nprobe < most)
        is_partial: BoolArray = (lists_QA >= 0).sum(axis=1) < most
        return is_partial


def lists_at_most(most_lists: int, num_lists: int) -> int:
    """How many of the lists rows probe that found fewer than k neighbours: at most `most_lists`, where this is not 0."""
    return min(most_lists or num_lists, num_lists)


def more_probes(nprobe: int, most: int) -> int:
    """How many lists the rows probe next that found fewer than k neighbours."""
    return min(PROBED_NEXT * nprobe, most)


def probes_of(entry: TableEntry) -> Probes:
    """Which lists the rows of a table read."""
    return Probes(entry.nprobe, entry.routing, entry.most_lists)


def route_bounds(num_lists: int, num_ranges: int) -> Int64Array:
    """(R + 1,) int64: range r has the lists from bound r up to bound r + 1; ranges have equally many lists, or one more."""
    return np.arange(num_ranges + 1, dtype=np.int64) * num_lists // num_ranges


def route_ranges(lists: Int32Array, num_lists: int, num_ranges: int) -> Int64Array:
    """The range of each list (any shape) between the bounds of `route_bounds`; -1 for -1."""
    return ((lists.astype(np.int64) + 1) * num_ranges - 1) // num_lists


def routed_lists(nearest_QM: Int32Array, nprobe: int, routing: Routing, num_lists: int) -> Int32Array:
    """(Q, nprobe) int32: the lists that rows read, nearest first, -1 where a row reads fewer.

    Args:
        nearest_QM: the nearest lists of each row by closeness, at most as many as the routing has gains for; -1 for none.
    """
    ranges_QM = route_ranges(nearest_QM, num_lists, routing.num_ranges)
    scores = scores_of_ranges(ranges_QM, gains_of(routing), routing.num_ranges)
    is_read_QM = lists_in_taken(ranges_QM, scores, routing.mass)
    positions_QM = is_read_QM.cumsum(axis=1) - 1
    rows, columns = np.nonzero(is_read_QM & (positions_QM < nprobe))
    lists_QA = np.full((len(nearest_QM), nprobe), -1, dtype=np.int32)
    lists_QA[rows, positions_QM[rows, columns]] = nearest_QM[rows, columns]
    return lists_QA


def gains_of(routing: Routing) -> Int64Array:
    """(M,) int64: the gain of the r-th nearest list of a row, in billionths."""
    counts, gains = np.array(routing.gains, dtype=np.int64).reshape(-1, 2).T
    return np.repeat(gains, counts)


def _spread(gains_M: Int64Array, before: int, now: int) -> Int64Array:
    """The gains of lists where `now` take the place of `before`; their sum is the same."""
    whole, rest = np.divmod(before * np.arange(-(-len(gains_M) * now // before)), now)
    before_M1 = np.concatenate([[0], np.cumsum(gains_M)])  # the gains of all lists before each
    before_each = before_M1[whole] + gains_M[whole] * rest // now
    return np.diff(before_each, append=before_M1[-1])


def scores_of_ranges(ranges_QM: Int64Array, gains_M: Int64Array, num_ranges: int) -> Float64Array:
    """(Q, R) float64: the sum of the gains of each row's lists in each range, which are whole numbers."""
    num_rows, width = ranges_QM.shape
    rows, columns = np.nonzero(ranges_QM >= 0)
    cells = rows * num_ranges + ranges_QM[rows, columns]
    gains = gains_M[:width].astype(np.float64)[columns]
    scores = np.asarray(np.bincount(cells, gains, num_rows * num_ranges), dtype=np.float64)
    return scores.reshape(num_rows, num_ranges)


def lists_in_taken(ranges_QM: Int64Array, scores_QR: Float64Array, mass: int) -> BoolArray:
    """(Q, M) which lists are in the ranges that their row takes: by descending score, ties by range number, up to the mass."""
    order_QR = np.argsort(-scores_QR, axis=1, kind="stable")
    sorted_QR = np.take_along_axis(scores_QR, order_QR, axis=1)
    is_taken_QR = np.empty(scores_QR.shape, dtype=np.bool_)
    np.put_along_axis(is_taken_QR, order_QR, sorted_QR.cumsum(axis=1) - sorted_QR < mass, axis=1)
    is_taken: BoolArray = np.take_along_axis(is_taken_QR, np.maximum(ranges_QM, 0), axis=1) & (ranges_QM >= 0)
    return is_taken
