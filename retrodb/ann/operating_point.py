"""Recall, and the number of lists to scan for it, without timing anything.

One coarse assignment with many probes says at which place of a query's list order each of its exact neighbours lies.
The k true neighbours found with `nprobe` lists are those at a place below it, so one pass gives the whole curve (of the
scan; the exact rerank that follows costs the order of a few, which a sample of the real join shows).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.errors import ConfigError
from retrodb.format.arrays import Float32Array, Int64Array

NORMAL_95 = 1.96  # quantile of the normal distribution for a two-sided interval of 95%


@dataclass(frozen=True)
class Estimate:
    """A mean of shares over queries with its 95% interval.

    The interval is Wilson's, for as many trials as would have the variance that is seen between groups of queries: so it
    does not shrink to nothing where every query has all its neighbours, as a normal one would.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values_Q: NDArray[np.float64], groups_Q: Int64Array | None = None) -> Estimate:
        """From a share a query; queries of one group (a document) are not independent of each other."""
        mean = float(values_Q.mean())
        _, places_Q = np.unique(np.arange(len(values_Q)) if groups_Q is None else groups_Q, return_inverse=True)
        sums_G = np.bincount(places_Q, values_Q - mean)
        variance = float((sums_G**2).sum()) / len(values_Q) ** 2
        trials = min(mean * (1 - mean) / variance, len(values_Q)) if variance > 0 else len(sums_G)
        z2 = NORMAL_95**2 / trials
        middle = (mean + z2 / 2) / (1 + z2)
        half = (z2 * (mean * (1 - mean) + z2 / 4)) ** 0.5 / (1 + z2)
        return cls(mean, max(0.0, middle - half), max(mean, min(1.0, middle + half)))


@dataclass(frozen=True)
class CurvePoint:
    """What scanning `nprobe` lists gives."""

    nprobe: int
    recall: Estimate
    scanned: float  # mean vectors scanned per query


def recall_at_k(
    ids_QK: Int64Array,
    distances_QK: Float32Array,
    true_QT: Int64Array,
    true_distances_QT: Float32Array,
    groups_Q: Int64Array | None = None,
) -> Estimate:
    """The share of the k true neighbours that was found; one as near as the k-th true one counts (big-ann-benchmarks).

    Distances on both sides are of the fixed-order kernel, so ties are equal bits. A query that has fewer than k true
    neighbours is measured against those it has; one that has none is left out.

    Args:
        true_QT: exact neighbours to at least depth k, from `exact_topk` with the same exclusions.
        groups_Q: what queries belong together, see `Estimate.of`.
    """
    k = ids_QK.shape[1]
    num_true_Q = (true_QT[:, :k] != NO_NEIGHBOUR).sum(axis=1)
    rows = np.flatnonzero(num_true_Q)
    if not len(rows):
        raise ConfigError("no query has any true neighbour, so there is no recall to measure")
    kth = true_distances_QT[rows, num_true_Q[rows] - 1]
    found = ((ids_QK[rows] != NO_NEIGHBOUR) & (distances_QK[rows] <= kth[:, None])).sum(axis=1)
    groups = None if groups_Q is None else groups_Q[rows]
    return Estimate.of(np.minimum(found, num_true_Q[rows]) / num_true_Q[rows], groups)


def recall_curve(
    lists_QA: NDArray[np.int32],
    true_lists_QT: NDArray[np.int32],
    list_sizes_L: Int64Array,
    k: int | None = None,
    groups_Q: Int64Array | None = None,
) -> list[CurvePoint]:
    """Recall and vectors scanned for nprobe = 1 .. A.

    Args:
        lists_QA: each query's nearest lists by closeness.
        true_lists_QT: the list that holds each exact neighbour, and each as near as the k-th; -1 where there is none.
        k: neighbours wanted, any of those; None: all of them.
        groups_Q: what queries belong together, see `Estimate.of`.
    """
    num_true_Q = np.minimum((true_lists_QT >= 0).sum(axis=1), k or true_lists_QT.shape[1])
    rows = np.flatnonzero(num_true_Q)
    if not len(rows):
        raise ConfigError("no query has any true neighbour, so there is no recall to measure")
    groups = None if groups_Q is None else groups_Q[rows]
    found_Q = np.zeros(len(rows), dtype=np.int64)
    scanned = 0
    points = []
    for place in range(lists_QA.shape[1]):
        list_Q = lists_QA[rows, place]
        found_Q += ((true_lists_QT[rows] == list_Q[:, None]) & (list_Q >= 0)[:, None]).sum(axis=1)
        scanned += int(np.where(list_Q >= 0, list_sizes_L[list_Q], 0).sum())
        shares = np.minimum(found_Q, num_true_Q[rows]) / num_true_Q[rows]
        points.append(CurvePoint(place + 1, Estimate.of(shares, groups), scanned / len(rows)))
    return points


def choose_nprobe(curve: list[CurvePoint], target: float) -> CurvePoint:
    """The cheapest point of the curve that reaches the target.

    Raises:
        ConfigError: no point does; the message says what the curve's end reaches.
    """
    for point in curve:
        if point.recall.mean >= target:
            return point
    what = f"recall {target} is not reached: {curve[-1].nprobe} lists give {curve[-1].recall.mean:.3f}"
    raise ConfigError(what, remedy="Ask for less, or measure the curve with more lists")
