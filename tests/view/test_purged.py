"""Keys of purged documents are looked up in sorted ids files."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

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


def test_few_entries_are_read_for_a_key(tmp_path: Path) -> None:
    entries = np.lib.format.open_memmap(tmp_path / "ids.npy", "w+", ID_DTYPE, (1 << 21,))  # a file without pages
    entries["key_hi"][-1] = 7
    keys = np.array([(7, 0), (1 << 20, 0)], KEY_DTYPE)
    tracemalloc.start()
    try:
        assert entries_with_keys(entries, keys).tolist() == [len(entries) - 1]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "a column was copied"
    finally:
        tracemalloc.stop()
