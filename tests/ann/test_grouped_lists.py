"""Lists in groups: which groups a vector is compared with, how lists are divided and numbered, and what the assignment costs."""

from __future__ import annotations

import numpy as np
import pytest

from retrodb.ann.assignment_recall import with_enough_groups
from retrodb.ann.codebook import load_codebook, num_groups_in
from retrodb.ann.exact import exact_topk
from retrodb.ann.grouped_lists import GroupedLists
from retrodb.ann.grouped_training import GroupedCentroids, divide_lists, evenly_spread, finish_groups, train_grouped
from retrodb.ann.training import train
from retrodb.errors import ConfigError
from retrodb.format.arrays import Float32Array
from retrodb.format.entries import Metric

from .conftest import mixture

VECTORS = mixture(6000, 32, 0, identical=50).astype(np.float32)
METRICS: list[Metric] = ["inner_product", "squared_l2"]


@pytest.fixture(scope="module")
def trained() -> GroupedCentroids:
    return train_grouped(VECTORS, 90, 9, 0, "squared_l2")


def grouped(trained: GroupedCentroids) -> GroupedLists:
    return GroupedLists.of(trained.groups_GD, trained.centroids_LD, trained.lists_G)


def plain_nearest(
    vectors: Float32Array, trained: GroupedCentroids, count: int, probed: int, metric: Metric
) -> list[list[int]]:
    """The definition: the nearest lists of the nearest groups, one vector at a time."""
    group_of = np.repeat(np.arange(len(trained.lists_G)), trained.lists_G)
    answers = []
    for vector in vectors[:, None]:
        groups = exact_topk(vector, trained.groups_GD, probed, metric)[0][0]
        lists = np.flatnonzero(np.isin(group_of, groups))
        nearest = exact_topk(vector, trained.centroids_LD[lists], min(count, len(lists)), metric)[0][0]
        answers.append([*lists[nearest].tolist(), *[-1] * (count - len(lists))])
    return answers


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "probed"), [(1, 1), (1, 3), (5, 4), (90, 9), (95, 9)])
def test_the_lists_are_the_nearest_of_the_nearest_groups(
    count: int, probed: int, metric: Metric, trained: GroupedCentroids
) -> None:
    vectors = VECTORS[::60]
    expected = plain_nearest(vectors, trained, count, probed, metric)
    for threads in (1, 2):
        assert grouped(trained).nearest_in(vectors, count, probed, metric, threads).tolist() == expected
    one_by_one = [grouped(trained).nearest_in(vectors[row : row + 1], count, probed, metric)[0] for row in range(20)]
    assert np.array(one_by_one).tolist() == expected[:20]
    assert grouped(trained).nearest_in(vectors[:0], count, probed, metric).shape == (0, count)


def test_more_groups_are_probed_where_fewer_have_too_few_lists(trained: GroupedCentroids) -> None:
    assert (grouped(trained).nearest_in(VECTORS[:100], 60, 1, "squared_l2") >= 0).all()
    empty = GroupedCentroids(trained.groups_GD[:3], np.array([0, 90, 0]), trained.centroids_LD)
    assert (grouped(empty).nearest_in(VECTORS[:100], 1, 1, "squared_l2") >= 0).all()


def test_all_groups_give_the_exact_answer(trained: GroupedCentroids) -> None:
    exact = exact_topk(VECTORS, trained.centroids_LD, 7, "squared_l2")[0]
    assert (grouped(trained).nearest_in(VECTORS, 7, 9, "squared_l2") == exact).all()


@pytest.mark.parametrize(("size", "total"), [(0, 0), (3, 3), (5, 3), (3, 10), (7, 1000), (1, 9)])
def test_evenly_spread_positions_are_different_and_cover_everything(size: int, total: int) -> None:
    positions = evenly_spread(size, total)
    assert len(positions) == len(np.unique(positions)) == min(size, total)
    assert all(0 <= position < total for position in positions)
    if size:
        gaps = np.diff([-1, *positions.tolist(), total])
        assert gaps.max() <= 2 * total / size


