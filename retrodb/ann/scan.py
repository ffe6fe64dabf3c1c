"""The compiled scan of a part's lists: each list is packed once and meets all queries that probe it.

VectorArray are taken relative to a centre, which the codebook gives: text embeddings share a large mean, and 6 bits should
be spent on what tells them apart. With v = centre + v' and q = centre + q', up to what is constant for a query:

    -<q, v>   =  -<centre, v'> - <q', v'>
    |q - v|²  =        |v'|² - 2 <q', v'>

so a distance is `norm - weight * scale * product`, where norm and scale belong to the column and weight to the query.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retrodb.ann.dot import dot
from retrodb.ann.exact import run_rows
from retrodb.ann.int_product import LEVELS, PANEL, ROWS, multiply, padded_dims
from retrodb.ann.kernels import compiled, insert, is_excluded
from retrodb.format.arrays import Float32Array, Int64Array

TILE_PANELS = 16  # 96 KiB at 384 dimensions: a fifth of a second-level cache
BLOCK_ROWS = 4 * ROWS  # 9 KiB: with one panel they stay in the first-level cache


def query_codes(
    queries_QD: Float32Array, centre_D: Float32Array, is_l2: bool, threads: int = 1
) -> tuple[NDArray[np.uint8], Float32Array]:
    """The queries' codes with offset (Q, padded D) uint8, and their weights (Q,)."""
    codes_QD = np.zeros((len(queries_QD), padded_dims(queries_QD.shape[1])), dtype=np.uint8)
    weights_Q = np.empty(len(queries_QD), dtype=np.float32)

    def run(first: int, stop: int) -> None:
        _encode_queries(queries_QD[first:stop], centre_D, codes_QD[first:stop], weights_Q[first:stop])

    run_rows(run, len(queries_QD), threads)
    return codes_QD, weights_Q * np.float32(2 if is_l2 else 1)


@compiled
def _encode_queries(queries_QD: Float32Array, centre_D: Float32Array, codes_QD: Any, weights_Q: Float32Array) -> None:
    dim = queries_QD.shape[1]
    difference_D = np.empty(dim, dtype=np.float32)
    signed_D = np.zeros(codes_QD.shape[1], dtype=np.int8)
    for q in range(queries_QD.shape[0]):
        for d in range(dim):
            difference_D[d] = queries_QD[q, d] - centre_D[d]
        weights_Q[q] = _encode(difference_D, signed_D)
        for d in range(dim):
            codes_QD[q, d] = signed_D[d] + LEVELS


@numba.njit(nogil=True, fastmath={"nnan", "nsz"})  # without NaN a maximum is the same in any order  # type: ignore[untyped-decorator]
def _encode(vector_D: Float32Array, codes_D: Any) -> Any:
    """Fills in the codes -31 .. 31 of a vector and gives their scale."""
    largest = np.float32(0)
    for d in range(vector_D.shape[0]):
        largest = max(largest, abs(vector_D[d]))
    if largest == 0:
        codes_D[:] = 0
        return largest
    inverse = np.float32(LEVELS) / largest
    for d in range(vector_D.shape[0]):
        codes_D[d] = np.int8(np.rint(vector_D[d] * inverse))
    return largest / np.float32(LEVELS)


@compiled
def group_by_list(
    lists_QA: Any, first: int, stop: int, first_place: int, stop_place: int, num_lists: int
) -> tuple[Int64Array, Any]:
    """The queries first..stop by the lists at some places of their order: (offsets (L + 1,), queries)."""
    offsets_L1 = np.zeros(num_lists + 1, dtype=np.int64)
    for q in range(first, stop):
        for a in range(first_place, stop_place):
            offsets_L1[lists_QA[q, a] + 1] += 1  # list -1, none, counts at 0 and is taken off again
    offsets_L1[0] = 0
    for list_ in range(num_lists):
        offsets_L1[list_ + 1] += offsets_L1[list_]
    places_L = offsets_L1[:-1].copy()
    rows_M = np.empty(offsets_L1[num_lists], dtype=np.int32)
    for q in range(first, stop):
        for a in range(first_place, stop_place):
            list_ = lists_QA[q, a]
            if list_ >= 0:
                rows_M[places_L[list_]] = q
                places_L[list_] += 1
    return offsets_L1, rows_M


