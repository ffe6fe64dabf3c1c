"""Rows that may be near a new vector by their codes: no row is missed that is near by its vector, and few others are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codegen.distances import distance_portable
from retrodb.ann.codegen.grouping import group_by_list
from retrodb.ann.codegen.near_codes import ListSpans, columns_of, mark_near, mark_near_portable, narrow
from retrodb.ann.part import quantize

LISTS, DIM = 5, 24


@pytest.mark.parametrize("is_l2", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_new=st.integers(1, 12), spread=st.sampled_from([0.0, 1e-3, 1.0, 50.0]))
def test_no_row_is_missed_that_is_as_near_as_its_bound(is_l2: bool, seed: int, num_new: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=DIM).astype(np.float32)
    vectors, new = (
        (centre + spread * rng.normal(size=(n, DIM))).astype(np.float16).astype(np.float32) for n in (60, num_new)
    )
    new[0] = vectors[7]  # at distance 0
    codes, scales = quantize(vectors, centre)
    lists = np.sort(rng.integers(0, LISTS, 60)).astype(np.int32)
    near_lists = np.argsort(rng.random((num_new, LISTS)), axis=1, kind="stable")[:, :2].astype(np.int32)
    groups = group_by_list(near_lists, 0, num_new, LISTS)
    filled, starts = np.unique(lists, return_index=True)
    spans = ListSpans(filled.astype(np.int32), starts.astype(np.int64), np.append(starts[1:], 60).astype(np.int64))
    distances = np.array([[distance_portable(v, c, is_l2) for c in new] for v in vectors])
    bounds = np.where(rng.random(60) < 0.5, distances[np.arange(60), rng.integers(0, num_new, 60)], -np.inf)
    bounds = bounds.astype(np.float32)
    near = np.zeros(60, dtype=bool)
    columns = columns_of(new, centre, is_l2)
    mark_near(spans, groups, columns, codes, scales, bounds, is_l2, near)
    compared = np.array([[list_ in near_lists[c] for c in range(num_new)] for list_ in lists.tolist()])
    is_nearer = ((distances <= bounds[:, None]) & compared).any(axis=1)
    assert near[is_nearer].all()
    by_definition = np.zeros(60, dtype=bool)
    mark_near_portable(spans, groups, columns, codes, scales, bounds, is_l2, by_definition)
    assert by_definition[is_nearer].all()
    far = np.nextafter(bounds, -np.inf) if spread == 0 else bounds - np.float32(0.05) * (1 + np.abs(distances).max())
    mark_near(spans, groups, columns, codes, scales, far.astype(np.float32), is_l2, near)
    wrong = near & ~((distances <= bounds[:, None]) & compared).any(axis=1)
    assert not wrong.any(), "what is far by more than the error of a code is not found"


def test_lists_are_narrowed_to_rows_of_a_range() -> None:
    order = np.array([0, 4, 9, 1, 5, 6, 2, 3])
    spans = ListSpans(np.arange(3, dtype=np.int32), np.array([0, 3, 6]), np.array([3, 6, 8]))
    narrow(spans, order, 2, 6)
    rows = [order[start:end].tolist() for start, end in zip(spans.starts_P, spans.ends_P, strict=True)]
    assert rows == [[4], [5], [2, 3]]
