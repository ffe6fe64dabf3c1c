"""The scan of a part's lists: each list is packed once, and compared with all queries that probe it.

Tiles of up to `TILE_PANELS` panels of a list are encoded again with fewer bits (`six_bit_codes`) and multiplied with
blocks of queries (`code_product`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.codegen.code_product import PANEL, ROWS, PanelColumns, multiply
from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.dot import dot, dot_portable
from retrodb.ann.codegen.equal_rows import next_equal
from retrodb.ann.codegen.excluded import has_excluded_key, is_excluded_portable, is_in_interval
from retrodb.ann.codegen.grouping import ListGroups
from retrodb.ann.codegen.insertion import insert, insert_candidates_portable
from retrodb.ann.codegen.six_bit_codes import LEVELS, CodeSpace, QueryCodes, encode_vector, encode_vector_portable
from retrodb.ann.exclusion import QueryKeys
from retrodb.ann.topk import TopK
from retrodb.format.arrays import BoolArray, Float32Array, Int32Array, Int64Array

# A tile stays in the second-level cache while the queries pass by. 16 panels * 16 columns * 384 dimensions * 1 byte = 96 KiB,
# a fifth of a cache of 512 KiB.
TILE_PANELS = 16
# A block of queries stays in the first-level cache while the panels pass by: 4 * 6 rows * 384 dimensions * 1 byte = 9 KiB,
# and a panel has 16 * 384 = 6 KiB, of a cache of 32 KiB.
BLOCK_ROWS = 4 * ROWS


class ScannedQueries(NamedTuple):
    """What a scan reads of all queries, and the queries that probe each list."""

    groups: ListGroups
    codes: QueryCodes
    keys: QueryKeys


class ScannedLists(NamedTuple):
    """What a scan reads of a part; positions are in list order, rows are the part's."""

    offsets_L1: Int64Array
    order_N: Int64Array  # the row at each position; empty: rows are positions
    codes_ND: NDArray[np.int8]  # by position, relative to the centre of the space
    scales_N2: Float32Array  # by position: scale, squared length
    allowed_N: BoolArray  # by row; empty: all
    ids_N: Int64Array  # by row
    keys: tuple[Int64Array, ...]  # exclusion keys by row, one array a kind; one empty array where there are no kinds
    steps_N: Int32Array  # to the next equal row of a list, by position, see `equal_rows`; empty: every row is compared


class _Tile(NamedTuple):
    """Up to `TILE_PANELS * PANEL` columns of one list."""

    columns: PanelColumns
    positions_C: Int64Array  # of equal rows, that of the first which is allowed
    ids_C: Int64Array
    keys_JC: Int64Array


def scan_lists_portable(queries: ScannedQueries, lists: ScannedLists, space: CodeSpace, best: TopK) -> None:
    """Compares each allowed vector of each list with the queries that probe it: the definition of `scan_lists`."""
    for list_ in range(len(lists.offsets_L1) - 1):
        for position in range(lists.offsets_L1[list_], lists.offsets_L1[list_ + 1]):
            row = lists.order_N[position] if len(lists.order_N) else position
            if len(lists.allowed_N) and not lists.allowed_N[row]:
                continue
            vector_D = lists.scales_N2[position, 0] * lists.codes_ND[position].astype(np.float32)
            codes_D, scale = encode_vector_portable(vector_D)
            norm = dot_portable(vector_D, vector_D) if space.is_l2 else -dot_portable(space.centre_D, vector_D)
            kinds = range(len(queries.keys.offsets_JQ1))
            keys_J1 = np.array([[lists.keys[kind][row]] for kind in kinds], dtype=np.int64).reshape(-1, 1)
            for q in queries.groups.members(list_).tolist():
                if is_excluded_portable(q, int(lists.ids_N[row]), 0, queries.keys, keys_J1):
                    continue
                query_D = queries.codes.codes_QD[q, : len(codes_D)].astype(np.int32) - LEVELS
                product = np.float32(query_D @ codes_D.astype(np.int32))
                distance = norm - queries.codes.weights_Q[q] * (scale * product)
                candidate = np.array([[lists.ids_N[row]]]), np.array([[distance]], dtype=np.float32)
                insert_candidates_portable(candidate, (best[0][q : q + 1], best[1][q : q + 1]))


@compiled
def scan_lists(queries: ScannedQueries, lists: ScannedLists, space: CodeSpace, best: TopK) -> None:
    """Merges the allowed vectors of a part's lists into the best W of the queries that probe them, in place."""
    groups = queries.groups
    dims = queries.codes.codes_QD.shape[1]
    num_columns = TILE_PANELS * PANEL
    panel_columns = PanelColumns(
        np.zeros(num_columns * dims, dtype=np.int8), np.empty((3, num_columns), dtype=np.float32)
    )
    positions_C = np.empty(num_columns, dtype=np.int64)
    ids_C = np.empty(num_columns, dtype=np.int64)
    keys_JC = np.empty((queries.keys.offsets_JQ1.shape[0], num_columns), dtype=np.int64)
    tile = _Tile(panel_columns, positions_C, ids_C, keys_JC)
    for list_ in range(groups.offsets_L1.shape[0] - 1):
        query_rows = groups.rows_M[groups.offsets_L1[list_] : groups.offsets_L1[list_ + 1]]
        position, end = lists.offsets_L1[list_], lists.offsets_L1[list_ + 1]
        while query_rows.shape[0] > 0 and position < end:
            position, count = _pack_tile(position, end, lists, space, tile)
            for c in range(count):
                row = _row_at(positions_C[c], lists.order_N)
                ids_C[c] = lists.ids_N[row]
                for kind in range(keys_JC.shape[0]):
                    keys_JC[kind, c] = lists.keys[kind][row]
            for start in range(0, query_rows.shape[0], BLOCK_ROWS):
                block = query_rows[start : start + BLOCK_ROWS]
                _merge_tile(block, queries.codes, queries.keys, count, tile, lists, best)


