"""The exact similarity of pairs of texts, from their shingle sets.

Shapes: `E` pairs.
"""

from __future__ import annotations

import numpy as np

from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import ShingleSets
from retrodb.format.arrays import Int64Array, UInt64Array


def intersection_and_union(pairs: Int64Array, sets: ShingleSets) -> tuple[Int64Array, Int64Array]:
    """(E,) the sizes of intersection and union of the shingle sets of each pair of texts (E, 2).

    Equal 64-bit keys are taken as equal n-grams. For E pairs, the expected number of errors is E / 2^64.
    """
    intersection = _intersections(pairs, sets.keys, sets.offsets)
    sizes = sets.sizes()
    return intersection, sizes[pairs[:, 0]] + sizes[pairs[:, 1]] - intersection


@kernel
def _intersections(pairs: Int64Array, keys: UInt64Array, offsets: Int64Array) -> Int64Array:
    sizes = np.zeros(len(pairs), np.int64)
    for e in range(len(pairs)):
        i, i_end = offsets[pairs[e, 0]], offsets[pairs[e, 0] + 1]
        j, j_end = offsets[pairs[e, 1]], offsets[pairs[e, 1] + 1]
        while i < i_end and j < j_end:
            if keys[i] == keys[j]:
                sizes[e] += 1
                i, j = i + 1, j + 1
            elif keys[i] < keys[j]:
                i += 1
            else:
                j += 1
    return sizes
