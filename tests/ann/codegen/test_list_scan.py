"""The scan of a part's lists against its portable definition, bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codegen.code_product import PANEL
from retrodb.ann.codegen.equal_rows import ListedRows, link_equal_rows
from retrodb.ann.codegen.grouping import group_by_list
from retrodb.ann.codegen.list_scan import (
    TILE_PANELS,
    ScannedLists,
    ScannedQueries,
    scan_lists,
    scan_lists_portable,
)
from retrodb.ann.codegen.six_bit_codes import CodeSpace, encode_queries_portable
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.part import quantize
from retrodb.ann.topk import empty_topk

LISTS = 4


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_vectors=st.sampled_from([0, 1, 17, 90, TILE_PANELS * PANEL + 30]),
    num_queries=st.sampled_from([1, 7, 31]),
    dim=st.sampled_from([3, 32, 40]),
    width=st.integers(1, 6),
    is_l2=st.booleans(),
    has_keys=st.booleans(),
    has_mask=st.booleans(),
)
def test_a_scan_equals_its_portable_definition(
    seed: int, num_vectors: int, num_queries: int, dim: int, width: int, is_l2: bool, has_keys: bool, has_mask: bool
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((num_vectors, dim)).astype(np.float32)
    vectors[: num_vectors // 3] = vectors[:1]  # equal vectors: ties are broken by id
    lists = (random.integers(0, LISTS, num_vectors) // 2 * 2).astype(np.int32)  # two lists are empty
    order = np.argsort(lists, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=LISTS))])
    centre = random.standard_normal(dim).astype(np.float32) / 3
    codes, scales = quantize(vectors[order], centre)
    queries = random.standard_normal((num_queries, dim)).astype(np.float32)
    queries[: num_queries // 2] = vectors[0] if num_vectors else 0
    space = CodeSpace(centre, is_l2)
    allowed = random.random(num_vectors) < 0.7 if has_mask else np.empty(0, dtype=np.bool_)
    ids = np.sort(random.permutation(10 * num_vectors + 1)[:num_vectors])
    kinds = {"document": random.integers(0, 5, num_queries), "content": random.integers(-1, 9, num_queries)}
    exclusion = Exclusion.of(num_queries, **(kinds if has_keys else {}))
    column_keys = {kind: random.integers(-1, 9, num_vectors) for kind in kinds}
    steps = np.empty(0, np.int32)
    part = ScannedLists(offsets, order, codes, scales, allowed, ids, exclusion.columns(column_keys, num_vectors), steps)
    probes = np.argsort(random.random((num_queries, LISTS)), axis=1, kind="stable")[:, :3].astype(np.int32)
    groups = group_by_list(probes, 0, num_queries, LISTS)
    scanned = ScannedQueries(groups, encode_queries_portable(queries, space), exclusion.query_keys())
    by_kernel, by_definition = empty_topk(num_queries, width), empty_topk(num_queries, width)
    scan_lists(scanned, part, space, by_kernel)
    scan_lists_portable(scanned, part, space, by_definition)
    linked = part._replace(steps_N=np.zeros(num_vectors, np.int32))
    for start, end in pairwise(offsets.tolist()):
        link_equal_rows(
            start,
            end,
            ListedRows(codes, scales, tuple(kind[order] if len(kind) else kind for kind in part.keys)),
            linked.steps_N,
        )
    with_links = empty_topk(num_queries, width)
    scan_lists(scanned, linked, space, with_links)
    for found in (by_kernel, with_links):
        assert found[0].tolist() == by_definition[0].tolist()
        assert found[1].tobytes() == by_definition[1].tobytes()
