"""The leaf order of Ward's hierarchy: an order of points in which neighbours are near, and so are the points of any range.

Ward (1963) merges, again and again, the two clusters whose union adds least to the squared distances of points from the mean
of their cluster. A chain of nearest neighbours (Murtagh 1983) finds the same hierarchy in n² steps. Of two clusters that merge,
the one with the smallest point number comes first, which makes the order one of many that the hierarchy allows.

Legend: N points, D dimensions.
"""

from __future__ import annotations

import numpy as np

from retrodb.format.arrays import Float32Array, Float64Array, Int64Array

MAX_POINTS = 4_096  # their distances, (N, N) float64, take 128 MiB


def leaf_order(points_ND: Float32Array) -> Int64Array:
    """(N,) the numbers of the points in leaf order. Ties go to smaller numbers, so equal points have one answer."""
    assert len(points_ND) <= MAX_POINTS
    distances_NN = _squared_distances(points_ND)
    leaves = {number: [number] for number in range(len(points_ND))}  # of each cluster, which its smallest point names
    size_N = np.ones(len(points_ND))
    chain: list[int] = []
    while len(leaves) > 1:
        if not chain:
            chain.append(min(leaves))
        nearest = _nearest(distances_NN, chain)
        if nearest != (chain[-2] if len(chain) > 1 else None):
            chain.append(nearest)
            continue
        first, second = sorted((chain.pop(), chain.pop()))
        _merge(distances_NN, first, second, size_N)
        leaves[first] += leaves.pop(second)
    return np.array([number for order in leaves.values() for number in order], dtype=np.int64)


def _squared_distances(points_ND: Float32Array) -> Float64Array:
    """(N, N) squared distances, infinite on the diagonal. No BLAS product: its bits depend on threads and processor."""
    points = points_ND.astype(np.float64)
    distances_NN = np.full((len(points), len(points)), np.inf)
    for number in range(1, len(points)):
        distances_NN[number, :number] = ((points[:number] - points[number]) ** 2).sum(axis=1)
        distances_NN[:number, number] = distances_NN[number, :number]
    return distances_NN


def _nearest(distances_NN: Float64Array, chain: list[int]) -> int:
    """The cluster nearest to the last one of the chain. The one before it wins ties, which ends the chain."""
    row_N = distances_NN[chain[-1]]
    nearest = int(np.argmin(row_N))
    return chain[-2] if len(chain) > 1 and row_N[chain[-2]] <= row_N[nearest] else nearest


def _merge(distances_NN: Float64Array, first: int, second: int, size_N: Float64Array) -> None:
    """The distances of a union, under the number of the first cluster (Lance and Williams 1967); the second one is gone.

    Those of the union from itself and from clusters that are gone stay infinite.
    """
    first_N, second_N = size_N + size_N[first], size_N + size_N[second]
    union_N = first_N * distances_NN[first] + second_N * distances_NN[second] - size_N * distances_NN[first, second]
    union_N /= first_N + size_N[second]
    size_N[first] += size_N[second]
    distances_NN[first] = distances_NN[:, first] = union_N
    distances_NN[second] = distances_NN[:, second] = np.inf
