"""Partial results, merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrodb.ann import kernels
from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.format.arrays import Float32Array, Int64Array

TopK = tuple[Int64Array, Float32Array]  # ids_QK with -1 for none, distances_QK with +inf there


def empty_topk(num_queries: int, k: int) -> TopK:
    """No neighbour yet for any query."""
    return np.full((num_queries, k), NO_NEIGHBOUR, np.int64), np.full((num_queries, k), np.inf, np.float32)


def merge_topk(partials: Sequence[TopK], k: int) -> TopK:
    """The k nearest of all partial results by (distance, id); the partial results name no id twice for one query.

    Equal to the k nearest of everything when each partial result holds the k nearest of its own rows.
    """
    ids_QK, distances_QK = empty_topk(partials[0][0].shape[0], k)
    for ids_QW, distances_QW in partials:
        kernels.insert_pairs(distances_QW, ids_QW, distances_QK, ids_QK)
    return ids_QK, distances_QK
