"""Candidates inserted into rows of nearest neighbours, which are sorted by (distance, id).

Every kernel that decides an order uses this total order, so what it keeps does not depend on the order in which candidates
come. An empty position has the distance +inf and the id -1, and no candidate has an infinite distance.
"""

from __future__ import annotations

import numpy as np

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.topk import TopK
from retrodb.format.arrays import Float32Array, Int64Array


def insert_candidates_portable(candidates: TopK, best: TopK) -> None:
    """Merges candidates (id -1: none) into the best K of each row, in place: the definition of `insert_candidates`."""
    ids_QW, distances_QW = candidates
    ids_QK, distances_QK = best
    distances = np.concatenate([distances_QK, np.where(ids_QW < 0, np.float32(np.inf), distances_QW)], axis=1)
    ids = np.concatenate([ids_QK, ids_QW], axis=1)
    order = np.lexsort((ids, distances), axis=1)[:, : ids_QK.shape[1]]
    ids_QK[:], distances_QK[:] = np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)


@compiled
def insert(distance: np.float32, id_: int, ids_K: Int64Array, distances_K: Float32Array) -> None:
    """Inserts one candidate into one row, whose last neighbour drops out; does nothing where it would come after the last."""
    position = ids_K.shape[0] - 1
    last = distances_K[position]
    if distance > last or (distance == last and id_ > ids_K[position]):
        return
    while position > 0 and (
        distances_K[position - 1] > distance or (distances_K[position - 1] == distance and ids_K[position - 1] > id_)
    ):
        distances_K[position] = distances_K[position - 1]
        ids_K[position] = ids_K[position - 1]
        position -= 1
    distances_K[position] = distance
    ids_K[position] = id_


@compiled
def insert_candidates(candidates: TopK, best: TopK) -> None:
    """Merges W candidates a row (id -1: none) into the best K of the row, in place."""
    ids_QW, distances_QW = candidates
    ids_QK, distances_QK = best
    for row in range(ids_QW.shape[0]):
        for w in range(ids_QW.shape[1]):
            if ids_QW[row, w] >= 0:
                insert(distances_QW[row, w], ids_QW[row, w], ids_QK[row], distances_QK[row])
