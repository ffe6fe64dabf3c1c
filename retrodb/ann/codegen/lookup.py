"""Positions of ids in sorted ids, and numbers for distinct values."""

from __future__ import annotations

import numpy as np

from retrodb.ann.codegen.compiled import compiled
from retrodb.format.arrays import Int64Array

_HASH_FACTOR = 0x9E3779B97F4A7C15  # 2^64 / golden ratio (Knuth, TAOCP 3, section 6.4): spreads neighbouring values


def find_sorted_portable(ids_N: Int64Array, ids_QW: Int64Array) -> Int64Array:
    """The position of each id in ascending `ids_N`, -1 where it is not there: the definition of `find_sorted`."""
    if not len(ids_N):
        return np.full(ids_QW.shape, -1, dtype=np.int64)
    positions_QW = np.minimum(np.searchsorted(ids_N, ids_QW), len(ids_N) - 1)
    return np.where(ids_N[positions_QW] == ids_QW, positions_QW, -1)


def number_distinct_portable(values_QW: Int64Array) -> Int64Array:
    """The definition of `number_distinct`: a dictionary in order of insertion."""
    numbers: dict[int, int] = {}
    for position, value in np.ndenumerate(values_QW):
        if value >= 0:
            values_QW[position] = numbers.setdefault(int(value), len(numbers))
    return np.array(list(numbers), dtype=np.int64)


@compiled
def find_sorted(ids_N: Int64Array, ids_QW: Int64Array) -> Int64Array:
    """The position of each id in ascending `ids_N`, -1 where it is not there. Ids without gaps need no search."""
    positions_QW = np.full(ids_QW.shape, -1, dtype=np.int64)
    num_ids = ids_N.shape[0]
    if num_ids == 0:
        return positions_QW
    first, is_dense = ids_N[0], ids_N[num_ids - 1] - ids_N[0] == num_ids - 1
    for q in range(ids_QW.shape[0]):
        for w in range(ids_QW.shape[1]):
            id_ = ids_QW[q, w]
            if id_ < first or id_ > ids_N[num_ids - 1]:
                continue
            position = id_ - first if is_dense else np.searchsorted(ids_N, id_)
            if ids_N[position] == id_:
                positions_QW[q, w] = position
    return positions_QW


@compiled
def number_distinct(values_QW: Int64Array) -> Int64Array:
    """The distinct values that are not negative, in order of appearance; each is replaced by its number among them.

    Uses a hash table with at least twice as many slots as values; sorting takes ten times as long.
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
            slot = np.int64((np.uint64(value) * np.uint64(_HASH_FACTOR)) >> np.uint64(64 - bits))
            while numbers[slot] >= 0 and distinct[numbers[slot]] != value:
                slot = (slot + 1) & (numbers.shape[0] - 1)
            if numbers[slot] < 0:
                numbers[slot] = count
                distinct[count] = value
                count += 1
            values_QW[q, w] = numbers[slot]
    return distinct[:count]
