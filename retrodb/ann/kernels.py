"""The compiled inner loops. All are single-threaded, release the GIL, and give bits that depend on their inputs only.

Every kernel that decides an order uses the total order (distance, id), so what it keeps does not depend on the order
in which candidates come. Sums run over eight interleaved partial sums in a fixed order: without fastmath the compiler
may not regroup them, so neither batch shape, nor thread count, nor the width of the machine's registers changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from retrodb.ann.metric import FloatArray, Int64Array

TEST_COLUMNS = 32  # columns tested together before any of them is looked at singly: one branch for 32 products
_F = TypeVar("_F", bound=Callable[..., Any])


def _compiled(function: _F) -> _F:
    return cast(_F, numba.njit(cache=True, nogil=True)(function))


@_compiled
def _dot(a_D: FloatArray, b_D: FloatArray) -> Any:
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    full = a_D.shape[0] - a_D.shape[0] % 8
    for d in range(0, full, 8):
        s0 += a_D[d] * b_D[d]
        s1 += a_D[d + 1] * b_D[d + 1]
        s2 += a_D[d + 2] * b_D[d + 2]
        s3 += a_D[d + 3] * b_D[d + 3]
        s4 += a_D[d + 4] * b_D[d + 4]
        s5 += a_D[d + 5] * b_D[d + 5]
        s6 += a_D[d + 6] * b_D[d + 6]
        s7 += a_D[d + 7] * b_D[d + 7]
    for d in range(full, a_D.shape[0]):
        s0 += a_D[d] * b_D[d]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@_compiled
def _distance(a_D: FloatArray, b_D: FloatArray, difference_D: FloatArray, is_l2: bool) -> Any:
    """The one definition of a distance; `difference_D` is scratch."""
    if not is_l2:
        return -_dot(a_D, b_D)
    for d in range(a_D.shape[0]):
        difference_D[d] = a_D[d] - b_D[d]
    return _dot(difference_D, difference_D)


@_compiled
def _insert(distance: Any, id_: Any, best_distances_K: FloatArray, best_ids_K: Int64Array) -> None:
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


@_compiled
def _is_excluded(
    row: int, column: int, offsets_JQ1: Int64Array, keys_M: Int64Array, column_keys_JC: Int64Array
) -> bool:
    for kind in range(offsets_JQ1.shape[0]):
        key = column_keys_JC[kind, column]
        if key == -1:
            continue
        for at in range(offsets_JQ1[kind, row], offsets_JQ1[kind, row + 1]):
            if keys_M[at] == key:
                return True
    return False


@_compiled
def insert_close(
    products_RC: FloatArray,
    rows_R: Int64Array,
    weights_Q: FloatArray,
    scales_C: FloatArray,
    norms_C: FloatArray,
    ids_C: Int64Array,
    column_keys_JC: Int64Array,
    offsets_JQ1: Int64Array,
    keys_M: Int64Array,
    best_distances_QW: FloatArray,
    best_ids_QW: Int64Array,
) -> None:
    """Merges one tile of int8 products into the best W of its queries; the distance is `norm - weight * scale * product`.

    Most columns are behind the query's running W-th best: a count over `TEST_COLUMNS` of them settles that without a
    branch per column.
    """
    num_columns = products_RC.shape[1]
    last = best_distances_QW.shape[1] - 1
    for r in range(rows_R.shape[0]):
        row = rows_R[r]
        weight = weights_Q[row]
        for start in range(0, num_columns, TEST_COLUMNS):
            stop = min(start + TEST_COLUMNS, num_columns)
            limit = best_distances_QW[row, last]
            close = 0
            for c in range(start, stop):
                close += norms_C[c] - weight * (scales_C[c] * products_RC[r, c]) <= limit
            if close == 0:
                continue
            for c in range(start, stop):
                distance = norms_C[c] - weight * (scales_C[c] * products_RC[r, c])
                if distance <= best_distances_QW[row, last] and not _is_excluded(
                    row, c, offsets_JQ1, keys_M, column_keys_JC
                ):
                    _insert(distance, ids_C[c], best_distances_QW[row], best_ids_QW[row])


@_compiled
def insert_exact(
    first: int,
    stop: int,
    estimates_QC: FloatArray,
    errors_Q: FloatArray,
    queries_QD: FloatArray,
    vectors_CD: FloatArray,
    ids_C: Int64Array,
    column_keys_JC: Int64Array,
    offsets_JQ1: Int64Array,
    keys_M: Int64Array,
    is_l2: bool,
    best_distances_QK: FloatArray,
    best_ids_QK: Int64Array,
) -> None:
    """Merges a block into the exact best K of queries first..stop, by estimates that are at most `errors_Q` wrong.

    Two passes a query: the K-th smallest estimate bounds the K-th distance, then the fixed-order distance is computed
    for whatever the estimates cannot rule out. The result is exact, and the same for all estimates within the error.
    """
    K = best_ids_QK.shape[1]
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    nearest = np.empty(K, dtype=np.float32)
    nearest_ids = np.empty(K, dtype=np.int64)
    for row in range(first, stop):
        nearest[:] = np.inf
        nearest_ids[:] = -1
        for c in range(ids_C.shape[0]):
            if estimates_QC[row, c] < nearest[K - 1] and not _is_excluded(row, c, offsets_JQ1, keys_M, column_keys_JC):
                _insert(estimates_QC[row, c], c, nearest, nearest_ids)
        error = errors_Q[row]
        limit = min(nearest[K - 1] + error, best_distances_QK[row, K - 1]) + error
        for c in range(ids_C.shape[0]):
            if estimates_QC[row, c] <= limit and not _is_excluded(row, c, offsets_JQ1, keys_M, column_keys_JC):
                distance = _distance(queries_QD[row], vectors_CD[c], difference_D, is_l2)
                _insert(distance, ids_C[c], best_distances_QK[row], best_ids_QK[row])


@_compiled
def fixed_pair_distances(
    first: int,
    stop: int,
    queries_QD: FloatArray,
    rows_P: Int64Array,
    vectors_UD: FloatArray,
    columns_P: Int64Array,
    is_l2: bool,
    distances_P: FloatArray,
) -> None:
    """Fills `distances_P[i]` with the fixed-order distance of query `rows_P[i]` and vector `columns_P[i]`."""
    difference_D = np.empty(queries_QD.shape[1], dtype=np.float32)
    for i in range(first, stop):
        distances_P[i] = _distance(queries_QD[rows_P[i]], vectors_UD[columns_P[i]], difference_D, is_l2)


@_compiled
def insert_pairs(
    distances_QW: FloatArray, ids_QW: Int64Array, best_distances_QK: FloatArray, best_ids_QK: Int64Array
) -> None:
    """Merges W candidates a row (id -1: none) into the best K of the row."""
    for row in range(ids_QW.shape[0]):
        for w in range(ids_QW.shape[1]):
            if ids_QW[row, w] >= 0:
                _insert(distances_QW[row, w], ids_QW[row, w], best_distances_QK[row], best_ids_QK[row])


@_compiled
def fixed_affine(inputs_ND: FloatArray, matrix_MD: FloatArray, bias_M: FloatArray, outputs_NM: FloatArray) -> None:
    """`inputs @ matrix.T + bias` in the fixed order, where the bits of a BLAS product would depend on the batch."""
    for n in range(inputs_ND.shape[0]):
        for m in range(matrix_MD.shape[0]):
            outputs_NM[n, m] = _dot(inputs_ND[n], matrix_MD[m]) + bias_M[m]


@_compiled
def sum_by_list(lists_N: Int64Array, vectors_ND: FloatArray, sums_LD: Any) -> None:
    """Adds each vector to its list's float64 sum, in row order."""
    for row in range(vectors_ND.shape[0]):
        for d in range(vectors_ND.shape[1]):
            sums_LD[lists_N[row], d] += vectors_ND[row, d]
