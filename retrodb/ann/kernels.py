"""The compiled inner loops. All are single-threaded, release the GIL, and give bits that depend on their inputs only.

Every kernel that decides an order uses the total order (distance, id), so what it keeps does not depend on the order
in which candidates come. Inner products are those of `dot`, whose bits depend on the two vectors only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from retrodb.ann.dot import dot
from retrodb.format.arrays import Float32Array, Int64Array

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compiles once a machine; runs without Python's lock."""
    return cast(_F, numba.njit(cache=True, nogil=True)(function))


@compiled
def _distance(a_D: Float32Array, b_D: Float32Array, difference_D: Float32Array, is_l2: bool) -> Any:
    """The one definition of a distance; `difference_D` is scratch."""
    if not is_l2:
        return -dot(a_D, b_D)
    for d in range(a_D.shape[0]):
        difference_D[d] = a_D[d] - b_D[d]
    return dot(difference_D, difference_D)


@compiled
def insert(distance: Any, id_: Any, best_distances_K: Float32Array, best_ids_K: Int64Array) -> None:
    """Inserts into a row sorted by (distance, id), dropping its last; does nothing where it would come after the last.

    Empty places hold (+inf, -1); no candidate has an infinite distance.
    """
    place = best_ids_K.shape[0] - 1
    last = best_distances_K[place]
    if distance > last or (distance == last and id_ > best_ids_K[place]):
        return
    while place > 0 and (
        best_distances_K[place - 1] > distance
        or (best_distances_K[place - 1] == distance and best_ids_K[place - 1] > id_)
    ):
        best_distances_K[place] = best_distances_K[place - 1]
        best_ids_K[place] = best_ids_K[place - 1]
        place -= 1
    best_distances_K[place] = distance
    best_ids_K[place] = id_


@compiled
def is_excluded(row: int, column: int, offsets_JQ1: Int64Array, keys_M: Int64Array, column_keys_JC: Int64Array) -> bool:
    """Whether a column has one of a query's keys."""
    for kind in range(offsets_JQ1.shape[0]):
        key = column_keys_JC[kind, column]
        if key == -1:
            continue
        for at in range(offsets_JQ1[kind, row], offsets_JQ1[kind, row + 1]):
            if keys_M[at] == key:
                return True
    return False


@compiled
def _replace_greatest(heap_K: Float32Array, value: Any) -> None:
    """Puts a smaller value in the place of a heap's greatest, which is its first."""
    place, size = 0, heap_K.shape[0]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and heap_K[child + 1] > heap_K[child]:
            child += 1
        if heap_K[child] <= value:
            break
        heap_K[place] = heap_K[child]
        place = child
    heap_K[place] = value


@compiled
def insert_exact(
    first: int,
    stop: int,
    estimates_QC: Float32Array,
    errors_Q: Float32Array,
    queries_QD: Float32Array,
    vectors_CD: Float32Array,
    ids_C: Int64Array,
    column_keys_JC: Int64Array,
    offsets_JQ1: Int64Array,
    keys_M: Int64Array,
    is_l2: bool,
    best_distances_QK: Float32Array,
    best_ids_QK: Int64Array,
) -> None:
    """Merges a block into the exact best K of queries first..stop, by estimates that are at most `errors_Q` wrong.

    Two passes a query: the K-th smallest estimate bounds the K-th distance, then the fixed-order distance is computed
    for whatever the estimates cannot rule out. The result is exact, and the same for all estimates within the error.
    """
    K = best_ids_QK.shape[1]
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    nearest = np.empty(K, dtype=np.float32)
    for row in range(first, stop):
        nearest[:] = np.inf
        for c in range(ids_C.shape[0]):
            if estimates_QC[row, c] < nearest[0] and not is_excluded(row, c, offsets_JQ1, keys_M, column_keys_JC):
                _replace_greatest(nearest, estimates_QC[row, c])
        error = errors_Q[row]
        limit = min(nearest[0] + error, best_distances_QK[row, K - 1]) + error
        for c in range(ids_C.shape[0]):
            if estimates_QC[row, c] <= limit and not is_excluded(row, c, offsets_JQ1, keys_M, column_keys_JC):
                distance = _distance(queries_QD[row], vectors_CD[c], difference_D, is_l2)
                insert(distance, ids_C[c], best_distances_QK[row], best_ids_QK[row])


@compiled
def insert_reverse(
    first: int,
    stop: int,
    queries_QD: Float32Array,
    homes_Q: Any,
    vectors_CD: Float32Array,
    ids_C: Int64Array,
    column_keys_JC: Int64Array,
    offsets_L1: Int64Array,
    columns_M: Any,
    offsets_JQ1: Int64Array,
    keys_M: Int64Array,
    is_l2: bool,
    best_distances_QK: Float32Array,
    best_ids_QK: Int64Array,
) -> None:
    """Merges into the best K of queries first..stop the columns `columns_M[offsets_L1[l]:offsets_L1[l + 1]]` of their list l.

    Queries that are ordered by their lists find the columns' vectors in the cache.
    """
    last = best_ids_QK.shape[1] - 1
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    for row in range(first, stop):
        for at in range(offsets_L1[homes_Q[row]], offsets_L1[homes_Q[row] + 1]):
            c = columns_M[at]
            distance = _distance(queries_QD[row], vectors_CD[c], difference_D, is_l2)
            if distance <= best_distances_QK[row, last] and not is_excluded(
                row, c, offsets_JQ1, keys_M, column_keys_JC
            ):
                insert(distance, ids_C[c], best_distances_QK[row], best_ids_QK[row])