@pytest.mark.parametrize(
    "sizes", [[100] * 8, [1, 799], [0, 5, 400, 395], [10_000, *[10] * 30], [1] * 100 + [100_000], [64 * 50]]
)
def test_every_group_with_vectors_gets_lists_and_enough_vectors_for_them(sizes: list[int]) -> None:
    num_lists = max(len(sizes), sum(sizes) // 64)
    divided = divide_lists(np.array(sizes), num_lists)
    assert divided.lists_G.sum() == num_lists
    assert ((divided.lists_G > 0) == (np.array(sizes) > 0)).all()
    assert (divided.points_G >= divided.lists_G).all()
    assert (divided.points_G <= sizes).all()


def test_a_very_large_group_is_limited() -> None:
    divided = divide_lists(np.array([45_000, *[1_000] * 55]), 1_000)
    assert divided.lists_G[0] <= 1.2 * 4 * 1_000 / 56 * 2
    assert divided.points_G[0] < 45_000


def test_lists_and_groups_are_numbered_in_leaf_order(trained: GroupedCentroids) -> None:
    random = np.random.default_rng(0).permutation(90)
    numbered, shuffled = trained.centroids_LD, trained.centroids_LD[random]
    step, arbitrary = (np.linalg.norm(np.diff(lists, axis=0), axis=1).mean() for lists in (numbered, shuffled))
    assert step < 0.9 * arbitrary
    again = finish_groups(trained, "squared_l2")
    for start, stop in zip(np.cumsum(trained.lists_G) - trained.lists_G, np.cumsum(trained.lists_G), strict=True):
        mean = trained.centroids_LD[start:stop].astype(np.float64).mean(axis=0)
        assert np.allclose(
            again.groups_GD[np.searchsorted(np.cumsum(trained.lists_G), start, "right")], mean, atol=1e-6
        )


def test_ranges_of_lists_that_are_trained_at_once_are_compact() -> None:
    centroids = train(VECTORS, "IVF64,Flat", 0, "squared_l2").centroids_LD
    shuffled = centroids[np.random.default_rng(0).permutation(64)]

    def spread_of_ranges(lists: Float32Array) -> float:
        return float(np.mean([((part - part.mean(axis=0)) ** 2).sum(axis=1).mean() for part in np.split(lists, 8)]))

    assert spread_of_ranges(centroids) < 0.9 * spread_of_ranges(shuffled)


@pytest.fixture
def few_exact_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.ann.codebook.FLAT_LISTS", 32)
    monkeypatch.setattr("retrodb.ann.codebook.MOST_PROBED", 1)
    monkeypatch.setattr("retrodb.ann.assignment_recall.PROBES", (4, 8))
    monkeypatch.setattr("retrodb.ann.training.PROBED_GROUPS", 1)


@pytest.mark.parametrize("factory", ["IVF90(IVF9,Flat),SQ8", "IVF90_HNSW8,SQ8"])
@pytest.mark.usefixtures("few_exact_lists")
def test_a_codebook_of_many_lists_searches_groups_or_a_graph_and_knows_what_it_costs(
    factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.ann.assignment_recall.LEAST_RECALL", 0)
    codebook = train(VECTORS, factory, 0, "squared_l2")
    loaded = load_codebook(codebook.serialize())
    assert not codebook.is_exact
    lists = loaded.nearest_lists(VECTORS, 2)
    assert (lists == codebook.nearest_lists(VECTORS, 2, threads=2)).all()
    same = (lists[:, 0] == codebook.exact_lists_of(VECTORS, 1)[:, 0]).mean()
    _, recall = with_enough_groups(codebook, VECTORS)
    assert recall is not None
    assert 0.3 < recall <= 1
    assert 0.3 < same <= 1
    if codebook.groups is not None:
        assert codebook.groups.probed == 1
        assert same < 1
        assert recall < 0.99


@pytest.mark.usefixtures("few_exact_lists")
def test_so_many_groups_are_probed_that_the_assignment_costs_little() -> None:
    codebook = train(VECTORS, "IVF90(IVF9,Flat),SQ8", 0, "squared_l2")
    assert codebook.groups is not None
    assert codebook.groups.probed > 1
    again, recall = with_enough_groups(load_codebook(codebook.serialize()), VECTORS)
    assert again.digest == codebook.digest
    assert recall is not None
    assert recall >= 0.997


@pytest.mark.usefixtures("few_exact_lists")
def test_lists_of_many_groups_are_found_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.ann.codebook.MOST_PROBED", 3)
    monkeypatch.setattr("retrodb.ann.assignment_recall.LEAST_RECALL", 0)
    codebook = train(VECTORS, "IVF90(IVF9,Flat),SQ8", 0, "squared_l2")
    lists = (codebook.nearest_lists(VECTORS, 1), codebook.nearest_lists(VECTORS, 85))
    assert (lists[0] != codebook.exact_lists_of(VECTORS, 1)).any()
    assert (lists[1] == codebook.exact_lists_of(VECTORS, 85)).all()


def test_an_exact_assignment_has_no_cost() -> None:
    codebook = train(VECTORS, "IVF90(IVF9,Flat),SQ8", 0, "squared_l2")
    assert codebook.is_exact
    assert with_enough_groups(codebook, VECTORS)[1] is None
    assert (codebook.nearest_lists(VECTORS, 3) == codebook.exact_lists_of(VECTORS, 3)).all()


def test_faiss_alone_finds_lists_through_the_groups() -> None:
    import faiss

    codebook = train(VECTORS, "IVF90(IVF9,Flat),Flat", 0, "squared_l2")
    index = faiss.deserialize_index(np.frombuffer(codebook.serialize(), dtype=np.uint8))
    index.add(VECTORS)
    index.nprobe = 20
    _, rows = index.search(VECTORS[100:200], 1)
    assert (rows[:, 0] == np.arange(100, 200)).mean() > 0.95


def test_too_many_groups_are_refused() -> None:
    assert num_groups_in("OPQ8,IVF65536(IVF5000,Flat),SQ8") == 5000
    with pytest.raises(ConfigError, match="4096 groups"):
        train(np.empty((10_000_000, 8), np.float16), "IVF65536(IVF5000,Flat),SQ8", 0, "squared_l2")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 4, 12])
