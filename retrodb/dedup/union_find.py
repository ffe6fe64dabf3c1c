"""Clusters of duplicates: pairs verified by their shingle sets, joined by union-find, one document of each kept.

Shapes: `M` documents, `E` pairs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrodb.dedup.leak_rule import Rule
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import ShingleSets
from retrodb.format.arrays import Int64Array, UInt64Array

Keep = Literal["first", "longest", "newest"]


def equal_content_pairs(content_hashes: NDArray[np.generic]) -> Int64Array:
    """(E, 2) every document whose content hash (M,) was there before, with the first document that has it."""
    _, first, inverse = np.unique(content_hashes, return_index=True, return_inverse=True)
    partner = first[inverse]
    documents = np.flatnonzero(partner != np.arange(len(partner)))
    return np.stack([partner[documents], documents], axis=1)


def similarity(pairs: Int64Array, sets: ShingleSets) -> tuple[Int64Array, Int64Array]:
    """(E,) the sizes of intersection and union of the shingle sets of each pair of texts.

    Equal 64-bit keys are taken for equal n-grams: with E pairs a wrong one is expected E / 2^64 times.
    """
    intersection = _intersections(pairs, sets.keys, sets.offsets)
    sizes = sets.sizes()
    return intersection, sizes[pairs[:, 0]] + sizes[pairs[:, 1]] - intersection


def verify_pairs(pairs: Int64Array, sets: ShingleSets, rule: Rule) -> NDArray[np.bool_]:
    """(E,) whether the true Jaccard similarity of each pair of texts of `sets` satisfies a Jaccard rule."""
    intersection, union = similarity(pairs, sets)
    return (intersection > 0) & rule.holds(intersection, union)


def cluster(num_documents: int, pairs: Int64Array) -> Int64Array:
    """(M,) the smallest document of each document's cluster: the connected components of the pairs."""
    return _components(num_documents, pairs)


def keepers(labels: Int64Array, keep: Keep, lengths: Int64Array, added_at: Int64Array) -> Int64Array:
    """(M,) the document that is kept of each document's cluster; of equals the one with the smallest id.

    Args:
        labels: (M,) from `cluster`.
        keep: `first` the smallest id, `longest` the greatest length, `newest` the latest `added_at`.
        lengths: (M,) in any unit.
        added_at: (M,) times in any unit.
    """
    documents = np.arange(len(labels))
    worth = {"first": -documents, "longest": lengths, "newest": added_at}[keep]
    order = np.lexsort((documents, -worth, labels))
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    best = np.empty_like(labels)
    best[order] = order[first][inverse]
    return best


@kernel
def _intersections(pairs: Int64Array, keys: UInt64Array, offsets: Int64Array) -> Int64Array:
    found = np.zeros(len(pairs), np.int64)
    for e in range(len(pairs)):
        i, i_end = offsets[pairs[e, 0]], offsets[pairs[e, 0] + 1]
        j, j_end = offsets[pairs[e, 1]], offsets[pairs[e, 1] + 1]
        while i < i_end and j < j_end:
            if keys[i] == keys[j]:
                found[e] += 1
                i, j = i + 1, j + 1
            elif keys[i] < keys[j]:
                i += 1
            else:
                j += 1
    return found


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
        parent[document] = parent[parent[document]]  # halves the path for the next one
        document = parent[document]
    return document
