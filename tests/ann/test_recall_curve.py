from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.exact import exact_topk
from retrodb.ann.join import join_block
from retrodb.ann.recall_curve import RecallEstimate, recall_at_k, recall_curve
from retrodb.ann.training import train
from retrodb.errors import ConfigError

from .conftest import Spread, mixture

VECTORS = mixture(4000, 32, 0)


def test_ties_with_the_last_true_neighbour_count() -> None:
    vectors = np.ones((50, 4), np.float16)
    true = exact_topk(vectors[:5], vectors, 10, "squared_l2")
    other = true[0] + 20, true[1]
    assert recall_at_k(*other, *true).mean == 1.0


def test_recall_is_measured_against_the_existing_neighbours() -> None:
    true = np.array([[3, -1], [-1, -1], [4, 5]]), np.array([[1, np.inf], [np.inf, np.inf], [1, 2]], np.float32)
    result = np.array([[3, -1], [-1, -1], [4, 6]]), np.array([[1, np.inf], [np.inf, np.inf], [1, 3]], np.float32)
    estimate = recall_at_k(*result, *true)
    assert estimate.mean == 0.75
    assert estimate.low < 0.75 < estimate.high
    with pytest.raises(ConfigError, match="no query"):
        recall_at_k(*(array[1:2] for array in result), *(array[1:2] for array in true))


def test_the_curve_without_timing_predicts_the_recall_of_the_join(spread: Spread) -> None:
    codebook = train(VECTORS, "IVF64,Flat", 0, "inner_product")
    parts = spread(VECTORS, codebook)
    queries = VECTORS[::5]
    true = exact_topk(queries, VECTORS, 10, "inner_product")
    lists = parts[0].part.lists_N
    sizes = np.diff(parts[0].part.offsets_L1)
    curve = recall_curve(codebook.nearest_lists(queries, 64), lists[true[0]], sizes)
    assert curve[-1].recall.mean == 1.0
    assert curve[-1].scanned == pytest.approx(4000)
    point = next(point for point in curve if point.recall.mean >= 0.9)
    result = join_block(queries, None, parts, codebook, 10, point.nprobe)
    assert recall_at_k(*result, *true).mean == pytest.approx(point.recall.mean, abs=0.01)
    assert point.nprobe == 1 or curve[point.nprobe - 2].recall.mean < 0.9


def test_intervals_have_a_width_where_all_agree_and_widen_with_correlated_queries() -> None:
    certain = RecallEstimate.of(np.ones(100))
    assert certain.mean == 1
    assert 0.95 < certain.low < 1
    values = np.tile([1.0, 0.0], 200)
    groups = np.empty(400, np.int64)
    groups[np.argsort(values, kind="stable")] = np.repeat(np.arange(4), 100)  # equal values share a group
    alone, together = RecallEstimate.of(values), RecallEstimate.of(values, groups)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert alone.low == pytest.approx(0.5 - 1.96 * (0.25 / 400) ** 0.5, abs=0.002)


def test_a_curve_counts_ties_with_the_last_true_neighbour() -> None:
    lists = np.array([[0, 1, 2]], np.int32)
    true_lists = np.array([[0, 1, 1, 2]], np.int32)  # two are wanted, three tie at the second position
    curve = recall_curve(lists, true_lists, np.array([5, 5, 5]), k=2)
    assert [point.recall.mean for point in curve] == [0.5, 1, 1]
    assert [point.scanned for point in curve] == [5, 10, 15]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(1, 8), st.data())
def test_a_higher_recall_never_has_a_lower_interval(values: list[int], num_groups: int, drawn: st.DataObject) -> None:
    """From any recall up to 1: one method at every point, so that the ends of the interval rise with the recall."""
    groups = np.array(drawn.draw(st.lists(st.integers(0, num_groups), min_size=len(values), max_size=len(values))))
    recalls = np.array(values) / 8
    before = RecallEstimate.of(recalls, groups)
    assert 0 <= before.low <= before.mean <= before.high <= 1
    while (recalls < 1).any():
        recalls[np.argmin(recalls)] = min(1.0, recalls.min() + 0.25)
        after = RecallEstimate.of(recalls, groups)
        assert before.low <= after.low + 1e-12
        assert before.high <= after.high + 1e-12
        before = after
    assert before.high == 1


def test_the_interval_holds_the_recall_of_all_documents_in_19_of_20_samples() -> None:
    """Also near 1, where most samples of a few documents have no miss at all, and whatever the recalls of the documents are."""
    random = np.random.default_rng(0)
    for concentration in (0.05, 1.0, 20.0):
        for truth in (0.5, 0.9, 0.97):
            num_held = 0
            for _ in range(400):
                of_document = random.beta(truth * concentration, (1 - truth) * concentration, 30)
                sizes = random.integers(1, 5, 30)
                values = random.binomial(10, np.repeat(of_document, sizes)) / 10
                estimate = RecallEstimate.of(values, np.repeat(np.arange(30), sizes))
                num_held += estimate.low <= truth <= estimate.high
            assert num_held >= 0.93 * 400
