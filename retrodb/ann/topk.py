"""The result of a search: the k nearest of each query."""

from __future__ import annotations

import numpy as np

from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.format.arrays import Float32Array, Int64Array

TopK = tuple[Int64Array, Float32Array]  # ids_QK with -1 for none, distances_QK with +inf there


def empty_topk(num_queries: int, k: int) -> TopK:
    """No neighbour yet for any query."""
    return np.full((num_queries, k), NO_NEIGHBOUR, np.int64), np.full((num_queries, k), np.inf, np.float32)
