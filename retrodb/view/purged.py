"""The keys of documents that were purged: they never come back, whatever a source or an older snapshot still has.

Of a purged document nothing stays but these 128 bits, the hash of its source and id.
"""

from __future__ import annotations

import numpy as np

from retrodb.format.arrays import BoolArray, map_array
from retrodb.format.ids import IdArray
from retrodb.view.view import View

KEY_DTYPE = np.dtype([("key_hi", "<u8"), ("key_lo", "<u8")])
"""The key of a document, as in an ids file."""


def purged_keys(view: View) -> IdArray:
    """(P,) KEY_DTYPE: the keys of all purged documents, sorted."""
    parts = [map_array(view.files.open(record)) for record in view.manifest.files("purged")]
    return np.unique(np.concatenate([np.empty(0, KEY_DTYPE), *parts]))


def is_among(entries: IdArray, keys: IdArray) -> BoolArray:
    """(M,) bool: which entries of an ids file have one of the keys (P,), which are sorted."""
    if not len(keys):
        return np.zeros(len(entries), dtype=bool)
    own = np.empty(len(entries), KEY_DTYPE)
    own["key_hi"], own["key_lo"] = entries["key_hi"], entries["key_lo"]
    place = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
    found: BoolArray = keys[place] == own
    return found
