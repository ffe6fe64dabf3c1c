"""Ranges of ids, found by binary search, are those that looking at all of them finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrodb.view.id_ranges import IdRanges

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=12)


@given(ranges=RANGES, first=st.integers(-5, 100), count=st.integers(0, 40))
def test_overlapping_ranges_are_those_that_a_comparison_with_all_finds(
    ranges: list[tuple[int, int]], first: int, count: int
) -> None:
    starts, counts = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
    expected = [number for number, (start, of) in enumerate(ranges) if start < first + count and start + of > first]
    assert IdRanges(starts, starts + counts).overlapping(first, count) == expected