def test_some_of_the_lists_are_found_as_if_there_were_no_others(
    count: int, metric: Metric, trained: GroupedCentroids
) -> None:
    group_of = np.repeat(np.arange(len(trained.lists_G)), trained.lists_G)
    lists = np.flatnonzero((np.arange(90) % 7 == 0) & (group_of != 2))
    some = grouped(trained).within(lists)
    filled, sizes = np.unique(group_of[lists], return_counts=True)
    without = GroupedLists.of(trained.groups_GD[filled], trained.centroids_LD[lists], sizes)
    assert len(some) == len(filled) < 9
    for vectors in (VECTORS[:200], VECTORS[:3]):
        expected = without.nearest_in(vectors, count, 3, metric)
        found = some.nearest_in(vectors, count, 3, metric)
        assert (found == np.where(expected >= 0, lists[expected], -1)).all()


@pytest.mark.parametrize("factory", ["IVF90,SQ8", "IVF90(IVF9,Flat),SQ8", "IVF90_HNSW8,SQ8"])
@pytest.mark.usefixtures("few_exact_lists")
def test_a_codebook_within_some_lists_finds_no_others(factory: str) -> None:
    codebook = train(VECTORS, factory, 0, "squared_l2")
    lists = np.arange(0, 90, 2)
    narrowed = codebook.within(lists)
    assert (narrowed.num_lists, narrowed.num_findable) == (90, 45)
    exact = lists[exact_topk(VECTORS[:500], codebook.centroids_LD[lists], 5, "squared_l2")[0]]
    found = narrowed.nearest_lists(VECTORS[:500], 5)
    assert np.isin(found, lists).all()
    assert (narrowed.exact_lists_of(VECTORS[:500], 5) == exact).all()
    assert (found == exact).mean() > (0.5 if codebook.groups else 0.999)
    assert (narrowed.nearest_lists(VECTORS[:9], 50)[:, 45:] == -1).all()
    for all_of_them in (lists[:0], np.arange(90)):
        assert codebook.within(all_of_them).findable is None
    assert (codebook.within(lists[3:4]).nearest_lists(VECTORS[:9], 1) == 6).all()
