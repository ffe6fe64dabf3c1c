"""How many lists a search reads where nothing is stored: few of many, all of few, and as measured where it was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrodb.stages.index.operating_point import OperatingPoint, default_nprobe, point_reaching


@pytest.mark.parametrize(("num_lists", "probes"), [(512, 39), (2_048, 93), (4_096, 138), (16_384, 230)])
def test_the_default_is_what_recall_095_took_where_it_was_measured(num_lists: int, probes: int) -> None:
    assert default_nprobe(num_lists) == probes


def test_few_lists_are_all_read() -> None:
    assert [default_nprobe(num_lists) for num_lists in range(1, 9)] == list(range(1, 9))


@given(st.integers(1, 1 << 26), st.integers(1, 1 << 26))
def test_more_lists_never_read_fewer_and_never_a_larger_fraction(first: int, second: int) -> None:
    few, many = sorted((first, second))
    assert 1 <= default_nprobe(few) <= default_nprobe(many) <= many
    assert default_nprobe(many) / many <= (default_nprobe(few) + 1) / few, "one for rounding"


def test_the_default_for_very_many_lists_is_what_measurements_predict() -> None:
    assert 260 <= default_nprobe(1 << 20) <= 380
    assert 590 <= default_nprobe(1 << 22) <= 860
    assert default_nprobe(1 << 24) < 4 * default_nprobe(1 << 22)


def test_the_point_is_the_fewest_lists_that_reach_the_recall() -> None:
    lists = np.array([[3, 1, 0, 2], [0, 1, 2, 3]], dtype=np.int32)
    true_lists = np.array([[3, 0], [1, -1]])
    assert point_reaching(lists, true_lists, 4, 0.2) == OperatingPoint(1, 0.25)
    assert point_reaching(lists, true_lists, 4, 0.75) == OperatingPoint(2, 0.75)
    assert point_reaching(lists, true_lists, 4, 1.0) == OperatingPoint(3, 1.0)
    assert point_reaching(lists[:, :2], true_lists, 4, 1.0) == OperatingPoint(2, 0.75), "the most that were ranked"
    assert point_reaching(lists, np.full((2, 2), -1), 4, 1.0) == OperatingPoint(4, 1.0), "there is nothing to find"
