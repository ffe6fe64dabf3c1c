"""The keys of documents that were purged: they are never ingested or restored again.

Only these 128 bits of a purged document stay, the hash of its source and id.
"""

from __future__ import annotations

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.document_keys import IdArray, SortedEntries, equal_keys
from retrodb.view.view import View

KEY_DTYPE = np.dtype([("key_hi", "<u8"), ("key_lo", "<u8")])
"""The key of a document, as in an ids file."""


def purged_keys(view: View) -> IdArray:
    """(P,) KEY_DTYPE: the keys of all purged documents, sorted."""
    parts = [view.files.whole_array(record) for record in view.manifest.files("purged")]
    return np.unique(np.concatenate([np.empty(0, KEY_DTYPE), *parts]))


def is_among(entries: IdArray, keys: IdArray) -> BoolArray:
    """(M,) bool: which entries of an ids file have one of the keys (P,), which are sorted."""
    if not len(keys):
        return np.zeros(len(entries), dtype=bool)
    entry_keys = np.empty(len(entries), KEY_DTYPE)
    entry_keys["key_hi"], entry_keys["key_lo"] = entries["key_hi"], entries["key_lo"]
    position = np.minimum(np.searchsorted(keys, entry_keys), len(keys) - 1)
    is_equal: BoolArray = keys[position] == entry_keys
    return is_equal


def entries_with_keys(entries: SortedEntries, keys: IdArray) -> Int64Array:
    """(n,) ascending positions of the entries of an ids file (M,) that have one of the distinct, sorted keys (P,) KEY_DTYPE.

    Few keys read few pages of the file, because they are searched in it.
    """
    return np.sort(equal_keys(keys, entries)[1], kind="stable")
