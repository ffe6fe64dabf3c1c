"""The leaf order of Ward's hierarchy, compared with the plain definition: merge the two clusters whose union costs least."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from retrodb.ann.ward import leaf_order
from retrodb.format.arrays import Float32Array


def plain_order(points: Float32Array) -> list[int]:
    """The definition: costs of all unions from the means of their points, the cheapest first."""
    clusters = [[number] for number in range(len(points))]

    def cost(pair: tuple[list[int], list[int]]) -> float:
        means = [points[members].astype(np.float64).mean(axis=0) for members in pair]
        sizes = [len(members) for members in pair]
        return float(sizes[0] * sizes[1] / sum(sizes) * ((means[0] - means[1]) ** 2).sum())

    while len(clusters) > 1:
        first, second = min(combinations(clusters, 2), key=cost)
        clusters = [members for members in clusters if members not in (first, second)]
        clusters.append([*first, *second] if min(first) < min(second) else [*second, *first])
    return [number for members in clusters for number in members]


@pytest.mark.parametrize("num_points", [0, 1, 2, 3, 5, 24])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_that_of_the_plain_definition(num_points: int, seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((num_points, 3)).astype(np.float32)
    assert leaf_order(points).tolist() == plain_order(points)


def test_clusters_are_ranges_of_the_order() -> None:
    random = np.random.default_rng(0)
    cluster = random.permutation(np.repeat(np.arange(8), 30))
    points = random.standard_normal((8, 16))[cluster] * 4 + random.standard_normal((240, 16))
    order = leaf_order(points.astype(np.float32))
    assert sorted(order.tolist()) == list(range(240))
    assert np.count_nonzero(np.diff(cluster[order])) == 7


def test_equal_points_are_ordered_by_number() -> None:
    assert leaf_order(np.ones((50, 4), np.float32)).tolist() == sorted(range(50), key=lambda n: n)
    assert leaf_order(np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_order_does_not_depend_on_where_the_points_are() -> None:
    points = np.random.default_rng(1).integers(-8, 8, (40, 4)).astype(np.float32)
    assert leaf_order(points + np.float32(64)).tolist() == leaf_order(points).tolist()