@compiled
def scan_part(
    query_offsets_L1: Int64Array,
    query_rows_M: Any,
    codes_QD: Any,
    weights_Q: Float32Array,
    offsets_JQ1: Int64Array,
    keys_M: Int64Array,
    list_offsets_L1: Int64Array,
    order_N: Int64Array,
    codes_ND: Any,
    scales_N2: Float32Array,
    allowed_N: Any,
    ids_N: Int64Array,
    keys_N: Any,
    centre_D: Float32Array,
    is_l2: bool,
    best_distances_QW: Float32Array,
    best_ids_QW: Int64Array,
) -> None:
    """Merges all lists of a part into the best W of the queries that probe them.

    Args:
        query_offsets_L1, query_rows_M: from `group_by_list`.
        list_offsets_L1, order_N, codes_ND, scales_N2: the part's files.
        allowed_N: bool by part row, or empty: all.
        keys_N: tuple of int64 exclusion keys by part row, one array a kind; what it holds beyond those is not read.
    """
    dims = codes_QD.shape[1]
    panels = np.zeros(TILE_PANELS * PANEL * dims, dtype=np.int8)
    columns = np.empty(TILE_PANELS * PANEL, dtype=np.int64)  # part rows
    ids_C = np.empty(TILE_PANELS * PANEL, dtype=np.int64)
    keys_JC = np.empty((offsets_JQ1.shape[0], TILE_PANELS * PANEL), dtype=np.int64)
    affine_3C = np.empty((3, TILE_PANELS * PANEL), dtype=np.float32)  # norm, scale, sum of codes
    for list_ in range(query_offsets_L1.shape[0] - 1):
        rows = query_rows_M[query_offsets_L1[list_] : query_offsets_L1[list_ + 1]]
        place, end = list_offsets_L1[list_], list_offsets_L1[list_ + 1]
        while rows.shape[0] > 0 and place < end:
            place, count = _pack_tile(
                place, end, order_N, codes_ND, scales_N2, allowed_N, centre_D, is_l2, panels, columns, affine_3C
            )
            for c in range(count):
                ids_C[c] = ids_N[columns[c]]
                for kind in range(keys_JC.shape[0]):
                    keys_JC[kind, c] = keys_N[kind][columns[c]]
            for start in range(0, rows.shape[0], BLOCK_ROWS):
                _merge_tile(
                    rows[start : start + BLOCK_ROWS], codes_QD, weights_Q, offsets_JQ1, keys_M,
                    count, panels, affine_3C, ids_C, keys_JC, best_distances_QW, best_ids_QW,
                )  # fmt: skip


@compiled
def _pack_tile(
    place: int,
    end: int,
    order_N: Int64Array,
    codes_ND: Any,
    scales_N2: Float32Array,
    allowed_N: Any,
    centre_D: Float32Array,
    is_l2: bool,
    panels: Any,
    columns: Int64Array,
    affine_3C: Float32Array,
) -> tuple[int, int]:
    """Encodes allowed vectors of a list from `place` on until the tile is full; gives the next place and their number."""
    dims = panels.shape[0] // columns.shape[0]
    quads = panels.view(np.int32)
    vector_D = np.empty(centre_D.shape[0], dtype=np.float32)
    signed_D = np.zeros(dims, dtype=np.int8)
    signed_quads = signed_D.view(np.int32)
    count = 0
    while place < end and count < columns.shape[0]:
        row = order_N[place]
        if allowed_N.shape[0] == 0 or allowed_N[row]:
            scale, codes_D = scales_N2[place, 0], codes_ND[place]
            for d in range(vector_D.shape[0]):
                vector_D[d] = scale * np.float32(codes_D[d]) - centre_D[d]
            affine_3C[1, count] = _encode(vector_D, signed_D)
            affine_3C[0, count] = dot(vector_D, vector_D) if is_l2 else -dot(centre_D, vector_D)
            total = np.int32(0)
            for d in range(dims):
                total += np.int32(signed_D[d])
            affine_3C[2, count] = total * LEVELS
            first = count // PANEL * PANEL * (dims // 4) + count % PANEL
            for quad in range(dims // 4):
                quads[first + quad * PANEL] = signed_quads[quad]
            columns[count] = row
            count += 1
        place += 1
    for c in range(count, -(-count // PANEL) * PANEL):  # their codes are left over and their distances infinite
        affine_3C[0, c], affine_3C[1, c], affine_3C[2, c] = np.inf, 0, 0
    return place, count


@compiled
def _merge_tile(
    rows: Any,
    codes_QD: Any,
    weights_Q: Float32Array,
    offsets_JQ1: Int64Array,
    keys_M: Int64Array,
    count: int,
    panels: Any,
    affine_3C: Float32Array,
    ids_C: Int64Array,
    keys_JC: Int64Array,
    best_distances_QW: Float32Array,
    best_ids_QW: Int64Array,
) -> None:
    """Multiplies a block of queries with a tile and inserts what is nearer than a query's W-th best.

    Most columns are behind it: a count over a panel settles that without a branch per column.
    """
    last = best_distances_QW.shape[1] - 1
    numbers = np.full(BLOCK_ROWS, rows[0], dtype=np.int64)
    numbers[: rows.shape[0]] = rows
    weights, limits = np.empty(BLOCK_ROWS, dtype=np.float32), np.empty(BLOCK_ROWS, dtype=np.float32)
    for r in range(BLOCK_ROWS):
        weights[r], limits[r] = weights_Q[numbers[r]], best_distances_QW[numbers[r], last]
    distances = np.empty((ROWS, PANEL), dtype=np.float32)
    for panel in range(-(-count // PANEL)):
        for start in range(0, rows.shape[0], ROWS):
            is_close = multiply(
                codes_QD, numbers[start:], panels, affine_3C, panel, weights[start:], limits[start:], distances
            )
            for r in range(min(ROWS, rows.shape[0] - start)):
                if not is_close >> r & 1:
                    continue
                row = numbers[start + r]
                for c in range(min(PANEL, count - panel * PANEL)):
                    column = panel * PANEL + c
                    if distances[r, c] <= best_distances_QW[row, last] and not is_excluded(
                        row, column, offsets_JQ1, keys_M, keys_JC
                    ):
                        insert(distances[r, c], ids_C[column], best_distances_QW[row], best_ids_QW[row])
                limits[start + r] = best_distances_QW[row, last]
