from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.retro.leakage import chunks_up_to_ratio, leakage_curve, longest_shared_runs

from .synthetic import near_copies, random_table


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_the_longest_run_is_that_of_every_pair_of_slices(sizes: list[int], vocab: int, k: int, seed: int) -> None:
    data = random_table(np.random.default_rng(seed), sizes, k=3, vocab=vocab)
    runs = longest_shared_runs(data, k)
    for row in range(len(data.query_tokens)):
        query = data.query_tokens[row][: data.query_lengths[row]].tolist()
        values = data.neighbour_values(np.array([row]), k)[0].tolist()
        best = max(
            (n for value in values for n in range(1, len(query) + 1) for i in range(len(query) - n + 1)
             for j in range(len(value) - n + 1) if query[i : i + n] == value[j : j + n]),
            default=0,
        )  # fmt: skip
        assert runs.length[row] == best
        start, there, value = runs.start[row], runs.neighbour_start[row], values[runs.neighbour[row]]
        assert query[start : start + best] == value[there : there + best]


def test_a_copy_leaks_everything_and_a_missing_neighbour_nothing() -> None:
    data = near_copies(20, noise=0.0)
    assert (longest_shared_runs(data).ratio == 1.0).all()
    assert longest_shared_runs(data.without()).histogram().tolist() == [80] + [0] * 16


def test_the_curve_is_total_loss_over_total_bytes_up_to_alpha() -> None:
    data = near_copies(50, noise=0.3)
    runs, rng = longest_shared_runs(data), np.random.default_rng(0)
    bits = rng.random(len(data.query_tokens))
    num_bytes = rng.integers(1, 9, len(bits))
    curve = leakage_curve(runs, bits, num_bytes)
    for alpha in range(17):
        chosen = runs.ratio <= alpha / 16
        expected = bits[chosen].sum() / num_bytes[chosen].sum() if chosen.any() else np.nan
        assert np.isclose(curve[alpha], expected, equal_nan=True)
    for i, count in enumerate(runs.histogram().tolist()):
        assert count == ((runs.ratio >= i / 16) & (runs.ratio < (i + 1) / 16)).sum()
    everything = replace(runs, length=np.full(len(bits), 16))
    assert np.isnan(leakage_curve(everything, bits, num_bytes)[:16]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 99), st.data())
def test_only_chunks_that_were_looked_up_count_each_by_its_own_length(
    sizes: list[int], seed: int, drawn: st.DataObject
) -> None:
    """Whatever the lengths are and whichever chunks were looked up: every number equals one over the looked-up chunks alone."""
    data = random_table(np.random.default_rng(seed), sizes, k=3, vocab=3)
    count, m = len(data.query_tokens), data.chunk_tokens
    is_looked_up = np.array(drawn.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    runs = longest_shared_runs(data, is_looked_up=is_looked_up)
    chosen = np.flatnonzero(is_looked_up)
    ratios = [Fraction(int(runs.length[row]), int(data.query_lengths[row])) for row in chosen]
    assert runs.num_measured == len(ratios)
    assert np.isnan(runs.ratio[~is_looked_up]).all()
    assert runs.ratio[is_looked_up].tolist() == [float(ratio) for ratio in ratios]
    assert runs.histogram().tolist() == [sum(int(ratio * m) == i for ratio in ratios) for i in range(m + 1)]
    assert chunks_up_to_ratio(runs).tolist() == [sum(ratio <= Fraction(i, m) for ratio in ratios) for i in range(m + 1)]
    if ratios:
        assert runs.fraction_from(1 / 8) == sum(ratio >= Fraction(1, 8) for ratio in ratios) / len(ratios)
    bits = np.arange(count, dtype=np.float64)
    curve = leakage_curve(runs, bits, np.ones(count, dtype=np.int64))
    for i in range(m + 1):
        below = [bits[row] for row, ratio in zip(chosen, ratios, strict=True) if ratio <= Fraction(i, m)]
        assert np.isclose(curve[i], np.mean(below) if below else np.nan, equal_nan=True)
