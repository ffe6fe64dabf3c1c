"""A sample by file: as large as asked for, spread as evenly as rows are, and the same whatever task draws it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.stages.seeded_sample import drawn_positions, sample_sizes

COUNTS = st.lists(st.integers(0, 50), max_size=20)


@given(COUNTS, st.integers(0, 200), st.integers(0, 5))
def test_sizes_add_up_and_are_proportional(counts: list[int], size: int, seed: int) -> None:
    sizes, total = sample_sizes(counts, size, seed), sum(counts)
    assert sum(sizes) == min(size, total)
    for count, of_file in zip(counts, sizes, strict=True):
        assert 0 <= of_file <= count
        assert abs(of_file - count * min(size, total) / max(total, 1)) < 1


def test_every_row_has_the_same_chance() -> None:
    counts, size, num_seeds = [1, 7, 0, 2], 3, 4000
    times = np.zeros(sum(counts))
    for seed in range(num_seeds):
        first = 0
        for count, of_file in zip(counts, sample_sizes(counts, size, seed), strict=True):
            times[first + drawn_positions(count, of_file, seed, first)] += 1
            first += count
    expected = num_seeds * size / sum(counts)
    assert np.abs(times - expected).max() < 5 * np.sqrt(expected)


@given(st.integers(0, 100), st.data())
def test_positions_are_distinct_and_ascending(num_rows: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, num_rows))
    positions = drawn_positions(num_rows, size, 1, 10**11)
    assert positions.dtype == np.int64
    assert positions.tolist() == sorted(set(positions.tolist()))
    assert len(positions) == size
    assert not size or (positions[0] >= 0 and positions[-1] < num_rows)


def test_equally_long_files_give_different_positions() -> None:
    drawn = {tuple(drawn_positions(1000, 5, 0, first).tolist()) for first in range(50)}
    assert len(drawn) == 50


@pytest.mark.parametrize("size", [10**6, 10**7])
def test_sizes_of_a_trillion_tokens_take_no_memory_for_each_row(size: int) -> None:
    counts = [1_040_000] * 15_000
    sizes = sample_sizes(counts, size, 0)
    assert sum(sizes) == size
    assert max(sizes) - min(sizes) <= 1
