from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.ann.codegen.six_bit_codes import (
    LEVELS,
    CodeSpace,
    empty_query_codes,
    encode_queries,
    encode_queries_portable,
    encode_vector,
    encode_vector_portable,
    padded_dims,
)

FLOATS = st.floats(2.0**-100, 2.0**100, width=32).flatmap(lambda value: st.sampled_from([value, -value]))


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1, max_size=70))
def test_codes_of_a_vector_equal_their_portable_definition(values: list[float]) -> None:
    vector = np.array(values, dtype=np.float32)
    codes = np.full(len(vector), 99, dtype=np.int8)
    scale = np.float32(encode_vector(vector, codes))
    expected_codes, expected_scale = encode_vector_portable(vector)
    assert codes.tolist() == expected_codes.tolist()
    assert scale.tobytes() == expected_scale.tobytes()


@pytest.mark.parametrize("is_l2", [False, True])
@pytest.mark.parametrize("dim", [1, 32, 45])
def test_codes_of_queries_equal_their_portable_definition(dim: int, is_l2: bool) -> None:
    random = np.random.default_rng(dim)
    queries = random.standard_normal((6, dim)).astype(np.float32)
    queries[4:] = 0
    space = CodeSpace(queries[5] if dim == 1 else random.standard_normal(dim).astype(np.float32), is_l2)
    codes, expected = empty_query_codes(6, dim), encode_queries_portable(queries, space)
    encode_queries(0, 2, queries, space, codes)
    encode_queries(2, 6, queries, space, codes)
    assert codes.codes_QD.tolist() == expected.codes_QD.tolist()
    assert codes.codes_QD.max() <= 2 * LEVELS
    assert codes.weights_Q.tobytes() == expected.weights_Q.tobytes()


def test_dimensions_are_padded_to_whole_groups() -> None:
    assert [padded_dims(dim) for dim in (1, 32, 33, 384)] == [32, 32, 64, 384]
