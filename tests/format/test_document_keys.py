"""Keys of documents are found in sorted files by binary search."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrodb.format.document_keys import find_keys, id_entries, sort_ids

KEYS = st.integers(0, 5).map(lambda n: (n % 3) << 64 | n // 3) | st.integers(0, (1 << 128) - 1)


@given(st.lists(KEYS, max_size=40), st.lists(KEYS, max_size=20, unique=True))
def test_all_entries_of_asked_keys_are_found(stored: list[int], asked: list[int]) -> None:
    entries = sort_ids(id_entries(stored, stored, list(range(len(stored)))))
    keys = np.array([divmod(key, 1 << 64) for key in asked], dtype=np.uint64).reshape(-1, 2)
    found = entries[find_keys(entries, keys)]
    whole = [int(entry["key_hi"]) << 64 | int(entry["key_lo"]) for entry in found]
    assert whole == [key for key in asked for _ in range(stored.count(key))]
    assert sorted(found["row"].tolist()) == [row for row, key in enumerate(stored) if key in asked]
