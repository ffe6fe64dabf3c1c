"""The youngest word per row and reason holds; a chunk is live when no reason deletes it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.format.rows import is_in
from retrodb.view import bitmap_groups
from retrodb.view.tombstones import (
    GROUP_ROWS,
    Tombstone,
    TombstoneSet,
    tombstone,
    tombstones_to_table,
    write_tombstones,
)

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


def stored(files: list[list[Tombstone]]) -> TombstoneSet:
    folder = Path(tempfile.mkdtemp())
    for number, tombstones in enumerate(files):
        write_tombstones(folder / f"{number}.parquet", tombstones)
    return TombstoneSet([folder / f"{number}.parquet" for number in range(len(files))])


@settings(max_examples=200, deadline=None)
@given(WORDS, st.integers(0, 20), st.integers(1, 30))
def test_any_history_gives_what_a_plain_loop_gives(
    words: list[tuple[int, int, str, bool, set[int]]], first: int, count: int
) -> None:
    state: dict[tuple[str, int], bool] = {}
    words_said = []
    for start, length, reason, active, chosen in words:
        rows = sorted(row for row in chosen if row < length)
        state.update({(reason, FAR + start + row): active for row in rows})
        stone = tombstone(FAR + start, length, reason, np.array(rows, dtype=np.int64), active=active)
        words_said.append([stone])
    stones = stored(words_said)
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
    stones = stored([[tombstone(0, 4, r, rows, active=a)] for r, a in said])
    assert stones.count_by_reason() == {"leak:t": 2}
    assert stones.deleted_mask(0, 4).tolist() == [False, True, True, False]


def test_equal_tombstones_give_equal_bytes_in_any_order() -> None:
    stones = [tombstone(first, 4, reason, np.array([1])) for first in (0, 4) for reason in ("a", "b")]
    assert tombstones_to_table(stones).equals(tombstones_to_table(stones[::-1]))


def test_opening_reads_no_rows_and_a_range_reads_only_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    number = 5 * GROUP_ROWS
    stones = stored([[tombstone(100 * i, 100, "gone", np.array([i % 100])) for i in range(number)]])
    groups = []
    read_group = bitmap_groups._read_group
    monkeypatch.setattr(
        bitmap_groups, "_read_group", lambda files, file, group: groups.append(group) or read_group(files, file, group)
    )
    stones = TombstoneSet(stones._files)
    assert groups == []
    assert stones.ranges() == [(100 * i, 100 * i + 100) for i in range(number)]
    for i in (0, 17, number - 1):
        assert list(stones.deleted_rows(100 * i, 100)) == [i % 100]
    assert groups == [0, 1, 4]
    assert stones.count_deleted() == number


def test_few_and_many_rows_are_looked_up_alike() -> None:
    stones = stored([[tombstone(0, 9000, "gone", np.arange(0, 9000, 7))]])
    rows = np.arange(9000)
    expected = rows % 7 == 0
    assert (is_in(stones.deleted_rows(0, 9000), rows, 9000) == expected).all()
    assert (is_in(stones.deleted_rows(0, 9000), rows[:50], 9000) == expected[:50]).all()
