"""Clusters of duplicates: pairs joined by union-find, and the one document of each cluster that is kept.

Shapes: `M` documents, `E` pairs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from retrodb.dedup.numba_kernel import kernel
from retrodb.format.arrays import AnyArray, Int64Array

Keep = Literal["first", "longest", "newest"]


def equal_content_pairs(content_hashes: AnyArray) -> Int64Array:
    """(E, 2) each document whose content hash (M,) an earlier document has, with the first such document."""
    _, first, inverse = np.unique(content_hashes, return_index=True, return_inverse=True)
    partner = first[inverse]
    documents = np.flatnonzero(partner != np.arange(len(partner)))
    return np.stack([partner[documents], documents], axis=1)


def connected_components(num_documents: int, pairs: Int64Array) -> Int64Array:
    """(M,) the smallest document of each document's connected component in the graph of the pairs (E, 2)."""
    return _components(num_documents, pairs)


def choose_keepers(labels: Int64Array, keep: Keep, lengths: Int64Array, added_at: Int64Array) -> Int64Array:
    """(M,) the document that is kept of each document's cluster. Of equal documents it is the one with the smallest id.

    Args:
        labels: (M,) from `connected_components`.
        keep: `first` is the smallest id, `longest` the greatest length, `newest` the latest `added_at`.
        lengths: (M,) in any unit.
        added_at: (M,) times in any unit.
    """
    documents = np.arange(len(labels))
    rank = {"first": -documents, "longest": lengths, "newest": added_at}[keep]
    order = np.lexsort((documents, -rank, labels))
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    keepers = np.empty_like(labels)
    keepers[order] = order[first][inverse]
    return keepers


@kernel
def _components(num_documents: int, pairs: Int64Array) -> Int64Array:
    parent = np.arange(num_documents)
    for e in range(len(pairs)):
        a, b = _root(parent, pairs[e, 0]), _root(parent, pairs[e, 1])
        parent[max(a, b)] = min(a, b)
    for document in range(num_documents):
        parent[document] = _root(parent, document)
    return parent


@kernel
def _root(parent: Int64Array, document: int) -> int:
    while parent[document] != document:
        parent[document] = parent[parent[document]]  # halves the path of later calls
        document = parent[document]
    return document
