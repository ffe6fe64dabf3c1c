"""Insertions into sorted rows, and exclusions, against their portable definitions; many distances tie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.exact_insertion import (
    PIECE,
    Columns,
    EstimatedDistances,
    insert_by_list,
    insert_by_list_portable,
    insert_exact,
    insert_exact_portable,
)
from retrodb.ann.codegen.excluded import is_excluded, is_excluded_portable
from retrodb.ann.codegen.grouping import group_by_list
from retrodb.ann.codegen.insertion import insert_candidates, insert_candidates_portable
from retrodb.ann.exclusion import Exclusion, Intervals, Ragged
from retrodb.ann.topk import TopK, empty_topk

SEEDS = st.integers(0, 2**32 - 1)


def copies(best: TopK) -> tuple[TopK, TopK]:
    return (best[0].copy(), best[1].copy()), (best[0].copy(), best[1].copy())


def same(first: TopK, second: TopK) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def some_exclusion(
    random: np.random.Generator, num_queries: int, num_columns: int
) -> tuple[Exclusion, np.ndarray, np.ndarray]:
    """Up to three document keys and intervals, and one content key, for each query; -1 for some columns; the columns' ids."""
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, 4, num_queries))])
    documents = Ragged(random.integers(0, 6, offsets[-1]), offsets)
    firsts = random.integers(0, 40, offsets[-1])
    intervals = Intervals(np.stack([firsts, firsts + random.integers(0, 9, offsets[-1])], axis=1), offsets)
    exclusion = Exclusion.of(num_queries, intervals, document=documents, content=random.integers(-1, 9, num_queries))
    ids = np.sort(random.permutation(num_columns + 40)[:num_columns])
    return exclusion, random.integers(-1, 9, (2, num_columns)), ids


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(0, 12), st.integers(0, 3))
def test_inserted_candidates_are_the_smallest_by_distance_and_id(seed: int, k: int, width: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    ids = np.stack([random.permutation(100)[:width] for _ in range(rows)]) if rows else np.empty((0, width), np.int64)
    ids[random.random(ids.shape) < 0.2] = -1
    candidates = ids, random.integers(-2, 3, ids.shape).astype(np.float32)
    best = empty_topk(rows, k)
    insert_candidates_portable((ids + 200, candidates[1]), best)  # rows that are full, or begun
    by_kernel, by_definition = copies(best)
    insert_candidates(candidates, by_kernel)
    insert_candidates_portable(candidates, by_definition)
    assert same(by_kernel, by_definition)


@compiled
def excluded_mask(num_queries: int, keys: object, column_keys_JC: np.ndarray, ids_C: np.ndarray) -> np.ndarray:
    mask = np.empty((num_queries, column_keys_JC.shape[1]), dtype=np.bool_)
    for row in range(num_queries):
        for column in range(mask.shape[1]):
            mask[row, column] = is_excluded(row, ids_C[column], column, keys, column_keys_JC)
    return mask


@pytest.mark.parametrize("seed", range(10))
def test_exclusion_equals_its_portable_definition_and_the_mask(seed: int) -> None:
    exclusion, column_keys, ids = some_exclusion(np.random.default_rng(seed), 7, 11)
    keys = exclusion.query_keys()
    by_kernel = excluded_mask(7, keys, column_keys, ids)
    expected = [
        [is_excluded_portable(row, int(ids[column]), column, keys, column_keys) for column in range(11)]
        for row in range(7)
    ]
    assert by_kernel.tolist() == expected == exclusion.mask(column_keys, ids).tolist()
    none = Exclusion.of(7).query_keys()
    assert not excluded_mask(7, none, column_keys[:0], ids).any()


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.sampled_from([1, 2, 5, 6, 17, 25]),
    st.integers(1, 80) | st.sampled_from([PIECE, PIECE + 1, 9 * PIECE - 1]),
    st.booleans(),
    st.sampled_from([0.0, 0.4]),
)
def test_exact_insertion_equals_its_portable_definition_for_all_estimates_within_the_error(
    seed: int, k: int, num_columns: int, is_l2: bool, error: float
) -> None:
    random = np.random.default_rng(seed)
    queries, vectors = (random.integers(-2, 3, (n, 5)).astype(np.float32) for n in (8, num_columns))
    exclusion, column_keys, ids = some_exclusion(random, 8, num_columns)
    columns = Columns(vectors, ids, column_keys)
    products = queries @ vectors.T
    exact = (queries**2).sum(1)[:, None] - 2 * products + (vectors**2).sum(1) if is_l2 else -products
    wrong = (exact + random.uniform(-error, error, exact.shape)).astype(np.float32)
    estimates = EstimatedDistances.of(wrong, np.full(8, 1.001 * error, dtype=np.float32), k)
    by_kernel, by_definition = copies(empty_topk(8, k))
    insert_exact(0, 3, queries, estimates, columns, exclusion.query_keys(), is_l2, by_kernel)
    insert_exact(3, 8, queries, estimates, columns, exclusion.query_keys(), is_l2, by_kernel)
    insert_exact_portable(queries, columns, exclusion.query_keys(), is_l2, by_definition)
    assert same(by_kernel, by_definition)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 40), st.booleans(), st.sampled_from([(1, 1), (1, 3), (3, 1)]))
def test_insertion_by_list_equals_its_portable_definition(
    seed: int, k: int, num_columns: int, is_l2: bool, num_lists: tuple[int, int]
) -> None:
    of_query, of_column = num_lists
    random = np.random.default_rng(seed)
    queries, vectors = (random.integers(-2, 3, (n, 5)).astype(np.float32) for n in (8, num_columns))
    exclusion, column_keys, ids = some_exclusion(random, 8, num_columns)
    columns = Columns(vectors, ids, column_keys)
    of_columns, lists = (
        np.argsort(random.random((n, 4)), axis=1, kind="stable")[:, :count].astype(np.int32)
        for n, count in ((num_columns, of_column), (8, of_query))
    )
    groups = group_by_list(of_columns, 0, num_columns, 4)
    lists[random.random(lists.shape) < 0.2] = -1
    by_kernel, by_definition = copies(empty_topk(8, k))
    for first, stop in ((0, 3), (3, 8)):
        insert_by_list(first, stop, queries, lists, groups, columns, exclusion.query_keys(), is_l2, by_kernel)
    insert_by_list_portable(queries, lists, groups, columns, exclusion.query_keys(), is_l2, by_definition)
    assert same(by_kernel, by_definition)
