"""Recall, and how it grows with the number of lists that are scanned, without timing anything.

One coarse assignment with many probes gives the position of each exact neighbour's list in the query's order of lists.
A scan of `nprobe` lists finds the true neighbours with a position below `nprobe`, so one pass gives the whole curve. This is
the recall of the scan. The exact rerank that follows loses a few more, which a sample of the real join shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.errors import ConfigError
from retrodb.format.arrays import Float32Array, Float64Array, Int32Array, Int64Array

NORMAL_95 = 1.96  # quantile of the normal distribution for a two-sided interval of 95%


@dataclass(frozen=True)
class RecallEstimate:
    """A mean of fractions over queries with its 95% interval.

    The interval is Wilson's (1927) at every recall, as Brown, Cai and DasGupta (Interval Estimation for a Binomial Proportion,
    2001) recommend near 0 and 1: a normal or a bootstrap interval shrinks to nothing where every query has all its neighbours.
    Its trials are the groups, because queries of one document are not independent: Kish's effective number of groups
    (Survey Sampling, 1965), which is their number when all have equally many queries. A recall between 0 and 1 with mean p has a
    variance of p (1 - p) at most, so the interval is wide enough whatever the recalls within the groups are. It depends on
    nothing but the mean and the groups, so a higher recall never has a lower interval.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values_Q: Float64Array, groups_Q: Int64Array | None = None) -> RecallEstimate:
        """From a fraction per query; queries of one group (a document) are not independent of each other."""
        mean = float(values_Q.mean())
        _, sizes_G = np.unique(np.arange(len(values_Q)) if groups_Q is None else groups_Q, return_counts=True)
        trials = len(values_Q) ** 2 / float((sizes_G.astype(np.float64) ** 2).sum())
        z2 = NORMAL_95**2 / trials
        middle = (mean + z2 / 2) / (1 + z2)
        half = (z2 * (mean * (1 - mean) + z2 / 4)) ** 0.5 / (1 + z2)
        return cls(mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half)))


@dataclass(frozen=True)
class CurvePoint:
    """Recall and cost of scanning `nprobe` lists."""

    nprobe: int
    recall: RecallEstimate
    scanned: float  # mean vectors scanned per query


def recall_at_k(
    ids_QK: Int64Array,
    distances_QK: Float32Array,
    true_QT: Int64Array,
    true_distances_QT: Float32Array,
    groups_Q: Int64Array | None = None,
) -> RecallEstimate:
    """The fraction of the k true neighbours in the result; one as near as the k-th true one counts (big-ann-benchmarks).

    Distances on both sides are exact, so ties have equal bits. A query with fewer than k true neighbours is measured
    against those it has; a query with none is left out.

    Raises:
        ConfigError: no query has a true neighbour.

    Args:
        true_QT: exact neighbours to at least depth k, from `exact_topk` with the same exclusions.
        groups_Q: the group of each query, see `RecallEstimate.of`.
    """
    k = ids_QK.shape[1]
    num_true_Q = (true_QT[:, :k] != NO_NEIGHBOUR).sum(axis=1)
    rows = np.flatnonzero(num_true_Q)
    if not len(rows):
        raise ConfigError("no query has any true neighbour, so there is no recall to measure")
    kth = true_distances_QT[rows, num_true_Q[rows] - 1]
    num_correct = ((ids_QK[rows] != NO_NEIGHBOUR) & (distances_QK[rows] <= kth[:, None])).sum(axis=1)
    groups = None if groups_Q is None else groups_Q[rows]
    return RecallEstimate.of(np.minimum(num_correct, num_true_Q[rows]) / num_true_Q[rows], groups)


def recall_curve(
    lists_QA: Int32Array,
    true_lists_QT: Int32Array,
    list_sizes_L: Int64Array,
    k: int | None = None,
    groups_Q: Int64Array | None = None,
) -> list[CurvePoint]:
    """Recall and vectors scanned for nprobe = 1 .. A.

    Args:
        lists_QA: each query's nearest lists by closeness.
        true_lists_QT: the list that holds each exact neighbour, and each as near as the k-th; -1 where there is none.
        k: how many of these neighbours are wanted; None: all of them.
        groups_Q: the group of each query, see `RecallEstimate.of`.
    """
    num_true_Q = np.minimum((true_lists_QT >= 0).sum(axis=1), k or true_lists_QT.shape[1])
    rows = np.flatnonzero(num_true_Q)
    if not len(rows):
        raise ConfigError("no query has any true neighbour, so there is no recall to measure")
    groups = None if groups_Q is None else groups_Q[rows]
    num_reached_Q = np.zeros(len(rows), dtype=np.int64)
    scanned = 0
    points = []
    for position in range(lists_QA.shape[1]):
        list_Q = lists_QA[rows, position]
        num_reached_Q += ((true_lists_QT[rows] == list_Q[:, None]) & (list_Q >= 0)[:, None]).sum(axis=1)
        scanned += int(np.where(list_Q >= 0, list_sizes_L[list_Q], 0).sum())
        fractions = np.minimum(num_reached_Q, num_true_Q[rows]) / num_true_Q[rows]
        points.append(CurvePoint(position + 1, RecallEstimate.of(fractions, groups), scanned / len(rows)))
    return points
