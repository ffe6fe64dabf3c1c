"""The scan in PyTorch against the compiled one, on the CPU; on a GPU the same code runs."""

from __future__ import annotations

import numpy as np
import pytest

from retrodb.ann import gpu_scan
from retrodb.ann.codegen import six_bit_codes
from retrodb.ann.exclusion import Exclusion, Intervals, Ragged
from retrodb.ann.join import ScannedDatabase, join_block, scan_lists_of
from retrodb.ann.training import train

from .conftest import Spread, mixture


@pytest.mark.parametrize("metric", ["inner_product", "squared_l2"])
def test_the_scan_in_torch_gives_what_the_compiled_one_gives(metric: str, spread: Spread) -> None:
    random = np.random.default_rng(1)
    vectors = mixture(3000, 40, 0, identical=300)
    codebook = train(vectors, "IVF32,SQ8", 3, metric)
    content = random.integers(0, 300, 3000).astype(np.uint64)
    keys = {"document": np.arange(3000) // 8, "content": content}
    parts = spread(vectors, codebook, (1000,), random.random(3000) < 0.8, **keys)
    sequences = Ragged(random.integers(0, 375, 900), np.arange(0, 901, 3))
    intervals = Intervals(np.stack([np.arange(600), np.arange(600) + 5], axis=1) * 4, np.arange(0, 601, 2))
    exclusion = Exclusion.of(300, intervals, document=sequences, content=content[::10])
    compiled_, in_torch = (
        join_block(vectors[::10], None, parts, codebook, 10, 3, exclusion, device=device) for device in ("cpu", "cpu:0")
    )
    for a, b in zip(compiled_, in_torch, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (join_block(vectors[:3], None, [], codebook, 2, 1, device="cpu:0")[0] == -1).all()


def test_both_scans_give_the_distances_of_codes_and_keep_what_is_nearer_already(spread: Spread) -> None:
    vectors = mixture(2000, 40, 0)
    codebook = train(vectors, "IVF16,SQ8", 3, "squared_l2")
    database = ScannedDatabase.of(spread(vectors, codebook, (700,)), codebook, 16)
    queries = vectors[::20].astype(np.float32)
    lists = codebook.nearest_lists(queries, 4)
    exclusion, fifth = Exclusion.of(len(queries)), np.full((len(queries), 1), np.inf, np.float32)
    for num_kept in (10, 4):
        found = []
        for device in ("cpu", "cpu:0"):
            begun = np.full((len(queries), 10), 5000), fifth.repeat(10, axis=1)
            found.append(scan_lists_of(queries, lists, database, exclusion, begun, 1, device))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
        assert ((found[0][0] < 5000).sum(axis=1) == num_kept).all()
        fifth = found[0][1][:, 3:5].mean(axis=1, keepdims=True)  # between the fourth and the fifth


def test_both_scans_have_the_same_codes() -> None:
    assert gpu_scan.LEVELS == six_bit_codes.LEVELS


@pytest.mark.parametrize("step", [1, (1 << 32) // 12 - 1, 1 << 29, 1 << 32])
def test_the_scan_in_torch_keeps_ids_of_64_bits(step: int) -> None:
    """Ids beyond 2^33, also equal in their low 32 bits, in two lists; equal vectors tie, and the smallest ids come first."""
    ids = (1 << 33) + 7 + np.arange(12) * step
    codes = np.full((6, 32), 10, dtype=np.int8)
    columns = [
        gpu_scan.ListColumns(codes, np.ones(6, np.float32), ids[list_::2], np.empty((0, 6), np.int64))
        for list_ in (0, 1)
    ]
    queries, lists = np.ones((2, 32), np.float32), np.array([[0, 1], [1, -1]], np.int32)
    centre = np.zeros(32, np.float32)
    intervals = np.array([[[ids[0], ids[1]]], [[ids[5], ids[5]]]])  # the first id, and none
    found, _ = gpu_scan.scan_on_device(
        queries,
        lists,
        columns.__getitem__,
        [],
        intervals,
        centre,
        False,
        8,
        "cpu",
        range(int(ids[0]), int(ids[-1]) + 1),
    )
    np.testing.assert_array_equal(found, [ids[1:9], [*ids[1::2], -1, -1]])
