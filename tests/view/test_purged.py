"""Keys of purged documents are looked up in sorted ids files."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrodb.format.document_keys import ID_DTYPE, sort_ids
from retrodb.view.purged import KEY_DTYPE, entries_with_keys, is_among

KEYS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2**64 - 1])), max_size=30)


@given(KEYS, KEYS)
def test_keys_are_found_as_a_scan_of_all_entries_finds_them(
    stored: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    entries = np.zeros(len(stored), ID_DTYPE)
    entries["key_hi"], entries["key_lo"] = [high for high, _ in stored], [low for _, low in stored]
    entries["row"] = np.arange(len(stored))
    entries, keys = sort_ids(entries), np.unique(np.array(asked, KEY_DTYPE))
    assert entries_with_keys(entries, keys).tolist() == np.flatnonzero(is_among(entries, keys)).tolist()


def test_few_entries_are_read_for_a_key() -> None:
    num_read = 0

    class Counted:
        def __len__(self) -> int:
            return len(entries)

        def __getitem__(self, positions: np.ndarray) -> np.ndarray:
            nonlocal num_read
            num_read += len(positions)
            return entries[positions]

    entries = np.zeros(1 << 16, ID_DTYPE)
    entries["key_hi"] = np.arange(1 << 16)
    keys = np.array([(7, 0), (1 << 20, 0)], KEY_DTYPE)
    assert entries_with_keys(Counted(), keys).tolist() == [7]
    assert num_read < 100
