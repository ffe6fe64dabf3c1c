"""Products of codes: AVX2, the compiled portable loops, the same loops in plain Python, and a matrix product agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from retrodb.ann.codegen import code_product
from retrodb.ann.codegen.code_product import PANEL, ROWS, PanelColumns, multiply_avx2, multiply_portable
from retrodb.ann.codegen.llvm import has_avx2
from retrodb.ann.codegen.six_bit_codes import LEVELS

Product = Callable[..., int]
in_plain_python: Product = multiply_portable.py_func  # type: ignore[attr-defined]
NEEDS_AVX2 = pytest.mark.skipif(not has_avx2(), reason="no AVX2")


@pytest.mark.parametrize(
    ("multiply", "groups"),
    [
        *((multiply_portable, groups) for groups in (1, 2, 12, 48)),
        *(pytest.param(multiply_avx2, groups, marks=NEEDS_AVX2) for groups in (1, 2, 12, 48)),
        (in_plain_python, 1),
        (in_plain_python, 2),
    ],
)
def test_products_of_extreme_codes_are_exact(multiply: Product, groups: int) -> None:
    random, dims, panels = np.random.default_rng(groups), 32 * groups, 3
    queries = random.integers(0, 2 * LEVELS + 1, (20, dims)).astype(np.uint8)
    queries[:3] = 2 * LEVELS
    codes = random.integers(-LEVELS, LEVELS + 1, (panels * PANEL, dims)).astype(np.int8)
    codes[:5], codes[20:22] = LEVELS, -LEVELS
    packed = codes.reshape(panels, PANEL, dims // 4, 4).transpose(0, 2, 1, 3).ravel()
    rows = np.array([0, 1, 2, 19, 7, 7])
    sums = LEVELS * codes.sum(axis=1, dtype=np.int64)
    affine = np.stack([random.random(len(codes)), random.random(len(codes)), sums]).astype(np.float32)
    weights, limits = random.random(ROWS).astype(np.float32), np.zeros(ROWS, dtype=np.float32)
    distances = np.empty((ROWS, PANEL), dtype=np.float32)
    for panel in range(panels):
        columns = slice(panel * PANEL, (panel + 1) * PANEL)
        products = (queries[rows].astype(int) - LEVELS) @ codes[columns].astype(int).T
        scaled = affine[1, columns] * products.astype(np.float32)
        expected = affine[0, columns] - weights[:, None] * scaled
        is_close = multiply(queries, rows, PanelColumns(packed, affine), panel, weights, limits, distances)
        np.testing.assert_array_equal(distances, expected)
        assert [bool(is_close >> r & 1) for r in range(ROWS)] == (expected <= 0).any(axis=1).tolist()


@NEEDS_AVX2
@pytest.mark.parametrize("seed", range(5))
def test_avx2_gives_the_bits_of_the_portable_loops(seed: int) -> None:
    random, dims = np.random.default_rng(seed), 32 * (seed + 1)
    queries = random.integers(0, 2 * LEVELS + 1, (9, dims)).astype(np.uint8)
    panels = random.integers(-LEVELS, LEVELS + 1, 2 * PANEL * dims).astype(np.int8)
    affine = random.standard_normal((3, 2 * PANEL)).astype(np.float32)
    affine[0, -3:], affine[1, -3:] = np.inf, 0  # columns without a vector
    weights, limits = random.standard_normal((2, ROWS)).astype(np.float32)
    limits[0], limits[1] = np.inf, -np.inf
    results = []
    for multiply in (multiply_avx2, multiply_portable):
        distances = np.empty((2, ROWS, PANEL), dtype=np.float32)
        rows, columns = np.arange(ROWS)[::-1].copy(), PanelColumns(panels, affine)
        is_close = [multiply(queries, rows, columns, p, weights, limits, distances[p]) for p in range(2)]
        results.append((is_close, distances.tobytes()))
    assert results[0] == results[1]


def test_the_scan_uses_avx2_where_the_processor_has_it() -> None:
    assert code_product.multiply is (multiply_avx2 if has_avx2() else multiply_portable)
