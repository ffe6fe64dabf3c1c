"""Restrictions of the database side: documents that a condition chooses, and a sample of them for curves over size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retrodb.view.where import documents_where

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retrodb.format.arrays import Int64Array
    from retrodb.view.view import View


def chosen_documents(view: View, where: str | None, sample: float, seed: int) -> Int64Array | None:
    """The first chunk ids of the live documents that a condition and a sample leave, ascending; None for all.

    A document is in the sample by a hash of its key and the seed, so it stays in it (or out of it) while the database
    grows and is compacted, and a smaller sample is part of a larger one.

    Raises:
        UsageError: for a condition that is wrong.
    """
    if where is None and sample >= 1:
        return None
    documents = documents_where(view, "true" if where is None else where)
    if sample >= 1:
        return documents
    chosen = [np.empty(0, dtype=np.int64)]
    for record in view.chunks.ranges:
        for file in view.chunks.overlapping("ids", record.first_chunk, record.num_chunks):
            entries = view.chunks.map(file)
            is_in = _mixed(entries["key_lo"], seed) < int(sample * 2**64)
            chosen.append(file.first_chunk + entries["row"][is_in])
    return documents[np.isin(documents, np.concatenate(chosen))]


def _mixed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The keys, every bit of them and of the seed spread over all bits (splitmix64, Steele et al. 2014)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
