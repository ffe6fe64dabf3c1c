"""The compiled kernels of the join against their plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann import int_product, kernels
from retrodb.ann.codebook import train
from retrodb.ann.dot import dot
from retrodb.ann.exclusion import Exclusion, Ragged
from retrodb.ann.int_product import PANEL, ROWS, has_avx2, multiply_avx2, multiply_portable
from retrodb.ann.join import join_block
from retrodb.ann.kernels import compiled
from retrodb.errors import InputError, MismatchError

from .conftest import Spread, mixture


@compiled
def dot_of(a: np.ndarray, b: np.ndarray) -> np.float32:
    return dot(a, b)


NEEDS_AVX2 = pytest.mark.skipif(not has_avx2(), reason="no AVX2")


@pytest.mark.parametrize("multiply", [multiply_portable, pytest.param(multiply_avx2, marks=NEEDS_AVX2)])
@pytest.mark.parametrize("groups", [1, 2, 12, 48])
def test_products_of_extreme_codes_are_exact(multiply: object, groups: int) -> None:
    random, dims, panels = np.random.default_rng(groups), 32 * groups, 3
    queries = random.integers(0, 63, (20, dims)).astype(np.uint8)
    queries[:3] = 62
    columns = random.integers(-31, 32, (panels * PANEL, dims)).astype(np.int8)
    columns[:5], columns[20:22] = 31, -31
    packed = columns.reshape(panels, PANEL, dims // 4, 4).transpose(0, 2, 1, 3).ravel()
    rows = np.array([0, 1, 2, 19, 7, 7])
    sums = 31 * columns.sum(axis=1, dtype=np.int64)
    affine = np.stack([random.random(len(columns)), random.random(len(columns)), sums]).astype(np.float32)
    weights, limits = random.random(ROWS).astype(np.float32), np.zeros(ROWS, dtype=np.float32)
    out = np.empty((ROWS, PANEL), dtype=np.float32)
    for panel in range(panels):
        own = slice(panel * PANEL, (panel + 1) * PANEL)
        products = (queries[rows].astype(int) - 31) @ columns[own].astype(int).T
        scaled = affine[1, own] * products.astype(np.float32)
        expected = affine[0, own] - weights[:, None] * scaled
        close = multiply(queries, rows, packed, affine, panel, weights, limits, out)  # type: ignore[operator]
        np.testing.assert_array_equal(out, expected)
        assert [bool(close >> r & 1) for r in range(ROWS)] == (expected <= 0).any(axis=1).tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(0, 99))
def test_the_inner_product_is_right_at_every_length(length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, length)).astype(np.float32)
    assert abs(float(dot_of(a, b)) - float(a.astype(np.float64) @ b)) < 1e-4


def test_halves_become_floats_bit_for_bit_and_what_is_not_finite_is_found() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][: 1 << 15].reshape(-1, 64)
    out = np.empty(finite.shape, dtype=np.float32)
    rows = np.arange(len(finite))[::-1].copy()
    assert kernels.gather_halves(finite.view(np.int16), rows, out) == -1
    np.testing.assert_array_equal(out, finite[::-1].astype(np.float32))
    for bad in (np.inf, -np.inf, np.nan):
        spoiled = finite.copy()
        spoiled[5, 60] = bad
        assert rows[kernels.gather_halves(spoiled.view(np.int16), rows, out)] == 5


def test_ids_are_found_with_and_without_gaps() -> None:
    wanted = np.array([[-1, 0, 5, 7], [9, 10, 2**40, 6]])
    for ids in (np.arange(5, 10), np.array([5, 7, 2**40]), np.empty(0, np.int64)):
        places = kernels.find_sorted(ids, wanted)
        assert (places >= 0).tolist() == np.isin(wanted, ids).tolist()
        assert (ids[places[places >= 0]] == wanted[places >= 0]).all()


@pytest.mark.parametrize("metric", ["inner_product", "squared_l2"])
def test_the_scan_in_torch_gives_what_the_compiled_one_gives(metric: str, spread: Spread) -> None:
    random = np.random.default_rng(1)
    vectors = mixture(3000, 40, 0, identical=300)
    codebook = train(vectors, "IVF32,SQ8", 3, metric)
    content = random.integers(0, 300, 3000).astype(np.uint64)
    keys = {"document": np.arange(3000) // 8, "content": content}
    parts = spread(vectors, codebook, (1000,), random.random(3000) < 0.8, **keys)
    sequences = Ragged(random.integers(0, 375, 900), np.arange(0, 901, 3))
    exclusion = Exclusion.of(300, document=sequences, content=content[::10])
    compiled_, in_torch = (
        join_block(vectors[::10], None, parts, codebook, 10, 3, exclusion, device=device) for device in ("cpu", "cpu:0")
    )
    for a, b in zip(compiled_, in_torch, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (join_block(vectors[:3], None, [], codebook, 2, 1, device="cpu:0")[0] == -1).all()


def test_codes_spend_their_bits_on_what_tells_vectors_apart(spread: Spread) -> None:
    vectors = mixture(4000, 64, 2).astype(np.float32)
    vectors[:, 0] += 2  # as a few dimensions of BERT do
    codebook = train(vectors, "IVF4,SQ8", 0, "squared_l2")
    parts = spread(vectors.astype(np.float16), codebook)
    exact = join_block(vectors[::20], None, parts, codebook, 10, 4, slack=4000)
    found = join_block(vectors[::20], None, parts, codebook, 10, 4)
    assert (found[1] <= exact[1][:, -1:]).mean() > 0.9


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


def test_a_machine_without_avx2_is_served() -> None:
    assert int_product.multiply in (multiply_avx2, multiply_portable)
    assert int_product.padded_dims(1) == 32
