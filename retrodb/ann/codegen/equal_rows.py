"""Rows of a list whose codes are equal, such as those of a licence that is in many documents: a scan compares them once.

They have the same distance from every query. So a scan that has compared the first of them inserts the others by ascending id,
until one comes after the last neighbour that a query keeps. Equal rows have the same exclusion keys, too: a query that excludes
the texts equal to its own leaves them out together.

`steps_N` says for each position how many positions further the next equal row of its list is, 0 if there is none. For a row with
an equal one before it, the number is -1 minus that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.codegen.compiled import compiled
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array


class ListedRows(NamedTuple):
    """Rows of a part in list order."""

    codes_ND: NDArray[np.int8]
    scales_N2: Float32Array  # scale, squared length
    keys: tuple[Int64Array, ...]  # exclusion keys, (N,) for each kind; an array without rows is not compared


def link_equal_rows_portable(start: int, end: int, rows: ListedRows, steps_N: Int32Array) -> None:
    """Writes the steps of the positions of one list: the definition of `link_equal_rows`."""
    last: dict[tuple[bytes, float, tuple[int, ...]], int] = {}
    for position in range(start, end):
        keys = tuple(int(kind[position]) for kind in rows.keys if len(kind))
        key = rows.codes_ND[position].tobytes(), float(rows.scales_N2[position, 0]), keys
        steps_N[position] = -1 if key in last else 0
        if key in last:
            before, step = last[key], position - last[key]
            steps_N[before] = step if steps_N[before] == 0 else -1 - step
        last[key] = position


@compiled
def link_equal_rows(start: int, end: int, rows: ListedRows, steps_N: Int32Array) -> None:
    """Writes the steps of the positions of one list."""
    codes_ND, scales_N2, keys = rows
    count, dims = end - start, codes_ND.shape[1]
    factors_2D = np.empty((2, dims), dtype=np.int32)
    factor = np.uint32(2654435769)
    for d in range(dims):
        for half in range(2):
            factor = np.uint32(factor * np.uint32(1664525) + np.uint32(1013904223))
            factors_2D[half, d] = np.int32(factor) | np.int32(1)
    hashes_C = np.empty(count, dtype=np.int64)
    scale = np.empty(1, dtype=np.float32)
    bits_of_scale = scale.view(np.int32)
    for c in range(count):
        scale[0] = scales_N2[start + c, 0]
        codes_D, low, high = codes_ND[start + c], bits_of_scale[0], np.int32(0)
        for d in range(dims):
            low = np.int32(low + np.int32(np.int32(codes_D[d]) * factors_2D[0, d]))
            high = np.int32(high + np.int32(np.int32(codes_D[d]) * factors_2D[1, d]))
        hashes_C[c] = (np.int64(high) << 32) ^ np.int64(low)
        for kind in range(len(keys)):
            if keys[kind].shape[0] > 0:
                hashes_C[c] = hashes_C[c] * 31 + keys[kind][start + c]
    order_C = np.argsort(hashes_C, kind="mergesort")
    for c in range(count):
        position = start + order_C[c]
        steps_N[position] = 0
        if c == 0 or hashes_C[order_C[c - 1]] != hashes_C[order_C[c]]:
            continue
        before = start + order_C[c - 1]
        is_equal = scales_N2[before, 0] == scales_N2[position, 0]
        for d in range(dims):
            is_equal = is_equal and codes_ND[before, d] == codes_ND[position, d]
        for kind in range(len(keys)):
            if keys[kind].shape[0] > 0:
                is_equal = is_equal and keys[kind][before] == keys[kind][position]
        if is_equal:
            steps_N[position] = -1
            steps_N[before] = position - before if steps_N[before] == 0 else before - position - 1


@compiled
def next_equal(position: int, steps_N: Int32Array) -> int:
    """The position of the next equal row; -1 if there is none."""
    if steps_N.shape[0] == 0:
        return -1
    step = steps_N[position]
    if step < 0:
        step = -1 - step
    return position + step if step > 0 else -1