@compiled
def _row_at(position: int, order_N: Int64Array) -> int:
    return order_N[position] if order_N.shape[0] > 0 else position


@compiled
def _first_allowed(position: int, lists: ScannedLists) -> int:
    """The first of a row and the equal ones after it that is allowed; -1 if none is."""
    while position >= 0 and lists.allowed_N.shape[0] > 0 and not lists.allowed_N[_row_at(position, lists.order_N)]:
        position = next_equal(position, lists.steps_N)
    return position


@compiled
def _pack_tile(position: int, end: int, lists: ScannedLists, space: CodeSpace, tile: _Tile) -> tuple[int, int]:
    """Encodes allowed vectors from a position on until the tile is full; gives the next position and their number."""
    panels, affine_3C = tile.columns
    positions_C, centre_D = tile.positions_C, space.centre_D
    codes_ND, scales_N2, steps_N = lists.codes_ND, lists.scales_N2, lists.steps_N
    dims = panels.shape[0] // positions_C.shape[0]
    quads = panels.view(np.int32)  # four dimensions of a column
    vector_D = np.empty(centre_D.shape[0], dtype=np.float32)
    signed_D = np.zeros(dims, dtype=np.int8)
    signed_quads = signed_D.view(np.int32)
    count = 0
    while position < end and count < positions_C.shape[0]:
        is_first = steps_N.shape[0] == 0 or steps_N[position] >= 0
        packed = _first_allowed(position, lists) if is_first else -1
        if packed >= 0:
            scale, codes_D = scales_N2[packed, 0], codes_ND[packed]
            for d in range(vector_D.shape[0]):
                vector_D[d] = scale * np.float32(codes_D[d])
            affine_3C[1, count] = encode_vector(vector_D, signed_D)
            affine_3C[0, count] = dot(vector_D, vector_D) if space.is_l2 else -dot(centre_D, vector_D)
            total = np.int32(0)
            for d in range(dims):
                total += np.int32(signed_D[d])
            affine_3C[2, count] = total * LEVELS
            first = count // PANEL * PANEL * (dims // 4) + count % PANEL
            for quad in range(dims // 4):
                quads[first + quad * PANEL] = signed_quads[quad]
            positions_C[count] = packed
            count += 1
        position += 1
    for c in range(count, -(-count // PANEL) * PANEL):  # columns without a vector: infinite distances, old codes
        affine_3C[0, c], affine_3C[1, c], affine_3C[2, c] = np.inf, 0, 0
    return position, count


@compiled
def _merge_tile(
    query_rows: Int32Array,
    queries: QueryCodes,
    keys: QueryKeys,
    count: int,
    tile: _Tile,
    lists: ScannedLists,
    best: TopK,
) -> None:
    """Multiplies a block of queries with the `count` columns of a tile, and inserts what is nearer than a query's W-th best.

    Most columns are farther, which one bit for a panel of columns tells without a branch for each column.
    """
    ids_QW, distances_QW = best
    codes_QD, weights_Q = queries
    columns, ids_C, keys_JC = tile.columns, tile.ids_C, tile.keys_JC
    last = ids_QW.shape[1] - 1
    numbers = np.full(BLOCK_ROWS, query_rows[0], dtype=np.int64)  # a whole block: the first query fills it up
    numbers[: query_rows.shape[0]] = query_rows
    weights, limits = np.empty(BLOCK_ROWS, dtype=np.float32), np.empty(BLOCK_ROWS, dtype=np.float32)
    for r in range(BLOCK_ROWS):
        weights[r], limits[r] = weights_Q[numbers[r]], distances_QW[numbers[r], last]
    distances = np.empty((ROWS, PANEL), dtype=np.float32)
    for panel in range(-(-count // PANEL)):
        for start in range(0, query_rows.shape[0], ROWS):
            is_close = multiply(codes_QD, numbers[start:], columns, panel, weights[start:], limits[start:], distances)
            for r in range(min(ROWS, query_rows.shape[0] - start)):
                if not is_close >> r & 1:
                    continue
                row = numbers[start + r]
                for c in range(min(PANEL, count - panel * PANEL)):
                    column = panel * PANEL + c
                    if distances[r, c] <= distances_QW[row, last] and not has_excluded_key(row, column, keys, keys_JC):
                        if not is_in_interval(row, ids_C[column], keys):
                            insert(distances[r, c], ids_C[column], ids_QW[row], distances_QW[row])
                        equal = next_equal(tile.positions_C[column], lists.steps_N)
                        if equal >= 0:
                            _insert_equal(equal, distances[r, c], row, keys, lists, ids_QW[row], distances_QW[row])
                limits[start + r] = distances_QW[row, last]


@compiled
def _insert_equal(
    position: int,
    distance: np.float32,
    query: int,
    keys: QueryKeys,
    lists: ScannedLists,
    ids_W: Int64Array,
    distances_W: Float32Array,
) -> None:
    """Inserts a row and the equal ones after it, which have one distance and no excluded key, up to the last neighbour."""
    last = ids_W.shape[0] - 1
    position = _first_allowed(position, lists)
    while position >= 0:
        id_ = lists.ids_N[_row_at(position, lists.order_N)]
        if distance > distances_W[last] or (distance == distances_W[last] and id_ > ids_W[last]):
            return
        if not is_in_interval(query, id_, keys):
            insert(distance, id_, ids_W, distances_W)
        position = _first_allowed(next_equal(position, lists.steps_N), lists)
