"""The inner product and the distances against their portable definitions, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codegen.compiled import compiled
from retrodb.ann.codegen.distances import (
    fixed_affine,
    fixed_affine_portable,
    fixed_distances,
    fixed_distances_portable,
)
from retrodb.ann.codegen.dot import dot, dot_portable


@compiled
def dot_of(a: np.ndarray, b: np.ndarray) -> np.float32:
    return dot(a, b)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 99), st.sampled_from([1.0, 1e-30, 1e18]))
def test_the_inner_product_equals_its_portable_definition_at_every_length(length: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    a, b = (scale * random.standard_normal((2, length))).astype(np.float32)
    assert np.float32(dot_of(a, b)).tobytes() == np.float32(dot_portable(a, b)).tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(0, 99))
def test_the_inner_product_is_right_at_every_length(length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((2, length)).astype(np.float32)
    assert abs(float(dot_of(a, b)) - float(a.astype(np.float64) @ b)) < 1e-4


@pytest.mark.parametrize("is_l2", [False, True])
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100])
def test_distances_of_candidates_equal_their_portable_definition(dim: int, is_l2: bool) -> None:
    random = np.random.default_rng(dim)
    queries, vectors = (random.standard_normal((n, dim)).astype(np.float32) for n in (5, 9))
    rows = random.integers(-1, 9, (5, 4))
    by_kernel, by_definition = (np.full(rows.shape, np.inf, dtype=np.float32) for _ in range(2))
    fixed_distances(queries, rows, vectors, is_l2, by_kernel)
    fixed_distances_portable(queries, rows, vectors, is_l2, by_definition)
    assert by_kernel.tobytes() == by_definition.tobytes()


@pytest.mark.parametrize("num_inputs", [0, 1, 7])
def test_an_affine_map_equals_its_portable_definition(num_inputs: int) -> None:
    random = np.random.default_rng(0)
    inputs, matrix, bias = (
        random.standard_normal(shape).astype(np.float32) for shape in ((num_inputs, 70), (5, 70), (5,))
    )
    outputs = np.empty((num_inputs, 5), dtype=np.float32)
    fixed_affine(inputs, matrix, bias, outputs)
    assert outputs.tobytes() == fixed_affine_portable(inputs, matrix, bias).tobytes()
