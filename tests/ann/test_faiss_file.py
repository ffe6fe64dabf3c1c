"""A file of parts that `faiss.read_index` opens finds what a search of the parts finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.ann.faiss_file import write_faiss_file
from retrodb.ann.merge_parts import rows_by_list
from retrodb.ann.rerank import LivePart
from retrodb.ann.search import search
from retrodb.ann.training import train
from retrodb.format.arrays import AnyArray, Int64Array

from .conftest import Spread, mixture

METRICS = ("inner_product", "squared_l2")
OPQ = pytest.param("OPQ4_16,IVF16,PQ4x4", marks=pytest.mark.soak)  # FAISS trains a rotation for most of a minute
FACTORIES = (
    "Flat",
    "IVF16,SQ8",
    "IVF16,PQ8x4",
    "IVF16,PQ8x4fs",
    "IVF16,RaBitQ",
    "IVF16,RaBitQfs",
    "IVF16_HNSW8,SQ8",
    OPQ,
)
VECTORS = mixture(10_000, 32, 0)
ROWS = VECTORS[:3000]
CUTS = (700, 701, 2500)
FIRST_ID = 1 << 40


def exported(path: Path, codebook: Codebook, parts: list[LivePart], allowed: np.ndarray, nprobe: int) -> faiss.Index:
    """The index of rows of the parts that are allowed, their ids far above those of the rows."""
    ids = [np.where(allowed[part.ids_N], FIRST_ID + 3 * part.ids_N, -1) for part in parts]
    opened = [part.part for part in parts]

    def rows() -> Iterator[tuple[Int64Array, Int64Array, AnyArray]]:
        for block in rows_by_list(opened, ids):
            yield block.lists_B, block.rows_B, block.search_codes(opened)

    sizes = np.zeros(codebook.num_lists, np.int64)
    for part, ids_N in zip(opened, ids, strict=True):
        sizes += np.bincount(part.lists_N.whole()[ids_N >= 0], minlength=codebook.num_lists)
    write_faiss_file(path, load_codebook(codebook.serialize()), sizes, rows, nprobe)
    return faiss.read_index(str(path))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", FACTORIES)
def test_faiss_finds_in_the_file_what_a_search_finds(
    factory: str, metric: str, spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.ann.merge_parts.BLOCK_ROWS", 300)  # lists go on in the next block
    codebook = train(VECTORS, factory, 3, metric)
    allowed = np.random.default_rng(1).random(len(ROWS)) < 0.7
    parts = spread(ROWS, codebook, CUTS, allowed)
    index = exported(tmp_path / "out.faiss", codebook, parts, allowed, 5)
    assert index.ntotal == allowed.sum()
    queries = VECTORS[5000:5100].astype(np.float32)
    nprobe = min(5, codebook.num_lists)
    width = len(ROWS)  # of all that is in the lists the exact distances decide
    _, ids = index.search(queries, width)
    nearest = [exact_order(query, row[row >= 0], metric)[:10].tolist() for query, row in zip(queries, ids, strict=True)]
    found, _ = search(queries, parts, codebook, 10, nprobe, rerank_margin=width)
    same = [a == b for a, b in zip(nearest, (FIRST_ID + 3 * found).tolist(), strict=True)]
    # FAISS computes the rotation, and which lists are nearest, in another order of sums; its graph finds others.
    assert np.mean(same) == 1 if factory == "Flat" else np.mean(same) >= 0.95


def exact_order(query: np.ndarray, ids: np.ndarray, metric: str) -> np.ndarray:
    vectors = ROWS[(ids - FIRST_ID) // 3].astype(np.float64)
    distances = -(vectors @ query) if metric == "inner_product" else ((vectors - query) ** 2).sum(axis=1)
    return ids[np.lexsort((ids, distances))]


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "IVF16,PQ8x4fs", "IVF16,RaBitQfs"])
def test_the_lists_of_the_file_have_the_bits_of_a_build_by_faiss(factory: str, spread: Spread, tmp_path: Path) -> None:
    codebook = train(VECTORS, factory, 3, "squared_l2")
    index = exported(tmp_path / "out.faiss", codebook, spread(ROWS, codebook, CUTS), np.ones(len(ROWS), bool), 16)
    expected = faiss.clone_index(codebook.index)
    expected.add_with_ids(ROWS.astype(np.float32), FIRST_ID + 3 * np.arange(len(ROWS)))
    queries = VECTORS[5000:5100].astype(np.float32)
    expected.nprobe = 16
    for found, right in zip(index.search(queries, 40), expected.search(queries, 40), strict=True):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8", "IVF16,RaBitQfs"])
def test_a_file_without_rows_is_an_empty_index(factory: str, spread: Spread, tmp_path: Path) -> None:
    codebook = train(VECTORS, factory, 3, "inner_product")
    index = exported(tmp_path / "out.faiss", codebook, spread(ROWS[:20], codebook), np.zeros(20, bool), 1)
    assert index.ntotal == 0
    assert (index.search(VECTORS[:2].astype(np.float32), 3)[1] == -1).all()
