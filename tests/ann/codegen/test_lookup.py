from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codegen.lookup import find_sorted, find_sorted_portable, number_distinct, number_distinct_portable


def test_ids_are_found_with_and_without_gaps() -> None:
    wanted = np.array([[-1, 0, 5, 7], [9, 10, 2**40, 6]])
    for ids in (np.arange(5, 10), np.array([5, 7, 2**40]), np.array([6]), np.empty(0, np.int64)):
        positions = find_sorted(ids, wanted)
        assert positions.tolist() == find_sorted_portable(ids, wanted).tolist()
        assert (positions >= 0).tolist() == np.isin(wanted, ids).tolist()
        assert (ids[positions[positions >= 0]] == wanted[positions >= 0]).all()


@settings(deadline=None)
@given(values=st.lists(st.integers(-1, 5) | st.integers(-1, 2**63 - 1), max_size=40))
def test_distinct_values_are_numbered_in_order_of_appearance(values: list[int]) -> None:
    numbers, expected = (np.array([values], dtype=np.int64) for _ in range(2))
    distinct = number_distinct(numbers).tolist()
    assert distinct == number_distinct_portable(expected).tolist()
    assert numbers.tolist() == expected.tolist()
    assert distinct == list(dict.fromkeys(value for value in values if value >= 0))
    assert [distinct[n] if n >= 0 else -1 for n in numbers[0]] == values
