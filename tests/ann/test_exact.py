from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.exact import Block, FixedRows, exact_topk
from retrodb.ann.exclusion import Exclusion, Intervals, Ragged
from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.topk import empty_topk
from retrodb.errors import ConfigError, InputError, MismatchError
from retrodb.format.scores import scores

from .conftest import brute_force, mixture

METRICS = ("inner_product", "squared_l2")


def grid(num_vectors: int, dim: int, seed: int) -> np.ndarray:
    """Small integers: every sum is exact, so ties are true ties and the plain reference is exact."""
    return np.random.default_rng(seed).integers(-2, 3, (num_vectors, dim)).astype(np.float16)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_vectors=st.integers(1, 300),
    dim=st.integers(1, 19),
    k=st.integers(1, 12),
    cut=st.integers(1, 300),
    metric=st.sampled_from(METRICS),
    dead=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_equals_masked_brute_force_with_ties_by_id_for_any_blocks(
    seed: int, num_vectors: int, dim: int, k: int, cut: int, metric: str, dead: float
) -> None:
    random = np.random.default_rng(seed)
    vectors, queries = grid(num_vectors, dim, seed), grid(9, dim, seed + 1)
    allowed = random.random(num_vectors) >= dead
    documents = np.arange(num_vectors) // 4
    hashes = random.integers(0, 20, num_vectors).astype(np.uint64) + np.uint64(2**63)
    sequences = Ragged(random.integers(0, 80, 18), np.arange(0, 19, 2))
    firsts = random.integers(0, num_vectors, 9)
    intervals = Intervals(np.stack([firsts, firsts + random.integers(0, 9, 9)], axis=1), np.arange(10))
    contents = hashes[random.integers(0, num_vectors, 9)]
    exclusion = Exclusion.of(9, intervals, document=sequences, content=contents)
    keys = {"document": documents, "content": hashes}
    starts = range(0, num_vectors, cut)
    blocks = [
        Block(
            np.arange(num_vectors)[rows], vectors[rows], allowed[rows], {kind: key[rows] for kind, key in keys.items()}
        )
        for rows in (slice(start, start + cut) for start in starts)
    ]
    ids, distances = exact_topk(queries, blocks, k, metric, exclusion)
    mask = exclusion.mask(exclusion.stack(keys, num_vectors), np.arange(num_vectors)) | ~allowed
    assert (ids == brute_force(queries, vectors, mask, k, metric)).all()
    assert (np.isinf(distances) == (ids == -1)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_bits_do_not_depend_on_threads_or_query_batches(metric: str) -> None:
    vectors = mixture(3000, 48, 1, identical=500)
    whole = exact_topk(vectors[:200], vectors, 10, metric)
    threaded = exact_topk(vectors[:200], vectors, 10, metric, threads=3)
    singly = [exact_topk(vectors[row : row + 1], vectors, 10, metric) for row in range(0, 200, 20)]
    assert all((a == b).all() for a, b in zip(whole, threaded, strict=True))
    for row, (ids, distances) in zip(range(0, 200, 20), singly, strict=True):
        assert (ids[0] == whole[0][row]).all()
        assert (distances[0] == whole[1][row]).all()


def test_merged_partial_results_equal_the_whole() -> None:
    vectors = grid(500, 8, 3)
    whole = exact_topk(vectors[:50], vectors, 7, "squared_l2")
    cuts = [0, 3, 200, 201, 500]
    partials = [
        exact_topk(vectors[:50], [Block(np.arange(a, b), vectors[a:b])], 7, "squared_l2") for a, b in pairwise(cuts)
    ]
    assert all((a == b).all() for a, b in zip(whole, merge_topk(partials[::-1], 7), strict=True))
    assert (merge_topk([empty_topk(3, 2)], 5)[0] == -1).all()


def test_ids_beyond_32_bits_survive() -> None:
    vectors = grid(20, 4, 0)
    ids, _ = exact_topk(vectors, [Block(np.arange(20) + 2**33, vectors)], 3, "squared_l2")
    assert ids.min() >= 2**33


def test_thousands_of_identical_vectors_are_ordered_by_id() -> None:
    vectors = np.ones((5000, 8), np.float16)
    ids, _ = exact_topk(vectors[:3], vectors, 5, "inner_product")
    assert (ids == np.arange(5)).all()


def test_nan_and_wrong_dimensions_are_refused_with_row_and_number() -> None:
    vectors = grid(20, 4, 0)
    vectors[13, 2] = np.nan
    with pytest.raises(InputError, match="row 13 holds NaN"):
        exact_topk(vectors[:2], vectors, 1, "squared_l2")
    with pytest.raises(MismatchError, match="5 dimensions"):
        exact_topk(grid(2, 5, 0), vectors, 1, "squared_l2")
    with pytest.raises(ConfigError, match="cosine"):
        exact_topk(vectors, vectors, 1, "cosine")  # type: ignore[arg-type]


def test_missing_exclusion_keys_are_refused() -> None:
    with pytest.raises(MismatchError, match="cluster"):
        exact_topk(grid(2, 4, 0), grid(9, 4, 0), 1, "squared_l2", Exclusion.of(2, cluster=np.array([1, 2])))
    with pytest.raises(MismatchError, match="do not fit"):
        Exclusion.of(3, document=np.array([1, 2]))
    with pytest.raises(MismatchError, match="intervals"):
        Exclusion.of(3, Intervals.none(2))


def test_key_minus_one_excludes_nothing_and_rows_of_an_exclusion_keep_their_keys() -> None:
    intervals = Intervals(np.array([[20, 21], [20, 22], [3, 10]]), np.array([0, 1, 1, 3]))
    documents = Ragged(np.array([7, 8, 9]), np.array([0, 0, 2, 3]))
    exclusion = Exclusion.of(3, intervals, cluster=np.array([-1, 4, 5]), document=documents)
    keys = exclusion.stack({"cluster": np.array([-1, 4, 5]), "document": np.array([7, 9, 1])}, 3)
    ids = np.array([20, 21, 22])
    mask = exclusion.mask(keys, ids)
    assert mask.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    picked = exclusion.rows(np.array([2, 0, 1]))
    assert picked.mask(keys, ids).tolist() == mask[[2, 0, 1]].tolist()


def test_scores_are_what_users_expect() -> None:
    assert scores(np.array([-0.5], np.float32), "inner_product")[0] == 0.5
    assert scores(np.array([0.5], np.float32), "squared_l2")[0] == 0.5


@settings(max_examples=60, deadline=None)
@given(data=st.data(), metric=st.sampled_from(["inner_product", "squared_l2"]), threads=st.sampled_from([1, 3]))
def test_no_query_is_missed_that_has_a_row_within_its_bound(data: st.DataObject, metric: str, threads: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    num_queries, num_rows, dim = (data.draw(st.integers(1, 40)) for _ in range(3))
    scale = data.draw(st.sampled_from([1e-3, 1.0, 300.0]))
    queries, rows = (np.float32(scale) * rng.standard_normal((n, dim), np.float32) for n in (num_queries, num_rows))
    nearest = exact_topk(queries, rows, 1, metric)[1][:, 0]
    fixed = FixedRows.of(rows)
    assert fixed.may_be_within(queries, nearest, metric, threads).all()
    assert fixed.may_be_within(queries, np.full(num_queries, np.inf, np.float32), metric, threads).all()
    assert not fixed.may_be_within(queries, np.full(num_queries, -np.inf, np.float32), metric, threads).any()
    far = np.abs(nearest) + (np.linalg.norm(queries, axis=1) + np.linalg.norm(rows, axis=1).max()) ** 2
    assert not fixed.may_be_within(queries, (nearest - 0.01 * far).astype(np.float32), metric, threads).any()
