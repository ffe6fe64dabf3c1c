"""The documents of the database that are packed in the sequences of a foreign query set: none of them may be found by it.

The metadata of a sequence names them (see `packed_queries.py`); every version of a named document counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson

from retrodb.ann.exclusion import Ragged
from retrodb.format.arrays import Int64Array
from retrodb.view.named import first_chunks_of
from retrodb.view.view import View


def sequence_documents(view: View, query_set: str, rows: Int64Array) -> Ragged:
    """The exclusion keys of kind `document` of query rows; none for those of documents that name no others."""
    queries = view.query_set(query_set)
    sequences, which = np.unique(queries.document_ids(rows), return_inverse=True)
    named = [
        orjson.loads(each["metadata"]).get("documents", []) if each else [] for each in queries.documents(sequences)
    ]
    named = [names if _are_names(names) else [] for names in named]
    firsts = first_chunks_of(view, sorted({name for names in named for name in names}))
    keys = [np.array([i for name in names for i in firsts[name]], dtype=np.int64) for names in named]
    sizes = np.array([len(own) for own in keys], dtype=np.int64)[which]
    flat = np.concatenate([np.empty(0, np.int64), *(keys[place] for place in which.tolist())])
    return Ragged(flat, np.concatenate(([0], np.cumsum(sizes))))


def _are_names(names: object) -> bool:
    """Whether it is a list of names, and not some field of a user's own that is called `documents`."""
    return isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names)
