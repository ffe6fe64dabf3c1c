"""The documents that are packed in the sequences of a query set: none of them may become a neighbour of the sequence.

The metadata of a sequence names them (see `packed.py`). Every version of a named document is excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import orjson

from retrodb.ann.exclusion import Intervals
from retrodb.format.arrays import Int64Array
from retrodb.view.named import first_chunks_of
from retrodb.view.view import View


def sequence_documents(view: View, query_set: str, rows: Int64Array) -> Intervals:
    """The ids of the documents that the sequences of query rows name. Rows of sequences that name none have no interval."""
    queries = view.query_set(query_set)
    sequence_ids, sequence_of_row = np.unique(queries.document_ids(rows), return_inverse=True)
    names_of = [_names(sequence["metadata"]) if sequence else [] for sequence in queries.documents(sequence_ids)]
    first_chunks = first_chunks_of(view, sorted({name for names in names_of for name in names}))
    firsts_of = [np.array([first for name in names for first in first_chunks[name]], np.int64) for names in names_of]
    bounds_of = [view.chunks.document_bounds(firsts) for firsts in firsts_of]
    sizes = np.array([len(bounds) for bounds in bounds_of], dtype=np.int64)[sequence_of_row]
    bounds_I2 = np.concatenate(
        [np.empty((0, 2), np.int64), *(bounds_of[number] for number in sequence_of_row.tolist())]
    )
    return Intervals(bounds_I2, np.concatenate(([0], np.cumsum(sizes))))


def _names(metadata: str) -> Sequence[str]:
    """The documents that the metadata of a sequence names."""
    names = orjson.loads(metadata).get("documents", [])
    return names if _are_names(names) else []


def _are_names(names: object) -> TypeGuard[Sequence[str]]:
    """Whether it is a list of names, and not a field of a user's document that happens to be called `documents`."""
    return isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names)
