"""Ids beyond 2^33: a database may have more chunks than 32 bits count, and no search may cut an id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from retrodb.ann.codegen.grouping import group_by_list, group_by_list_portable
from retrodb.ann.codegen.lookup import find_sorted, number_distinct
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.join import join_block
from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.rerank import LivePart
from retrodb.ann.reverse_join import NewRows, reverse_join
from retrodb.ann.search import search
from retrodb.ann.topk import TopK, empty_topk
from retrodb.ann.training import train

from .conftest import Spread, mixture

ROWS = 1500
IDS = np.arange(ROWS) * (1 << 32) + (1 << 33)
"""All are equal in their low 32 bits."""


def spread_out(parts: list[LivePart]) -> list[LivePart]:
    """The parts with `IDS` instead of the numbers of their rows."""
    return [replace(part, ids_N=IDS[part.ids_N]) for part in parts]


def assert_same(large: TopK, small: TopK) -> None:
    """The same neighbours by other ids."""
    np.testing.assert_array_equal(large[0], np.append(IDS, -1)[small[0]])
    np.testing.assert_array_equal(large[1], small[1])


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return mixture(ROWS, 40, 0, identical=100)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second is the scan in PyTorch, as on a GPU
@pytest.mark.parametrize("metric", ["inner_product", "squared_l2"])
def test_join_finds_the_same_rows_by_large_ids(device: str, metric: str, spread: Spread, vectors: np.ndarray) -> None:
    codebook = train(vectors, "IVF16,SQ8", 3, metric)
    document = np.arange(ROWS) // 8
    small = spread(vectors, codebook, (500,), np.arange(ROWS) % 5 > 0, document=document)
    large = [replace(part, keys={"document": part.keys["document"] + (1 << 33)}) for part in spread_out(small)]

    def join(parts: list[LivePart], first_document: int) -> TopK:
        exclusion = Exclusion.of(100, document=document[::15] + first_document)
        return join_block(vectors[::15], None, parts, codebook, 10, 3, exclusion, device=device)

    assert_same(join(large, 1 << 33), join(small, 0))


def test_search_finds_the_same_rows_by_large_ids(spread: Spread, vectors: np.ndarray) -> None:
    codebook = train(vectors, "IVF16,SQ8", 3, "inner_product")
    small = spread(vectors, codebook, (500,))
    found = [search(vectors[::15], parts, codebook, 10, 3) for parts in (spread_out(small), small)]
    assert_same(*found)


def test_exact_search_finds_the_same_rows_by_large_ids(vectors: np.ndarray) -> None:
    halves = [slice(0, 700), slice(700, ROWS)]
    large = exact_topk(vectors[::15], [Block(IDS[rows], vectors[rows]) for rows in halves], 10, "inner_product")
    assert_same(large, exact_topk(vectors[::15], vectors, 10, "inner_product"))
    merged = merge_topk(
        [exact_topk(vectors[::15], [Block(IDS[rows], vectors[rows])], 10, "inner_product") for rows in halves], 10
    )
    assert_same(merged, exact_topk(vectors[::15], vectors, 10, "inner_product"))


def test_reverse_join_finds_the_same_rows_by_large_ids(vectors: np.ndarray) -> None:
    codebook = train(vectors, "IVF16,SQ8", 3, "inner_product")
    probes, queries = codebook.nearest_lists(vectors.astype(np.float32), 4), vectors[::15]
    homes = codebook.nearest_lists(queries.astype(np.float32), 1)[:, 0]

    def join(ids: np.ndarray) -> TopK:
        best = empty_topk(len(queries), 10)
        new = NewRows.of(Block(ids, vectors), probes, codebook.num_lists)
        reverse_join(queries, homes[:, None], new, "inner_product", Exclusion.of(len(queries)), best)
        return best

    assert_same(join(IDS), join(np.arange(ROWS)))


@pytest.mark.parametrize("kernel", [find_sorted, find_sorted.py_func])
def test_large_ids_are_found_among_sorted_ones(kernel: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    wanted = np.array([[IDS[3], IDS[3] & 0xFFFFFFFF, IDS[3] + 1, -1, IDS[-1]]])
    np.testing.assert_array_equal(kernel(IDS, wanted), [[3, -1, -1, -1, ROWS - 1]])
    dense = (1 << 33) + np.arange(10)
    np.testing.assert_array_equal(kernel(dense, dense[None, ::-1] + 2), [[-1, -1, 9, 8, 7, 6, 5, 4, 3, 2]])


def test_large_values_that_agree_in_32_bits_are_distinct() -> None:
    values = np.stack([IDS[:50], IDS[:50][::-1]])
    np.testing.assert_array_equal(number_distinct(values), IDS[:50])
    np.testing.assert_array_equal(values, [np.arange(50), np.arange(50)[::-1]])


@pytest.mark.parametrize("group", [group_by_list, group_by_list_portable])
def test_a_block_of_more_rows_than_32_bits_count_is_refused(group: Callable[..., object]) -> None:
    """A block is bounded by memory long before; its row numbers must not wrap if that changes."""
    with pytest.raises(AssertionError):
        group(np.zeros((0, 1), np.int32), (1 << 31) + 1, (1 << 31) + 1, 4)
