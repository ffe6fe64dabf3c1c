"""New rows compared with old queries, against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.exact import Block
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.reverse_join import NewRows, reverse_join
from retrodb.ann.topk import empty_topk
from retrodb.errors import InputError, MismatchError
from retrodb.format.entries import Metric

LISTS = 5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    k=st.integers(1, 6),
    nprobe=st.integers(1, LISTS),
    metric=st.sampled_from(["inner_product", "squared_l2"]),
    threads=st.integers(1, 3),
)
def test_each_query_gets_the_nearest_of_the_new_rows_that_probe_its_list(
    seed: int, shape: tuple[int, int], k: int, nprobe: int, metric: Metric, threads: int
) -> None:
    rng = np.random.default_rng(seed)
    num_queries, num_rows = shape
    queries = rng.integers(-2, 3, (num_queries, 3)).astype(np.float16)  # small whole numbers: many distances tie
    rows = rng.integers(-2, 3, (num_rows, 3)).astype(np.float16)
    homes = rng.integers(0, LISTS, num_queries).astype(np.int32)
    probes = np.argsort(rng.random((num_rows, LISTS)), axis=1, kind="stable")[:, :nprobe].astype(np.int32)
    ids = np.sort(rng.permutation(1000)[:num_rows])
    keys, query_keys = rng.integers(0, 4, num_rows), rng.integers(0, 4, num_queries)
    known = np.sort(rng.integers(-9, 9, (num_queries, k)).astype(np.float32), axis=1)
    best = np.full((num_queries, k), 500), known.copy()
    new = NewRows.of(Block(ids, rows, None, {"document": keys}), probes, LISTS)
    reverse_join(queries, homes[:, None], new, metric, Exclusion.of(num_queries, document=query_keys), best, threads)
    for q in range(num_queries):
        exact = queries[q].astype(np.float32), rows.astype(np.float32)
        distances = -(exact[1] @ exact[0]) if metric == "inner_product" else ((exact[1] - exact[0]) ** 2).sum(axis=1)
        compared = (probes == homes[q]).any(axis=1) & (keys != query_keys[q])
        new_pairs = zip(distances[compared].tolist(), ids[compared].tolist(), strict=True)
        pairs = [*((d, 500) for d in known[q].tolist()), *new_pairs]
        assert list(zip(best[1][q].tolist(), best[0][q].tolist(), strict=True)) == sorted(pairs)[:k]


def test_nan_and_wrong_dimensions_are_refused() -> None:
    rows = np.eye(3, 4, dtype=np.float16)
    new = NewRows.of(Block(np.arange(3), rows), np.zeros((3, 1), np.int32), 1)
    with pytest.raises(MismatchError, match="4 dimensions"):
        reverse_join(
            np.zeros((1, 5)), np.zeros((1, 1), np.int32), new, "inner_product", Exclusion.of(1), empty_topk(1, 1)
        )
    rows[2, 1] = np.nan
    with pytest.raises(InputError, match="row 2"):
        NewRows.of(Block(np.arange(3), rows), np.zeros((3, 1), np.int32), 1)
