"""The exactly nearest columns inserted into each query's best: of a block of columns, or of the query's lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.distances import distance, distance_portable
from retrodb.ann.codegen.excluded import is_excluded, is_excluded_portable
from retrodb.ann.codegen.grouping import ListGroups
from retrodb.ann.codegen.insertion import insert, insert_candidates_portable
from retrodb.ann.exclusion import QueryKeys
from retrodb.ann.topk import TopK
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array


class Columns(NamedTuple):
    """Database rows that queries are compared with."""

    vectors_CD: Float32Array
    ids_C: Int64Array
    keys_JC: Int64Array  # exclusion keys


class EstimatedDistances(NamedTuple):
    """Distances by a product whose bits depend on the batch, and how far each query's may be from the exact ones."""

    distances_QC: Float32Array
    errors_Q: Float32Array
    smallest_QP: Float32Array  # of each piece of `PIECE` columns, or less than that

    @staticmethod
    def of(distances_QC: Float32Array, errors_Q: Float32Array, k: int) -> EstimatedDistances:
        """Estimates to insert into the best k, with the smallest of each piece where these save more time than they take."""
        starts_P = np.arange(0, distances_QC.shape[1], PIECE)
        if has_bound(k, len(starts_P)):
            smallest_QP = np.minimum.reduceat(distances_QC, starts_P, axis=1)
        else:
            smallest_QP = np.full((len(distances_QC), len(starts_P)), -np.inf, dtype=np.float32)
        return EstimatedDistances(distances_QC, errors_Q, smallest_QP)


PIECE = 256  # columns, of which numpy finds the smallest estimate faster than a kernel compares all with a bound


@compiled
def has_bound(k: int, num_pieces: int) -> bool:
    """Whether the k-th of the smallest estimates of the pieces is a good bound of the k-th estimate."""
    return k == 1 or 4 * k <= num_pieces


def insert_exact_portable(queries_QD: Float32Array, columns: Columns, keys: QueryKeys, is_l2: bool, best: TopK) -> None:
    """Merges all columns that are not excluded into the best K of each query: the definition of `insert_exact`.

    The definition needs no estimates: they only save the kernel the distances of far columns.
    """
    column_C = np.arange(len(columns.ids_C))
    for q in range(len(queries_QD)):
        _insert_columns_portable(q, queries_QD, column_C, columns, keys, is_l2, best)


def insert_by_list_portable(
    queries_QD: Float32Array,
    lists_QA: Int32Array,
    groups: ListGroups,
    columns: Columns,
    keys: QueryKeys,
    is_l2: bool,
    best: TopK,
) -> None:
    """The same with the columns that are grouped under each query's lists: the definition of `insert_by_list`."""
    for q, list_ in ((q, list_) for q, lists in enumerate(lists_QA.tolist()) for list_ in lists if list_ >= 0):
        _insert_columns_portable(q, queries_QD, groups.members(list_), columns, keys, is_l2, best)


def _insert_columns_portable(
    q: int,
    queries_QD: Float32Array,
    column_C: Int32Array | Int64Array,
    columns: Columns,
    keys: QueryKeys,
    is_l2: bool,
    best: TopK,
) -> None:
    allowed = [
        c for c in column_C.tolist() if not is_excluded_portable(q, int(columns.ids_C[c]), c, keys, columns.keys_JC)
    ]
    distances = [distance_portable(queries_QD[q], columns.vectors_CD[c], is_l2) for c in allowed]
    candidates = columns.ids_C[allowed][None], np.array([distances], dtype=np.float32)
    insert_candidates_portable(candidates, (best[0][q : q + 1], best[1][q : q + 1]))


