"""Packed rows: position is rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.errors import MismatchError
from retrodb.format.rows import RowSet, bitmap_of, deserialize_rows, serialize_rows

MASKS = st.lists(st.booleans(), max_size=300)


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_rank_counts_the_present_rows_before(mask: list[bool]) -> None:
    rows = RowSet.from_mask(np.array(mask, dtype=bool))
    asked = np.arange(-2, len(mask) + 2)
    assert rows.rank(asked).tolist() == [
        sum(mask[:row]) if 0 <= row < len(mask) and mask[row] else -1 for row in asked.tolist()
    ]
    assert rows.mask.tolist() == mask
    assert rows.present.tolist() == [row for row, there in enumerate(mask) if there]
    assert len(rows) == sum(mask)
    assert (rows.bitmap is None) == all(mask)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 2**20)))
def test_equal_sets_give_equal_bytes_however_they_were_made(chosen: set[int]) -> None:
    ordered = np.array(sorted(chosen), dtype=np.int64)
    assert serialize_rows(ordered) == serialize_rows(ordered[::-1].copy())
    assert np.array_equal(deserialize_rows(serialize_rows(ordered)), ordered)


def test_run_of_a_whole_shard_takes_few_bytes() -> None:
    rows = np.arange(2**20, dtype=np.int64)
    assert len(serialize_rows(rows)) < 300


def test_serialisation_is_the_portable_one() -> None:
    """Bytes that every roaring library reads: cookie 12346 for arrays, one container, key 0, cardinality 3."""
    assert serialize_rows(np.array([1, 2, 70])).hex() == "3a300000010000000000020010000000010002004600"


@pytest.mark.parametrize("rows", [[0, 1 << 32], [(1 << 32) - 1], [(1 << 33) + 7], [-1, 5]])
def test_rows_that_32_bits_cannot_hold_are_refused(rows: list[int]) -> None:
    """They were once cut to 32 bits: row 2^32 became row 0."""
    with pytest.raises(MismatchError, match="not all within the 4,294,967,295 rows"):
        serialize_rows(np.array(rows, dtype=np.int64))


def test_the_last_row_of_a_bitmap_is_kept() -> None:
    rows = np.array([0, (1 << 32) - 2])
    assert np.array_equal(deserialize_rows(serialize_rows(rows)), rows)


LONG = 3 << 32  # rows of a range that needs a bitmap of 64 bits
LONG_ROWS = st.sets(
    st.one_of(st.integers(0, 300), st.integers((1 << 32) - 3, (1 << 32) + 3), st.integers(LONG - 9, LONG - 1))
)


@settings(max_examples=100, deadline=None)
@given(LONG_ROWS, st.integers(-5, 5), st.sampled_from([0, (1 << 32) - 2, LONG - 7]))
def test_a_range_of_more_rows_than_32_bits_can_number_answers_alike(chosen: set[int], shift: int, start: int) -> None:
    ordered = np.array(sorted(chosen), dtype=np.int64)
    rows = RowSet.from_present(ordered[::-1].copy(), LONG)
    assert rows == RowSet.from_present(ordered, LONG)
    assert rows.bitmap is not None
    assert np.array_equal(rows.present, ordered)
    assert (len(rows), rows.max_row) == (len(ordered), max(chosen, default=-1))
    asked = np.array([-1, 0, 5, 1 << 32, LONG - 1, LONG, *chosen], dtype=np.int64)
    ranks = [sorted(chosen).index(row) if row in chosen else -1 for row in asked.tolist()]
    assert rows.rank(asked).tolist() == ranks
    assert rows.rank(np.tile(asked, 1 + 2048 // len(asked))).tolist() == ranks * (1 + 2048 // len(asked))
    assert np.array_equal(rows.select(np.arange(len(ordered))), ordered)
    offset = shift - start
    window = [row + offset for row in sorted(chosen) if 0 <= row + offset < 400]
    assert list(rows.rows_in(offset, 400)) == window
    with pytest.raises(ValueError, match="no bitmap of 32 bits"):
        _ = rows.roaring


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(-20, 20), st.integers(0, 320))
def test_rows_in_moves_and_cuts(mask: list[bool], offset: int, count: int) -> None:
    rows = RowSet.from_mask(np.array(mask, dtype=bool))
    moved = [row + offset for row, there in enumerate(mask) if there and 0 <= row + offset < count]
    assert list(rows.rows_in(offset, count)) == moved
    assert rows.max_row == max((row for row, there in enumerate(mask) if there), default=-1)
    assert rows == RowSet.from_present(rows.present, len(mask))


@given(
    st.lists(st.integers(0, 3 * (1 << 16)), unique=True), st.integers(1, 1 << 17), st.sampled_from([1 << 18, 1 << 40])
)
def test_rows_in_ascending_blocks_are_what_all_rows_are(rows: list[int], length: int, total: int) -> None:
    ordered = np.array(sorted(rows), dtype=np.int64)
    expected = RowSet.from_present(ordered, total)
    blocks = list(expected.windows(length))
    assert all(len(block) and block[-1] - block[0] < length for block in blocks)
    assert np.concatenate([np.empty(0, np.int64), *blocks]).tolist() == ordered.tolist()
    assert RowSet.from_ascending(blocks, total) == expected
    assert RowSet.all(5).first_from(3) == 3
    assert RowSet.all(5).first_from(5) is None


def test_many_rows_in_blocks_have_the_bytes_of_all_rows() -> None:
    rows = np.flatnonzero(np.random.default_rng(0).random(1 << 18) < np.repeat([0.01, 0.5, 1, 0.9], 1 << 16))
    assert RowSet.from_ascending(np.array_split(rows, 5), 1 << 18) == RowSet.from_present(rows, 1 << 18)
    assert RowSet.from_ascending([np.arange(9)], 9) == RowSet.all(9)


@given(st.sets(st.integers(0, (1 << 32) - 1), max_size=50))
def test_a_bitmap_has_the_rows_that_it_is_made_of(chosen: set[int]) -> None:
    rows = np.array(sorted(chosen), dtype=np.int64)
    assert list(bitmap_of(rows)) == rows.tolist()
    assert bitmap_of(rows[::-1]) == bitmap_of(rows)
