"""Packed rows: position is rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.errors import MismatchError
from retrodb.format.rows import RowSet, deserialize_rows, serialize_rows

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
