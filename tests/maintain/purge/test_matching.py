"""The compiled search for traces finds what the plain definitions find."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_text

from retrodb.dedup.shingles import shingle_sets
from retrodb.maintain.purge.matching import ValueSet, matching_runs, matching_shingles, row_values, token_runs
from retrodb.maintain.purge.traces import whole_keys


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**32), st.sampled_from(["u2", "u4", "i4", "i8"]))
def test_runs_of_tokens_are_found_where_they_are(num_rows: int, length: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, (num_rows, length)).astype(dtype)
    values = token_runs(tokens).ravel()
    traces = np.unique(values[rng.random(len(values)) < 0.5])
    found = matching_runs(tokens, ValueSet.of(traces))
    expected = np.flatnonzero(np.isin(values, traces))
    starts = max(length - 15, 1)
    positions = found.positions if length == 0 else found.positions // length * starts + found.positions % length
    assert positions.tolist() == expected.tolist()
    assert found.values.tolist() == values[expected].tolist()
    assert found.num_compared == len(values)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(0, 2**32))
def test_words_are_found_in_the_texts_that_have_them(lengths: list[int], seed: int) -> None:
    texts = pa.array([made_text(seed + n % 3, length) for n, length in enumerate(lengths)], pa.large_string())
    sets, rng = shingle_sets(texts), np.random.default_rng(seed)
    everything = np.unique(np.concatenate([sets.keys, whole_keys(sets)]))
    traces = everything[rng.random(len(everything)) < 0.5]
    found = matching_shingles(texts, ValueSet.of(traces))
    of_text = np.repeat(np.arange(len(texts)), sets.sizes())
    expected = {(n, v) for n, v in zip(of_text.tolist(), sets.keys.tolist(), strict=True)}
    expected |= {(n, v) for n, v in enumerate(sets.whole_keys.tolist()) if v}
    wanted = set(traces.tolist())
    assert set(zip(found.positions.tolist(), found.values.tolist(), strict=True)) == {
        e for e in expected if e[1] in wanted
    }


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8])
def test_values_of_rows_are_weighted_sums_of_their_numbers(dtype: type) -> None:
    rows = np.random.default_rng(0).integers(0, 100, (50, 24)).astype(dtype)
    unsigned = np.uint16 if dtype is np.float16 else np.uint8
    weights = np.random.Generator(np.random.PCG64(rows.dtype.itemsize)).integers(0, 1 << 63, 24, dtype=np.uint64)
    expected = ((rows.view(unsigned).astype(np.uint64) + np.uint64(1)) * (2 * weights + np.uint64(1))).sum(axis=1)
    assert row_values(rows).tolist() == expected.tolist()
    assert row_values(rows[::-1]).tolist() == expected[::-1].tolist()


def test_more_traces_than_expected_in_a_block_are_all_found() -> None:
    tokens = np.zeros((300, 64), np.uint16)
    traces = ValueSet.of(np.unique(token_runs(tokens)))
    assert len(matching_runs(tokens, traces).positions) == 300 * 49
    values = np.sort(np.random.default_rng(1).integers(0, 1 << 63, 100_000, dtype=np.uint64))
    assert ValueSet.of(values[::2]).contains(values).tolist() == [n % 2 == 0 for n in range(len(values))]
