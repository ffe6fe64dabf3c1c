"""Restrictions of the database side of a table: documents that match a condition, and a sample of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.records import FileRecord
from retrodb.format.rows import bitmap_of
from retrodb.view.view import View
from retrodb.view.where import DocumentCondition

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyroaring import BitMap

    from retrodb.format.arrays import Int64Array


@dataclass(frozen=True)
class Restriction:
    """Which documents can be neighbours: those that match a condition and are in a sample.

    A hash of its key and the seed decides whether a document is in the sample. So this stays the same while the database
    grows and is compacted, and a smaller sample is part of a larger one.
    """

    view: View
    condition: DocumentCondition
    sample: float  # fraction of the documents
    seed: int

    @staticmethod
    def of(view: View, where: str | None, sample: float, seed: int) -> Restriction | None:
        """The restriction; None where all documents are chosen.

        Args:
            where: SQL condition, see `documents_where`.

        Raises:
            UsageError: for an invalid condition.
        """
        if where is None and sample >= 1:
            return None
        return Restriction(view, DocumentCondition(view, "true" if where is None else where), sample, seed)

    def documents_of(self, record: FileRecord) -> Int64Array:
        """(Q,) int64: the first chunk ids of the chosen live documents of one range, ascending."""
        documents = self.condition.documents_of(record)
        if self.sample >= 1 or not len(documents):
            return documents
        chosen = [np.empty(0, dtype=np.int64)]
        for file in self.view.chunks.overlapping("ids", *record.span):
            entries = self.view.chunks.map(file)
            is_sampled = _mixed(entries["key_lo"], self.seed) < int(self.sample * 2**64)
            chosen.append(file.first_chunk + entries["row"][is_sampled])
        return documents[np.isin(documents, np.concatenate(chosen))]

    def rows_of(self, record: FileRecord) -> BitMap:
        """All rows of the chosen documents of one range, relative to its start."""
        first_rows = self.documents_of(record) - record.first_chunk
        return bitmap_of(self.view.chunks.layout(record).rows_of(first_rows))


def chosen_documents(view: View, where: str | None, sample: float, seed: int) -> Int64Array | None:
    """The first chunk ids of all chosen documents, ascending; None for all. Arguments and errors: see `Restriction.of`."""
    restriction = Restriction.of(view, where, sample, seed)
    if restriction is None:
        return None
    chosen = map(restriction.documents_of, view.chunks.ranges)
    return np.concatenate([np.empty(0, dtype=np.int64), *chosen])


def _mixed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each key and the seed (splitmix64, Steele et al. 2014)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
