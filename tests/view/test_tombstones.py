"""The youngest word per row and reason holds; a chunk is live when no reason deletes it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.view.tombstones import TombstoneSet, tombstone, tombstones_to_table

FAR = 2**33
WORDS = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(1, 20),
        st.sampled_from(["leak:t", "removed", "toxic"]),
        st.booleans(),
        st.sets(st.integers(0, 19)),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.integers(0, 20), st.integers(1, 30))
def test_any_history_gives_what_a_plain_loop_gives(
    words: list[tuple[int, int, str, bool, set[int]]], first: int, count: int
) -> None:
    state: dict[tuple[str, int], bool] = {}
    tables = []
    for start, length, reason, active, chosen in words:
        rows = sorted(row for row in chosen if row < length)
        state.update({(reason, FAR + start + row): active for row in rows})
        stone = tombstone(FAR + start, length, reason, np.array(rows, dtype=np.int64), active=active)
        tables.append(tombstones_to_table([stone]))
    stones = TombstoneSet(tables)
    deleted = {own for (_, own), active in state.items() if active}
    assert stones.deleted_mask(FAR + first, count).tolist() == [FAR + i in deleted for i in range(first, first + count)]
    for reason, mask in stones.deleted_by_reason(FAR + first, count).items():
        assert mask.tolist() == [state.get((reason, FAR + i), False) for i in range(first, first + count)]
    counted = {reason: sum(active for (r, _), active in state.items() if r == reason) for reason, _ in state}
    assert stones.count_by_reason() == {reason: n for reason, n in sorted(counted.items()) if n}
    assert stones.count_deleted() == len(deleted)


def test_taking_one_reason_away_leaves_the_others() -> None:
    rows = np.array([1, 2])
    said = [("toxic", True), ("leak:t", True), ("toxic", False)]
    stones = TombstoneSet(tombstones_to_table([tombstone(0, 4, r, rows, active=a)]) for r, a in said)
    assert stones.count_by_reason() == {"leak:t": 2}
    assert stones.deleted_mask(0, 4).tolist() == [False, True, True, False]


def test_equal_tombstones_give_equal_bytes_in_any_order() -> None:
    stones = [tombstone(first, 4, reason, np.array([1])) for first in (0, 4) for reason in ("a", "b")]
    assert tombstones_to_table(stones).equals(tombstones_to_table(stones[::-1]))
