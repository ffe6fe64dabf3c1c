"""The choice of a routing on a sample of query rows whose true neighbours are known: few ranges first, then few products.

Nothing is timed, and all ties are broken by position, so equal samples give equal routings.

Legend: S rows of the sample, K true neighbours of a row, M of its nearest lists, R ranges of lists, L lists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from retrodb.ann.routing import (
    gains_of,
    lists_in_taken,
    route_ranges,
    routed_lists,
    scores_of_ranges,
)
from retrodb.format.arrays import BoolArray, Int32Array, Int64Array
from retrodb.format.entries import Routing, RoutingCost

GAIN_SCALE = 1_000_000_000  # gains are billionths of all true neighbours
LOOKED_AT = 4  # times as many lists are looked at as a row reads without a routing
MOST_PRODUCTS = 2.5  # times as many as without a routing; measured on text, half as many ranges take 1.7 to 2.4 times
_MASSES = 128  # that are tried, in equal steps up to the sum of all gains


@dataclass(frozen=True)
class LearnedRouting:
    """A routing, the lists that it reads, and the recall that this gives on the sample."""

    routing: Routing
    nprobe: int
    recall: float


def learned_routing(
    nearest_SM: Int32Array, true_lists_SK: Int64Array, sizes_L: Int64Array, num_ranges: int, nprobe: int, target: float
) -> LearnedRouting:
    """The routing that reads the fewest ranges for a recall, with at most `MOST_PRODUCTS` times the products.

    Args:
        nearest_SM: each row's nearest lists by closeness.
        true_lists_SK: the list that holds each true neighbour, -1 where there is none; there is at least one.
        sizes_L: vectors in each list.
        nprobe: lists that a row reads without a routing for the wanted recall.
        target: the wanted recall, which `nprobe` lists reach on this sample.
    """
    num_lists = len(sizes_L)
    nearest_SM = nearest_SM[:, : min(nearest_SM.shape[1], LOOKED_AT * nprobe)]
    sample = _Sample(nearest_SM, _hits(nearest_SM, true_lists_SK), (true_lists_SK >= 0).sum(axis=1), sizes_L)
    routing = Routing(
        num_ranges, learned_gains(sample.hits_SM, int(sample.num_true_S.sum())), 0, RoutingCost(0.0, 0.0, 0.0, 0.0)
    )
    ranges_SM = route_ranges(nearest_SM, num_lists, num_ranges)
    scores_SR = scores_of_ranges(ranges_SM, gains_of(routing), num_ranges)
    most_scanned = MOST_PRODUCTS * float(sample.sizes_SM[:, :nprobe].sum())
    total = int(gains_of(routing).sum())
    masses = (-(-total * step // _MASSES) for step in range(1, _MASSES + 1))
    reaching = ((mass, sample.reaching(lists_in_taken(ranges_SM, scores_SR, mass), target)) for mass in masses)
    # The last mass takes every range with a gain, and does with the nearest lists what they do without a routing.
    mass, (nprobe_routed, recall, _) = next(found for found in reaching if found[1].scanned <= most_scanned)
    routing = replace(routing, mass=mass)
    lists_SA = routed_lists(nearest_SM, nprobe_routed, routing, num_lists)
    cost = RoutingCost(
        *_mean_cost(lists_SA, sizes_L, num_ranges), *_mean_cost(nearest_SM[:, :nprobe], sizes_L, num_ranges)
    )
    return LearnedRouting(replace(routing, cost=cost), nprobe_routed, recall)


class _Reached(NamedTuple):
    """The fewest lists that reach a recall."""

    nprobe: int  # that a row reads at most
    recall: float
    scanned: float  # vectors in them, of all rows; infinite where the recall is not reached


@dataclass(frozen=True)
class _Sample:
    """Rows with their nearest lists."""

    nearest_SM: Int32Array
    hits_SM: Int64Array  # true neighbours in each of these lists
    num_true_S: Int64Array
    sizes_L: Int64Array

    @cached_property
    def sizes_SM(self) -> Int64Array:
        """Vectors in each of these lists."""
        return np.where(self.nearest_SM >= 0, self.sizes_L[self.nearest_SM], 0)

    def reaching(self, is_read_SM: BoolArray, target: float) -> _Reached:
        """The fewest lists that reach a recall when rows read the first of these."""
        rows, columns = np.nonzero(is_read_SM)
        numbers = is_read_SM.cumsum(axis=1)[rows, columns] - 1
        hits_SM = np.zeros(is_read_SM.shape, dtype=np.int64)
        hits_SM[rows, numbers] = self.hits_SM[rows, columns]
        has_true_S = self.num_true_S > 0
        recall_M = (hits_SM[has_true_S].cumsum(axis=1) / self.num_true_S[has_true_S, None]).mean(axis=0)
        last = int(np.argmax(recall_M >= target))
        if recall_M[last] < target:
            return _Reached(0, 0.0, np.inf)
        is_first = numbers <= last
        return _Reached(last + 1, float(recall_M[last]), float(self.sizes_SM[rows[is_first], columns[is_first]].sum()))


def learned_gains(hits_SM: Int64Array, num_true: int) -> tuple[tuple[int, int], ...]:
    """The gain of the r-th nearest list for each r, as (number of lists, their gain) with falling gains.

    A farther list holds no more true neighbours than a nearer one, up to chance. So neighbouring ranks whose counts rise are
    pooled until none do: the least-squares fit of falling gains (Ayer et al., 1955).

    Args:
        hits_SM: true neighbours in each row's r-th nearest list.
        num_true: of all rows, also outside these lists.
    """
    pools: list[tuple[int, int]] = []  # (number of lists, true neighbours in them)
    for hits in hits_SM.sum(axis=0).tolist():
        pools.append((1, hits))
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] <= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = pools[-1][0] + last[0], pools[-1][1] + last[1]
    return tuple((count, GAIN_SCALE * hits // (count * num_true)) for count, hits in pools)


def _hits(nearest_SM: Int32Array, true_lists_SK: Int64Array) -> Int64Array:
    """(S, M) int64: true neighbours in each of these lists."""
    hits_SM = np.zeros(nearest_SM.shape, dtype=np.int64)
    for true_S in true_lists_SK.T:
        hits_SM += (nearest_SM == true_S[:, None]) & (true_S[:, None] >= 0)
    return hits_SM


def _mean_cost(lists_SA: Int32Array, sizes_L: Int64Array, num_ranges: int) -> tuple[float, float]:
    """The ranges and the vectors in the lists of a row, means of all rows."""
    ranges_SA = np.sort(route_ranges(lists_SA, len(sizes_L), num_ranges), axis=1)
    is_first = np.diff(ranges_SA, axis=1, prepend=-1) > 0
    scanned = np.where(lists_SA >= 0, sizes_L[lists_SA], 0).sum(axis=1)
    return round(float(is_first.sum(axis=1).mean()), 2), round(float(scanned.mean()), 1)
