from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion, Intervals, Ragged
from retrodb.ann.join import join_block
from retrodb.ann.metric import CAPPED
from retrodb.ann.search import search
from retrodb.ann.training import train
from retrodb.errors import InputError, MismatchError

from .conftest import Spread, mixture

METRICS = ("inner_product", "squared_l2")
FACTORIES = ("Flat", "IVF32,SQ8", "IVF32,PQ8x4", "IVF32,PQ8x4fs", "IVF32_HNSW8,SQ8")
VECTORS = mixture(10_000, 32, 0, identical=300)
DOCUMENTS = np.arange(len(VECTORS)) // 8


CODEBOOKS = [(factory, metric) for factory in FACTORIES for metric in METRICS]
CODEBOOKS.append(("IVF32,RaBitQfs", "squared_l2"))
ROTATED = [pytest.param(("OPQ8_32,IVF32,PQ8", metric), marks=pytest.mark.soak) for metric in METRICS]


@pytest.fixture(scope="module", params=[*CODEBOOKS, *ROTATED], ids=str)
def codebook(request: pytest.FixtureRequest) -> Codebook:
    factory, metric = request.param
    return train(VECTORS, factory, 3, metric)


@pytest.fixture(scope="module")
def small() -> Codebook:
    return train(VECTORS[:2000], "IVF32,SQ8", 3, "inner_product")


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids.tolist(), truth.tolist(), strict=True)]))


