"""The nearest rows of some queries, each with the list that holds it: exact, for measuring how many lists a search has to read.

Legend: Q queries, K of their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.metric import NO_NEIGHBOUR
from retrodb.format.arrays import AnyArray, BoolArray, Float32Array, Int64Array

_STORED = np.dtype([("id", "<i8"), ("distance", "<f4"), ("list", "<i4")])


@dataclass(frozen=True)
class Truth:
    """The nearest chunks, nearest first and ties by smaller id, and the list that holds each; -1 and infinity where none is."""

    ids_QK: Int64Array
    distances_QK: Float32Array
    lists_QK: Int64Array

    @classmethod
    def empty(cls, num_queries: int, k: int) -> Truth:
        """No neighbours known yet."""
        none = np.full((num_queries, k), NO_NEIGHBOUR, dtype=np.int64)
        return cls(none, np.full(none.shape, np.inf, dtype=np.float32), none.copy())

    @classmethod
    def of_stored(cls, stored_QK: AnyArray) -> Truth:
        """From the form in files."""
        lists = stored_QK["list"].astype(np.int64)
        return cls(np.ascontiguousarray(stored_QK["id"]), np.ascontiguousarray(stored_QK["distance"]), lists)

    def stored(self) -> AnyArray:
        """(Q, K) the form in files: a record of 16 bytes for each neighbour."""
        stored_QK = np.empty(self.ids_QK.shape, dtype=_STORED)
        stored_QK["id"], stored_QK["distance"], stored_QK["list"] = self.ids_QK, self.distances_QK, self.lists_QK
        return stored_QK

    def without(self, deleted_QK: BoolArray) -> Truth:
        """The same without deleted chunks. Which chunks come next is not known, so the rows are shorter."""
        ids = np.where(deleted_QK, NO_NEIGHBOUR, self.ids_QK)
        distances = np.where(deleted_QK, np.float32(np.inf), self.distances_QK)
        return Truth(ids, distances, np.where(deleted_QK, -1, self.lists_QK))

    def merged(self, other: Truth) -> Truth:
        """The K nearest of both. The order of several merges does not matter where no chunk is in two of them."""
        distances = np.concatenate([self.distances_QK, other.distances_QK], axis=1)
        ids = np.concatenate([self.ids_QK, other.ids_QK], axis=1)
        lists = np.concatenate([self.lists_QK, other.lists_QK], axis=1)
        nearest = np.lexsort((ids, distances), axis=1)[:, : self.ids_QK.shape[1]]
        return Truth(*(np.take_along_axis(array, nearest, axis=1) for array in (ids, distances, lists)))

    def recall(self, queries_QD: Float32Array, codebook: Codebook, nprobe: int) -> float | None:
        """The fraction of these neighbours that are in each query's `nprobe` nearest lists; None where there are none."""
        known = self.ids_QK != NO_NEIGHBOUR
        if not known.any():
            return None
        probed_QA = codebook.nearest_lists(queries_QD, min(nprobe, codebook.num_lists))
        is_probed = (self.lists_QK[:, :, None] == probed_QA[:, None, :]).any(axis=2) & known
        return float(is_probed.sum() / known.sum())
