"""k-means of many lists in two levels: groups from a small sample, then lists from the vectors of each group, then refinement.

Every step reads the sample once, in its order, and its result depends on nothing but the sample: not on the files that hold it.
`train_grouped` runs the steps on a sample in memory; tasks run the same steps on files (`stages/index/training_tasks.py`).

Legend: S sample, D dimensions, G groups, L lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from retrodb.ann.codegen.grouping import sum_by_list
from retrodb.ann.grouped_lists import GroupedLists
from retrodb.ann.kmeans import FLAT_TRAINING, centroids_of, kmeans, nearest_centroid
from retrodb.ann.ward import MAX_POINTS, leaf_order
from retrodb.format.arrays import Float32Array, Float64Array, Int64Array, VectorArray
from retrodb.format.entries import Metric

POINTS_PER_GROUP = 256  # of the small sample that groups are made from; with all vectors they are no better
# Passes over the sample in which each vector goes to its nearest list of any group. Without them a search scans 4 to 13% more
# vectors for the same recall (500,000 vectors of text in 2,048 to 32,768 lists).
REFINEMENTS = 2
# Groups whose lists a vector is compared with then. With all of 91 a search scans 1% less, and training takes four times as long.
REFINING_GROUPS = 4
MAX_POINTS_PER_LIST = 256  # more do not improve a list; FAISS takes as many
MAX_GROUP = 4  # lists of a group, relative to the mean: a group of very many vectors gets no more, so that its task stays bounded


class TrainingRows(Protocol):
    """A sample (S, D) that is read by ascending row numbers, such as an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Int64Array, /) -> VectorArray: ...


@dataclass(frozen=True)
class GroupSizes:
    """How the lists are divided between the groups."""

    lists_G: Int64Array  # lists of each group
    points_G: Int64Array  # vectors of the sample that a group's lists are made from, of those that are nearest to it


@dataclass(frozen=True)
class GroupedCentroids:
    """Lists in groups, both in leaf order: neighbouring numbers are neighbours in space, and ranges of lists are compact."""

    groups_GD: Float32Array  # centroids of the groups
    lists_G: Int64Array  # lists of each group
    centroids_LD: Float32Array  # of the lists, group by group


def num_groups_of(num_lists: int) -> int:
    """Groups of lists, of about as many lists as there are groups; none where all lists are trained at once."""
    return 0 if num_lists <= FLAT_TRAINING else round(num_lists**0.5)


