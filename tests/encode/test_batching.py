"""Batches depend on lengths and budget only."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.encode.batching import plan_batches, row_windows

LENGTHS = st.lists(st.integers(0, 12), max_size=60).map(lambda xs: np.array(xs, np.int32))


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_every_row_is_in_one_batch_of_its_exact_length_within_the_budget(lengths_N, batch_tokens):
    plan = plan_batches(lengths_N, batch_tokens=batch_tokens)
    assert sorted(plan.order_N.tolist()) == list(range(len(lengths_N)))
    assert [row for b in plan.batches for row in range(b.start, b.stop)] == list(range(len(lengths_N)))
    for batch in plan.batches:
        rows = plan.order_N[batch.start : batch.stop]
        assert (lengths_N[rows] == batch.length).all()
        assert len(rows) == 1 or len(rows) * batch.length <= max(batch_tokens, len(rows))


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_longest_rows_come_first_and_equal_ones_keep_their_order(lengths_N):
    order_N = plan_batches(lengths_N, batch_tokens=20).order_N.tolist()
    assert order_N == sorted(range(len(lengths_N)), key=lambda row: -lengths_N[row])


def test_windows_cover_all_rows():
    assert list(row_windows(10, window_rows=4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(row_windows(0)) == []