@compiled
def fixed_distances(
    first: int,
    stop: int,
    queries_QD: Float32Array,
    rows_QW: Int64Array,
    vectors_UD: Float32Array,
    is_l2: bool,
    distances_QW: Float32Array,
) -> None:
    """Fills in the fixed-order distances of queries first..stop to their candidates, rows of `vectors_UD`; -1: none."""
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    for q in range(first, stop):
        for w in range(rows_QW.shape[1]):
            if rows_QW[q, w] >= 0:
                distances_QW[q, w] = _distance(queries_QD[q], vectors_UD[rows_QW[q, w]], difference_D, is_l2)


@compiled
def gather_halves(halves_ND: Any, rows_R: Int64Array, out_RD: Float32Array) -> int:
    """Fills `out_RD` with rows of float16 bits (int16) as float32; gives the place of the first that is not finite, or -1.

    The bits of a half, moved to where a float32 has exponent and fraction, are its value over 2^112, subnormal or not.
    """
    bits_RD = out_RD.view(np.int32)
    for r in range(rows_R.shape[0]):
        halves, bits, out = halves_ND[rows_R[r]], bits_RD[r], out_RD[r]
        is_bad = np.int32(0)
        for d in range(out.shape[0]):
            half = np.int32(halves[d])
            bits[d] = (half & np.int32(-0x8000)) << np.int32(16) | (half & np.int32(0x7FFF)) << np.int32(13)
            is_bad |= np.int32((half & np.int32(0x7C00)) == np.int32(0x7C00))
        if is_bad:
            return r
        for d in range(out.shape[0]):
            out[d] *= np.float32(2.0**112)
    return -1


@compiled
def find_sorted(ids_N: Int64Array, ids_QW: Int64Array) -> Int64Array:
    """The place of each id in ascending `ids_N`, -1 where it is not there. Ids without gaps need no search."""
    places_QW = np.full(ids_QW.shape, -1, dtype=np.int64)
    num_ids = ids_N.shape[0]
    if num_ids == 0:
        return places_QW
    first, is_dense = ids_N[0], ids_N[num_ids - 1] - ids_N[0] == num_ids - 1
    for q in range(ids_QW.shape[0]):
        for w in range(ids_QW.shape[1]):
            id_ = ids_QW[q, w]
            if id_ < first or id_ > ids_N[num_ids - 1]:
                continue
            place = id_ - first if is_dense else np.searchsorted(ids_N, id_)
            if ids_N[place] == id_:
                places_QW[q, w] = place
    return places_QW


@compiled
def number_distinct(values_QW: Int64Array) -> Int64Array:
    """The distinct values that are not negative, as they come; each is replaced by its number among them.

    A hash table of twice the size: sorting takes ten times as long.
    """
    bits = 1
    while 1 << bits < 2 * values_QW.size:
        bits += 1
    numbers = np.full(1 << bits, -1, dtype=np.int64)
    distinct = np.empty(values_QW.size, dtype=np.int64)
    count = 0
    for q in range(values_QW.shape[0]):
        for w in range(values_QW.shape[1]):
            value = values_QW[q, w]
            if value < 0:
                continue
            slot = np.int64((np.uint64(value) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
            while numbers[slot] >= 0 and distinct[numbers[slot]] != value:
                slot = (slot + 1) & (numbers.shape[0] - 1)
            if numbers[slot] < 0:
                numbers[slot] = count
                distinct[count] = value
                count += 1
            values_QW[q, w] = numbers[slot]
    return distinct[:count]


@compiled
def insert_pairs(
    distances_QW: Float32Array, ids_QW: Int64Array, best_distances_QK: Float32Array, best_ids_QK: Int64Array
) -> None:
    """Merges W candidates a row (id -1: none) into the best K of the row."""
    for row in range(ids_QW.shape[0]):
        for w in range(ids_QW.shape[1]):
            if ids_QW[row, w] >= 0:
                insert(distances_QW[row, w], ids_QW[row, w], best_distances_QK[row], best_ids_QK[row])


@compiled
def fixed_affine(
    inputs_ND: Float32Array, matrix_MD: Float32Array, bias_M: Float32Array, outputs_NM: Float32Array
) -> None:
    """`inputs @ matrix.T + bias` in the fixed order, where the bits of a BLAS product would depend on the batch."""
    for n in range(inputs_ND.shape[0]):
        for m in range(matrix_MD.shape[0]):
            outputs_NM[n, m] = dot(inputs_ND[n], matrix_MD[m]) + bias_M[m]


@compiled
def sum_by_list(lists_N: Int64Array, vectors_ND: Float32Array, sums_LD: Any) -> None:
    """Adds each vector to its list's float64 sum, in row order."""
    for row in range(vectors_ND.shape[0]):
        for d in range(vectors_ND.shape[1]):
            sums_LD[lists_N[row], d] += vectors_ND[row, d]
