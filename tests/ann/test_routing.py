"""Rows read their nearest lists in few ranges of lists, chosen by the share of true neighbours that was learned on a sample."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann import routing as routing_module
from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.route_learning import GAIN_SCALE, MOST_PRODUCTS, learned_gains, learned_routing
from retrodb.ann.routing import Probes, gains_of, route_bounds, route_ranges, routed_lists
from retrodb.ann.training import train
from retrodb.format.entries import Routing, RoutingCost
from retrodb.stages.index.operating_point import point_reaching, routed_point

from .conftest import mixture

VECTORS = mixture(6000, 32, 0)
NO_COST = RoutingCost(0.0, 0.0, 0.0, 0.0)


def lists_by_definition(nearest: list[int], nprobe: int, routing: Routing, num_lists: int) -> list[int]:
    """The rule for one row, word for word."""
    bounds = [number * num_lists // routing.num_ranges for number in range(routing.num_ranges + 1)]
    gains = [gain for count, gain in routing.gains for _ in range(count)]

    def range_of(list_: int) -> int:
        return next(number for number in range(routing.num_ranges) if bounds[number] <= list_ < bounds[number + 1])

    scores = dict.fromkeys(range(routing.num_ranges), 0)
    for list_, gain in zip(nearest, gains, strict=False):
        if list_ >= 0:
            scores[range_of(list_)] += gain
    taken, mass = set(), 0
    for number in sorted(scores, key=lambda number: (-scores[number], number)):
        if mass < routing.mass:
            taken.add(number)
            mass += scores[number]
    read = [list_ for list_ in nearest if list_ >= 0 and range_of(list_) in taken][:nprobe]
    return read + [-1] * (nprobe - len(read))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(2, 40), st.integers(0, 1 << 32))
def test_the_lists_of_a_row_obey_the_rule(data: st.DataObject, num_lists: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    width, num_rows = data.draw(st.integers(1, num_lists)), data.draw(st.integers(1, 20))
    nearest = np.array([random.permutation(num_lists)[:width] for _ in range(num_rows)], dtype=np.int32)
    nearest[np.arange(width) >= random.integers(1, width + 1, num_rows)[:, None]] = -1  # a graph may find fewer lists
    gains = np.sort(random.integers(0, data.draw(st.sampled_from([2, 1000])), width), kind="stable")[::-1].tolist()
    mass = data.draw(st.integers(1, max(1, sum(gains))))
    routing = Routing(data.draw(st.integers(2, num_lists)), tuple((1, gain) for gain in gains), mass, NO_COST)
    nprobe = data.draw(st.integers(1, width))
    expected = [lists_by_definition(row, nprobe, routing, num_lists) for row in nearest.tolist()]
    assert routed_lists(nearest, nprobe, routing, num_lists).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_ranges_have_equally_many_lists(num_lists: int, data: st.DataObject) -> None:
    num_ranges = data.draw(st.integers(1, num_lists))
    bounds, lists = route_bounds(num_lists, num_ranges), np.arange(num_lists, dtype=np.int32)
    np.testing.assert_array_equal(
        route_ranges(lists, num_lists, num_ranges), np.searchsorted(bounds, lists, side="right") - 1
    )
    assert set(np.diff(bounds).tolist()) <= {num_lists // num_ranges, -(-num_lists // num_ranges)}
    assert route_ranges(np.array([-1], dtype=np.int32), num_lists, num_ranges).tolist() == [-1]


def test_lists_are_numbered_beyond_32_bits_of_their_product_with_the_ranges() -> None:
    num_lists, num_ranges = 1 << 22, 1 << 14
    lists = np.array([0, num_lists - 1, num_lists // 2], dtype=np.int32)
    assert route_ranges(lists, num_lists, num_ranges).tolist() == [0, num_ranges - 1, num_ranges // 2]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 9))
def test_gains_fall_and_are_the_least_squares_fit(hits: list[int], others: int) -> None:
    """Where counts fall they are the gains; what rises is pooled, so that sums up to the end of a pool stay what they were."""
    num_true = max(1, sum(hits) + others)
    steps = learned_gains(np.array([hits], dtype=np.int64), num_true)
    gains = gains_of(Routing(1, steps, 0, NO_COST))
    assert len(gains) == len(hits)
    assert (np.diff([gain for _, gain in steps]) <= 0).all()
    end = 0
    for count, gain in steps:
        first, end = end, end + count
        assert gain == int(Fraction(GAIN_SCALE * sum(hits[first:end]), count * num_true))
        for inner in range(first + 1, end):  # no cut of a pool would have falling means
            left, right = hits[first:inner], hits[inner:end]
            assert sum(left) * len(right) <= sum(right) * len(left)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return train(VECTORS, "IVF128,Flat", 0, "inner_product")


@pytest.fixture(scope="module")
def homes(codebook: Codebook) -> np.ndarray:
    return codebook.nearest_lists(VECTORS, 1)[:, 0]


def neighbours_of(rows: np.ndarray, k: int = 5) -> np.ndarray:
    """(S, k) the true neighbours of rows, themselves excluded."""
    ids = exact_topk(VECTORS[rows], [Block(np.arange(len(VECTORS)), VECTORS)], k + 1, "inner_product")[0]
    return np.array([[other for other in of_row if other != row][:k] for row, of_row in zip(rows, ids, strict=True)])


def found(lists: np.ndarray, true_lists: np.ndarray) -> float:
    return float((lists[:, :, None] == true_lists[:, None, :]).any(axis=1).mean())


@pytest.mark.parametrize("num_ranges", [2, 16, 128])
@pytest.mark.parametrize("target", [0.8, 0.95])
def test_a_routing_reaches_the_recall_on_other_rows_with_fewer_ranges(
    codebook: Codebook, homes: np.ndarray, num_ranges: int, target: float
) -> None:
    rows = np.random.default_rng(1).permutation(len(VECTORS))[:1512]
    sample, others = rows[:512], rows[512:]
    nearest = codebook.nearest_lists(VECTORS[sample], 128)
    true_lists, sizes = homes[neighbours_of(sample)], np.bincount(homes, minlength=128)
    plain = point_reaching(nearest, true_lists, 128, target)
    point = routed_point(nearest, true_lists, sizes, num_ranges, target)
    assert point.routing is not None
    cost = point.routing.cost
    assert point.recall >= target - 1e-4
    assert found(Probes(point.nprobe, point.routing).lists(codebook, VECTORS[sample]), true_lists) == pytest.approx(
        point.recall, abs=1e-4
    )
    assert cost.scanned <= MOST_PRODUCTS * cost.scanned_without
    assert 1 <= cost.ranges <= cost.ranges_without <= num_ranges
    if num_ranges == 16:
        assert cost.ranges < 0.8 * cost.ranges_without
    elsewhere = found(
        Probes(point.nprobe, point.routing).lists(codebook, VECTORS[others]), homes[neighbours_of(others)]
    )
    assert (
        elsewhere
        > min(target, found(Probes(plain.nprobe).lists(codebook, VECTORS[others]), homes[neighbours_of(others)])) - 0.02
    )


def test_blocks_and_threads_change_no_list(
    codebook: Codebook, homes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = np.arange(0, len(VECTORS), 20)
    nearest = codebook.nearest_lists(VECTORS[sample], 128)
    point = routed_point(nearest, homes[neighbours_of(sample)], np.bincount(homes, minlength=128), 16, 0.9)
    probes = Probes(point.nprobe, point.routing)
    expected = probes.lists(codebook, VECTORS)
    monkeypatch.setattr(routing_module, "_BLOCK_CELLS", 1000)
    np.testing.assert_array_equal(probes.lists(codebook, VECTORS, threads=2), expected)
    np.testing.assert_array_equal(probes.lists(codebook, VECTORS[17:18]), expected[17:18])
    assert (expected[:, 0] >= 0).all()


def test_without_a_true_neighbour_there_is_no_routing() -> None:
    nearest = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.int32)
    assert routed_point(nearest, np.full((2, 2), -1), np.ones(3, np.int64), 2, 0.9).routing is None


def test_a_recall_that_the_lists_do_not_reach_gives_the_best_that_they_do() -> None:
    nearest = np.array([[0, 1], [3, 2]], dtype=np.int32)
    true_lists = np.array([[0, 3], [2, 3]])
    learned = routed_point(nearest, true_lists, np.full(4, 10), 2, 1.0)
    assert (learned.nprobe, learned.recall) == (2, 0.75)


def test_of_two_routings_the_one_with_fewer_ranges_is_chosen_within_its_products() -> None:
    """Every row finds all in range 0, where its second list is; the last list of the row costs too much when it is large."""
    nearest = np.tile(np.array([[0, 4, 1, 5]], dtype=np.int32), (10, 1))
    true_lists = np.array([[0]] * 5 + [[1]] * 3 + [[4]] * 2)
    for size, ranges in ((1, 1.0), (100, 2.0)):
        sizes = np.array([1, size, 1, 1, 1, 1, 1, 1])
        learned = learned_routing(nearest, true_lists, sizes, 2, 2, 0.7)
        assert learned.routing.cost.ranges == ranges


@pytest.mark.parametrize(("width", "num_ranges"), [(2048, 2), (512, 64), (16, 4096)])
def test_a_block_keeps_its_memory(width: int, num_ranges: int) -> None:
    random, num_lists = np.random.default_rng(0), 4096
    num_rows = routing_module._BLOCK_CELLS // max(width, num_ranges)
    nearest = np.argsort(random.random((num_rows, num_lists)).astype(np.float32), axis=1, kind="stable")[
        :, :width
    ].astype(np.int32)
    routing = Routing(num_ranges, ((width, 1000),), 1000 * width // 2, NO_COST)
    tracemalloc.start()
    routed_lists(nearest, width, routing, num_lists)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + nearest.nbytes < routing_module.ROUTED_BYTES


@pytest.mark.parametrize(("before", "now"), [(0, 0), (10, 10), (10, 13), (10, 25), (3, 128)])
def test_the_same_region_has_as_many_more_lists_as_there_are(before: int, now: int) -> None:
    routing = Routing(16, ((1, 500), (2, 100), (4, 7)), 700, NO_COST)
    for original in (Probes(7), Probes(7, None, 30), Probes(7, routing)):
        probes = original.among(before, now)
        if now == before:
            assert probes == original
            continue
        assert probes.nprobe == -(-7 * now // before)
        assert probes.most_lists == (max(30, probes.nprobe) if original.most_lists else 0)
        if probes.routing is not None:
            gains = gains_of(probes.routing)
            assert len(gains) == probes.nprobe
            assert gains.sum() == 728
            assert gains[: now // before].sum() == pytest.approx(500 * (now // before) * before / now, abs=1)
            assert (np.diff(gains) <= 1).all(), "as falling as they were, up to rounding"
