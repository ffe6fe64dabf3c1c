"""Restrictions of the database side of a table: documents that match a condition, and a sample of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retrodb.view.where import documents_where

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retrodb.format.arrays import Int64Array
    from retrodb.view.view import View


def chosen_documents(view: View, where: str | None, sample: float, seed: int) -> Int64Array | None:
    """The first chunk ids of the live documents that match a condition and are in a sample, ascending; None for all.

    A hash of its key and the seed decides whether a document is in the sample. So this stays the same while the database
    grows and is compacted, and a smaller sample is part of a larger one.

    Args:
        where: SQL condition, see `documents_where`.
        sample: fraction of the documents.

    Raises:
        UsageError: for an invalid condition.
    """
    if where is None and sample >= 1:
        return None
    documents = documents_where(view, "true" if where is None else where)
    if sample >= 1:
        return documents
    chosen = [np.empty(0, dtype=np.int64)]
    for record in view.chunks.ranges:
        for file in view.chunks.overlapping("ids", *record.span):
            entries = view.chunks.map(file)
            is_sampled = _mixed(entries["key_lo"], seed) < int(sample * 2**64)
            chosen.append(file.first_chunk + entries["row"][is_sampled])
    return documents[np.isin(documents, np.concatenate(chosen))]


def _mixed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each key and the seed (splitmix64, Steele et al. 2014)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
