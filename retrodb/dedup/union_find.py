"""Clusters of duplicates: pairs joined by union-find, and the one document of each cluster that is kept.

Shapes: `M` documents, `E` pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from retrodb.dedup.numba_kernel import kernel
from retrodb.format.arrays import AnyArray, Int64Array

Keep = Literal["first", "longest", "newest"]


CONTENT_DTYPE = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("document", "<i8")])
"""The xxh3-128 of a document's content as two numbers, and the document's id."""


def equal_content_pairs(contents: AnyArray) -> Int64Array:
    """(E, 2) ids of each document whose content an earlier document has, after that of the first such document.

    Args:
        contents: (M,) CONTENT_DTYPE, in any order.

    Returns:
        Pairs in ascending order of the later documents.
    """
    contents = contents[np.lexsort((contents["document"], contents["lo"], contents["hi"]))]
    hi, lo, documents = contents["hi"], contents["lo"], contents["document"]
    is_repeated = np.zeros(len(contents), np.bool_)
    is_repeated[1:] = (hi[1:] == hi[:-1]) & (lo[1:] == lo[:-1])
    first = np.maximum.accumulate(np.where(is_repeated, 0, np.arange(len(contents))))
    pairs = np.stack([documents[first], documents], axis=1)[is_repeated]
    return np.asarray(pairs[np.argsort(pairs[:, 1], kind="stable")])


def connected_components(num_documents: int, blocks: Iterable[Int64Array]) -> Int64Array:
    """(M,) the smallest document of each document's connected component.

    Args:
        blocks: the pairs of the graph, (E, 2) documents (0 .. M-1) each; one block is held at a time.
    """
    parent = np.arange(num_documents)
    for pairs in blocks:
        _join(parent, pairs)
    _point_to_roots(parent)
    return parent


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
def _join(parent: Int64Array, pairs: Int64Array) -> None:
    for e in range(len(pairs)):
        a, b = _root(parent, pairs[e, 0]), _root(parent, pairs[e, 1])
        parent[max(a, b)] = min(a, b)


@kernel
def _point_to_roots(parent: Int64Array) -> None:
    for document in range(len(parent)):
        parent[document] = _root(parent, document)


@kernel
def _root(parent: Int64Array, document: int) -> int:
    while parent[document] != document:
        parent[document] = parent[parent[document]]  # halves the path of later calls
        document = parent[document]
    return document