@compiled
def insert_exact(
    first: int,
    stop: int,
    queries_QD: Float32Array,
    estimates: EstimatedDistances,
    columns: Columns,
    keys: QueryKeys,
    is_l2: bool,
    best: TopK,
) -> None:
    """Merges a block of columns into the best K of queries first..stop.

    The K-th smallest estimate bounds the K-th distance, and the distance is computed of all columns that the estimates cannot
    rule out. Both look only at columns below a bound: the K-th of the smallest estimates of the pieces. Where there are few
    pieces it is guessed from the query before, because neighbouring queries are alike. A wrong guess only costs time. The result
    is exact, and the same for all estimates within the error.
    """
    estimates_QC, errors_Q, smallest_QP = estimates
    vectors_CD, ids_C, _ = columns
    ids_QK, distances_QK = best
    K = ids_QK.shape[1]
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    nearest = np.empty(K, dtype=np.float32)
    chosen_C, numbers_C = np.empty(ids_C.shape[0], dtype=np.int64), np.arange(ids_C.shape[0])
    kept_estimates = np.empty(ids_C.shape[0], dtype=np.float32)
    guess = np.float32(np.inf)
    for row in range(first, stop):
        error = errors_Q[row]
        most = distances_QK[row, K - 1] + error  # what is farther is farther than the K-th already
        if has_bound(K, smallest_QP.shape[1]):
            nearest[:] = np.inf
            for smallest in smallest_QP[row]:
                if smallest < nearest[0]:
                    _replace_greatest(nearest, smallest)
            guess = nearest[0] + 2 * error
        bound = min(guess, most)
        count = _choose_below(row, bound, estimates, columns, keys, chosen_C)
        if count < K and bound < most:
            bound = most
            count = _choose_below(row, bound, estimates, columns, keys, chosen_C)
        if count == 0:
            continue
        nearest[:] = np.inf
        for position in range(count):
            if estimates_QC[row, chosen_C[position]] < nearest[0]:
                _replace_greatest(nearest, estimates_QC[row, chosen_C[position]])
        limit = min(nearest[0] + error, distances_QK[row, K - 1]) + error
        if limit > bound:
            count = _choose_below(row, limit, estimates, columns, keys, chosen_C)
        kept, least = 0, np.float32(np.inf)
        for position in range(count):
            c = chosen_C[position]
            least = min(least, estimates_QC[row, c])
            if estimates_QC[row, c] <= limit:
                chosen_C[kept], kept_estimates[kept] = c, estimates_QC[row, c]
                kept += 1
        order = (
            np.argsort(kept_estimates[:kept], kind="mergesort") if K > _FEW else numbers_C[:kept]
        )  # nearest first: inserted at the end
        for position in order:
            c = chosen_C[position]
            exact = distance(queries_QD[row], vectors_CD[c], difference_D, is_l2)
            insert(exact, ids_C[c], ids_QK[row], distances_QK[row])
        guess = nearest[0] + np.float32(0.1) * (nearest[0] - least) + 2 * error


_FEW = 16  # insertion into so few neighbours takes less time than sorting the candidates


@compiled
def _choose_below(
    row: int, bound: float, estimates: EstimatedDistances, columns: Columns, keys: QueryKeys, chosen_C: Int64Array
) -> int:
    """Writes the columns whose estimates are at most the bound and that the query does not exclude, and gives their number."""
    estimates_QC, _, smallest_QP = estimates
    count = 0
    for piece, smallest in enumerate(smallest_QP[row]):
        if smallest > bound:
            continue
        for c in range(piece * PIECE, min((piece + 1) * PIECE, estimates_QC.shape[1])):
            chosen_C[count] = c  # without a branch: which columns are chosen cannot be predicted
            count += 1 if estimates_QC[row, c] <= bound else 0
    if keys.offsets_JQ1.shape[0] == 0 and keys.bound_offsets_Q1[row] == keys.bound_offsets_Q1[row + 1]:
        return count
    kept = 0
    for position in range(count):
        c = chosen_C[position]
        if not is_excluded(row, columns.ids_C[c], c, keys, columns.keys_JC):
            chosen_C[kept] = c
            kept += 1
    return kept


@compiled
def _replace_greatest(heap_K: Float32Array, value: float) -> None:
    """Replaces the greatest value of a heap, which is its first, by a smaller one."""
    position, size = 0, heap_K.shape[0]
    while 2 * position + 1 < size:
        child = 2 * position + 1
        if child + 1 < size and heap_K[child + 1] > heap_K[child]:
            child += 1
        if heap_K[child] <= value:
            break
        heap_K[position] = heap_K[child]
        position = child
    heap_K[position] = value


@compiled
def insert_by_list(
    first: int,
    stop: int,
    queries_QD: Float32Array,
    lists_QA: Int32Array,
    groups: ListGroups,
    columns: Columns,
    keys: QueryKeys,
    is_l2: bool,
    best: TopK,
) -> None:
    """Merges into the best K of queries first..stop the columns that are grouped under the query's lists (-1: none).

    No column may be under two lists of a query. Queries in the order of their lists find the columns' vectors in the cache.
    """
    vectors_CD, ids_C, keys_JC = columns
    offsets_L1, columns_M = groups
    ids_QK, distances_QK = best
    last = ids_QK.shape[1] - 1
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    for row in range(first, stop):
        for a in range(lists_QA.shape[1]):
            list_ = lists_QA[row, a]
            if list_ < 0:
                continue
            for position in range(offsets_L1[list_], offsets_L1[list_ + 1]):
                c = columns_M[position]
                exact = distance(queries_QD[row], vectors_CD[c], difference_D, is_l2)
                if exact <= distances_QK[row, last] and not is_excluded(row, ids_C[c], c, keys, keys_JC):
                    insert(exact, ids_C[c], ids_QK[row], distances_QK[row])
