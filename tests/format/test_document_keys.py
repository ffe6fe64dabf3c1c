"""Keys of documents are found in sorted files by binary search."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retrodb.format.document_keys import equal_keys, id_entries, sort_ids

KEYS = st.integers(0, 5).map(lambda n: (n % 3) << 64 | n // 3) | st.integers(0, (1 << 128) - 1)


@given(st.lists(KEYS, max_size=40), st.lists(KEYS, max_size=20))
def test_all_pairs_of_equal_keys_are_found(stored: list[int], asked: list[int]) -> None:
    entries, others = (sort_ids(id_entries(keys, keys, list(range(len(keys))))) for keys in (stored, asked))
    found, others_found = equal_keys(entries, others)
    pairs = zip(entries[found]["row"].tolist(), others[others_found]["row"].tolist(), strict=True)
    expected = [(i, j) for i, key in enumerate(stored) for j, other in enumerate(asked) if key == other]
    assert sorted(pairs) == sorted(expected)