def evenly_spread(size: int, total: int) -> Int64Array:
    """(size,) ascending positions among `total`, equally far from each other; all of them where there are fewer."""
    size = min(size, total)
    positions: Int64Array = (np.arange(size, dtype=np.int64) * total + total // 2) // max(size, 1)
    return positions


def train_groups(points_SD: Float32Array, num_groups: int, seed: int, metric: Metric, threads: int = 1) -> Float32Array:
    """(G, D) centroids of groups, in leaf order, from the small sample."""
    groups_GD = kmeans(points_SD, num_groups, seed, metric, threads)
    return groups_GD[leaf_order(groups_GD)]


def divide_lists(sizes_G: Int64Array, num_lists: int) -> GroupSizes:
    """How the lists are divided between groups with so many vectors of the sample: in proportion, at least one for any vector.

    A group gets at most `MAX_GROUP` times the mean. Where that would leave out more than half of the sample, the limit is doubled
    until it does not, so that there are always enough vectors for a list.
    """
    total, most = int(sizes_G.sum()), MAX_GROUP
    while 2 * int((limited_G := np.minimum(sizes_G, -(-most * total // len(sizes_G)))).sum()) < total:
        most *= 2
    lists_G = _in_proportion(limited_G, num_lists)
    per_list = min(2 * -(-total // num_lists), MAX_POINTS_PER_LIST)
    return GroupSizes(lists_G, np.minimum(sizes_G, per_list * lists_G))


def train_lists(
    points_SD: Float32Array, num_lists: int, seed: int, group: int, metric: Metric, threads: int = 1
) -> Float32Array:
    """(num_lists, D) centroids of the lists of a group, from vectors that are nearest to it."""
    return kmeans(points_SD, num_lists, seed + 1 + group, metric, threads)


def refining_lists(points_SD: Float32Array, trained: GroupedCentroids, metric: Metric, threads: int = 1) -> Int64Array:
    """(S,) the list that each vector refines: the nearest one of the nearest groups."""
    lists = GroupedLists.of(trained.groups_GD, trained.centroids_LD, trained.lists_G)
    return lists.nearest_in(points_SD, 1, REFINING_GROUPS, metric, threads)[:, 0]


def refine_lists(
    points: Iterable[tuple[Float32Array, Int64Array]], num_lists: int, dim: int, metric: Metric
) -> Float32Array:
    """(num_lists, dim) the means of the vectors of each list, which are read in blocks of vectors and numbers of their lists."""
    sums_LD: Float64Array = np.zeros((num_lists, dim))
    sizes_L: Int64Array = np.zeros(num_lists, dtype=np.int64)
    for points_SD, lists_S in points:
        sum_by_list(lists_S, points_SD, sums_LD)
        sizes_L += np.bincount(lists_S, minlength=num_lists)
    return centroids_of(sums_LD, sizes_L, metric)


def finish_group(lists_LD: Float32Array, metric: Metric) -> tuple[Float32Array, Float32Array]:
    """The lists of a group in leaf order, and (1, D) the group where its lists are after the refinement."""
    runs = [lists_LD[first : first + MAX_POINTS] for first in range(0, len(lists_LD), MAX_POINTS)]
    sums_1D = lists_LD.astype(np.float64).sum(axis=0, keepdims=True)
    group_1D = centroids_of(sums_1D, np.array([len(lists_LD)]), metric)
    return np.concatenate([run_LD[leaf_order(run_LD)] for run_LD in runs]), group_1D


def finish_groups(trained: GroupedCentroids, metric: Metric) -> GroupedCentroids:
    """The lists of each group in leaf order, and the groups where their lists are; a group without lists stays where it is."""
    groups_GD, centroids_LD = trained.groups_GD.copy(), trained.centroids_LD.copy()
    bounds = np.concatenate([[0], np.cumsum(trained.lists_G)]).tolist()
    for group, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            centroids_LD[start:stop], groups_GD[group : group + 1] = finish_group(centroids_LD[start:stop], metric)
    return GroupedCentroids(groups_GD, trained.lists_G, centroids_LD)


def train_grouped(
    sample_SD: Float32Array, num_lists: int, num_groups: int, seed: int, metric: Metric, threads: int = 1
) -> GroupedCentroids:
    """All steps on a sample in memory."""
    small = sample_SD[evenly_spread(num_groups * POINTS_PER_GROUP, len(sample_SD))]
    groups_GD = train_groups(small, num_groups, seed, metric, threads)
    group_S = nearest_centroid(sample_SD, groups_GD, metric, threads)
    divided = divide_lists(np.bincount(group_S, minlength=num_groups), num_lists)
    centroids = [np.empty((0, sample_SD.shape[1]), np.float32)]
    for group in np.flatnonzero(divided.lists_G).tolist():
        rows = np.flatnonzero(group_S == group)
        points = sample_SD[rows[evenly_spread(int(divided.points_G[group]), len(rows))]]
        centroids.append(train_lists(points, int(divided.lists_G[group]), seed, group, metric, threads))
    trained = GroupedCentroids(groups_GD, divided.lists_G, np.concatenate(centroids))
    bounds = np.concatenate([[0], np.cumsum(trained.lists_G)])
    for _ in range(REFINEMENTS):
        lists_S = refining_lists(sample_SD, trained, metric, threads)
        refined = []
        for start, stop in pairwise(bounds.tolist()):
            rows = np.flatnonzero((lists_S >= start) & (lists_S < stop))
            refined.append(
                refine_lists([(sample_SD[rows], lists_S[rows] - start)], stop - start, sample_SD.shape[1], metric)
            )
        trained = GroupedCentroids(groups_GD, trained.lists_G, np.concatenate(refined))
    return finish_groups(trained, metric)


def _in_proportion(sizes_G: Int64Array, num_lists: int) -> Int64Array:
    """Lists per group in proportion to its points, at least one for any that has points, `num_lists` in all."""
    lists_G: Int64Array = np.maximum(sizes_G * num_lists // sizes_G.sum(), sizes_G > 0)
    while (missing := num_lists - int(lists_G.sum())) != 0:
        step = 1 if missing > 0 else -1
        changeable = np.flatnonzero(lists_G > (step < 0))
        order = np.argsort(-step * sizes_G[changeable] / lists_G[changeable], kind="stable")
        lists_G[changeable[order[: abs(missing)]]] += step
    return lists_G