def same(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> bool:
    return all((a == b).all() for a, b in zip(first, second, strict=True))


def test_search_is_near_the_truth_and_does_not_depend_on_the_split_into_parts(
    codebook: Codebook, spread: Spread
) -> None:
    queries = VECTORS[::40]
    one, many = spread(VECTORS, codebook), spread(VECTORS, codebook, (500, 501, 7000))
    from_one = search(queries, one, codebook, 10, 16, rerank_margin=100)
    from_many = search(queries, many, codebook, 10, 16, rerank_margin=100, threads=2)
    by_id = search(queries, many, codebook, 10, 16, rerank_margin=100, threads=2, fetch=VECTORS.__getitem__)
    assert same(from_many, by_id)
    truth = exact_topk(queries, VECTORS, 10, codebook.metric)[0]
    # Four bits for four or eight dimensions are coarse; the other codes lose nothing.
    least = 0.4 if "PQ" in type(codebook.ivf).__name__ else 0.85
    assert recall(from_one[0], truth) > least
    if (
        "fastscan" in type(codebook.ivf).__name__.lower()
    ):  # its coarse distances tie, and FAISS breaks ties by its own order
        assert recall(from_many[0], truth) > least
    else:
        assert same(from_one, from_many)


@pytest.mark.parametrize("dead", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_deleted_rows_are_never_returned_and_short_rows_probe_all_lists(
    dead: float, codebook: Codebook, spread: Spread
) -> None:
    allowed = np.random.default_rng(1).random(len(VECTORS)) >= dead
    parts = spread(VECTORS, codebook, (4000,), allowed)
    queries = VECTORS[::100]
    for ids, distances in (search(queries, parts, codebook, 10, 1), join_block(queries, None, parts, codebook, 10, 1)):
        assert allowed[ids[ids >= 0]].all()
        assert ((ids >= 0).sum(axis=1) == min(10, allowed.sum())).all()
        assert (np.isinf(distances) == (ids < 0)).all()


@pytest.mark.parametrize("most", [1, 3, 9])
def test_a_cap_ends_the_search_of_short_rows(most: int, small: Codebook, spread: Spread) -> None:
    allowed = np.random.default_rng(1).random(2000) < 0.05
    parts, queries = spread(VECTORS[:2000], small, (900,), allowed), VECTORS[:2000:50]
    homes = small.nearest_lists(VECTORS[:2000], 1)[:, 0]
    there = (small.nearest_lists(queries, most)[:, :, None] == homes[allowed]).any(axis=1)
    ids, distances = join_block(queries, None, parts, small, 40, 1, most_lists=most)
    for found, is_there in zip(ids, there, strict=True):
        assert set(found[found >= 0].tolist()) == set(np.flatnonzero(allowed)[is_there].tolist())
    assert (distances[ids < 0] == CAPPED).all()
    assert same((ids,), (search(queries, parts, small, 40, 1, most_lists=most)[0],))
    few = join_block(queries, None, parts, small, allowed.sum(), 1, most_lists=32)
    assert (few[0] >= 0).all()


def test_more_neighbours_than_live_rows_are_padded(small: Codebook, spread: Spread) -> None:
    parts = spread(VECTORS[:5], small)
    for ids, _ in (search(VECTORS[:3], parts, small, 9, 1), join_block(VECTORS[:3], None, parts, small, 9, 1)):
        assert ((ids >= 0).sum(axis=1) == 5).all()
        assert (ids[:, 5:] == -1).all()
    assert (search(VECTORS[:3], [], small, 2, 1)[0] == -1).all()
    assert (join_block(VECTORS[:3], None, [], small, 2, 1)[0] == -1).all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_vectors=st.integers(1, 900),
    cut=st.floats(0, 1),
    metric=st.sampled_from(METRICS),
    k=st.integers(1, 12),
    dead=st.sampled_from([0.0, 0.2, 0.98]),
)
def test_join_at_full_probe_with_rerank_of_everything_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    num_vectors: int,
    cut: float,
    metric: str,
    k: int,
    dead: float,
) -> None:
    spread = Spread(tmp_path_factory.mktemp("parts"))
    random = np.random.default_rng(seed)
    vectors = mixture(1000, 17, seed, identical=40)[:num_vectors]
    codebook = train(mixture(1000, 17, seed), "IVF16,SQ8", 3, metric)
    allowed = random.random(num_vectors) >= dead
    keys = {"document": np.arange(num_vectors) // 5, "content": random.integers(0, 99, num_vectors).astype(np.uint64)}
    queries = vectors[random.integers(0, num_vectors, 20)]
    sequences = Ragged(random.integers(0, num_vectors // 5 + 1, 60), np.arange(0, 61, 3))
    firsts = random.integers(0, num_vectors, 20)
    intervals = Intervals(np.stack([firsts, firsts + random.integers(0, 9, 20)], axis=1), np.arange(21))
    content = random.integers(0, 99, 20).astype(np.uint64)
    exclusion = Exclusion.of(20, intervals, document=sequences, content=content)
    parts = spread(vectors, codebook, (int(cut * num_vectors),), allowed, **keys)
    truth = exact_topk(queries, [Block(np.arange(num_vectors), vectors, allowed, keys)], k, metric, exclusion)
    assert same(truth, join_block(queries, None, parts, codebook, k, 16, exclusion, rerank_margin=num_vectors))
    streamed = [block for part in parts for block in part.blocks()]
    assert sum(len(block.vectors_ND) for block in streamed) == allowed.sum(), "no vector is read of the others"
    assert same(truth, exact_topk(queries, streamed, k, metric, exclusion))


def test_join_gives_the_same_bytes_for_any_threads_blocks_parts_and_stored_lists(
    codebook: Codebook, spread: Spread
) -> None:
    queries = VECTORS[::11]
    exclusion = Exclusion.of(len(queries), document=DOCUMENTS[::11])
    one = spread(VECTORS, codebook, document=DOCUMENTS)
    many = spread(VECTORS, codebook, (1, 3000, 3001), document=DOCUMENTS)
    result = join_block(queries, None, one, codebook, 10, 6, exclusion)
    assert same(result, join_block(queries, None, many, codebook, 10, 6, exclusion, threads=3))
    stored = codebook.nearest_lists(queries, 32)
    assert same(result, join_block(queries, stored, many, codebook, 10, 6, exclusion, threads=2))
    rows = np.random.default_rng(0).permutation(len(queries))[:100]
    assert same(
        tuple(array[rows] for array in result),
        join_block(queries[rows], stored[rows], many, codebook, 10, 6, exclusion.rows(rows)),
    )
    assert not (DOCUMENTS[result[0]] == DOCUMENTS[::11][:, None])[result[0] >= 0].any()


def test_join_finds_at_least_nine_in_ten_at_a_quarter_of_the_lists(small: Codebook, spread: Spread) -> None:
    parts = spread(VECTORS, small, document=DOCUMENTS)
    exclusion = Exclusion.of(len(VECTORS), document=DOCUMENTS)
    ids, _ = join_block(VECTORS, None, parts, small, 10, 8, exclusion)
    truth, _ = exact_topk(
        VECTORS, [Block(np.arange(len(VECTORS)), VECTORS, None, {"document": DOCUMENTS})], 10, small.metric, exclusion
    )
    assert recall(ids[300:], truth[300:]) > 0.9


def test_one_giant_list_and_thousands_of_identical_vectors_are_joined(small: Codebook, spread: Spread) -> None:
    vectors = np.repeat(VECTORS[:1], 6000, axis=0)
    parts = spread(vectors, small, (2500,))
    ids, _ = join_block(vectors[:300], None, parts, small, 5, 1)
    assert (ids == np.arange(5)).all()


def test_vectors_wider_than_float32_sums_of_codes_are_exact_too(spread: Spread) -> None:
    vectors = mixture(700, 1500, 2)
    codebook = train(vectors, "IVF4,SQ8", 0, "inner_product")
    parts = spread(vectors, codebook)
    truth = exact_topk(vectors[:50], vectors, 10, "inner_product")
    assert same(truth, join_block(vectors[:50], None, parts, codebook, 10, 4, rerank_margin=50))


def test_bad_queries_are_refused(small: Codebook, spread: Spread) -> None:
    parts = spread(VECTORS[:50], small)
    bad = VECTORS[:5].copy()
    bad[3, 1] = np.nan
    for run in (lambda q: search(q, parts, small, 2, 1), lambda q: join_block(q, None, parts, small, 2, 1)):
        with pytest.raises(InputError, match="row 3"):
            run(bad)
        with pytest.raises(MismatchError, match="32 dimensions"):
            run(VECTORS[:5, :31])


def test_codes_describe_the_differences_between_vectors_with_a_large_mean(spread: Spread) -> None:
    vectors = mixture(4000, 64, 2).astype(np.float32)
    vectors[:, 0] += 2  # as a few dimensions of BERT do
    codebook = train(vectors, "IVF4,SQ8", 0, "squared_l2")
    parts = spread(vectors.astype(np.float16), codebook)
    exact = join_block(vectors[::20], None, parts, codebook, 10, 4, rerank_margin=4000)
    result = join_block(vectors[::20], None, parts, codebook, 10, 4)
    assert (result[1] <= exact[1][:, -1:]).mean() > 0.9


def test_half_precision_queries_are_checked(spread: Spread) -> None:
    vectors = mixture(200, 16, 0)
    codebook = train(vectors, "Flat", 0, "inner_product")
    parts = spread(vectors, codebook)
    bad = vectors[:9].copy()
    bad[4, 2] = np.inf
    with pytest.raises(InputError, match="row 4"):
        join_block(bad, np.zeros((9, 1), np.int32), parts, codebook, 2, 1)
    with pytest.raises(MismatchError, match="16 dimensions"):
        join_block(vectors[:9, :8], np.zeros((9, 1), np.int32), parts, codebook, 2, 1)
