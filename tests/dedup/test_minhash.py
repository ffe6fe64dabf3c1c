"""MinHash signatures, bands, candidates and clusters."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.dedup.leak_rule import LeakRule
from retrodb.dedup.lsh import (
    BAND_DTYPE,
    Banding,
    SortedBands,
    join_band,
    parse_bands,
    prefix_rows,
    sort_bands,
    unique_pairs,
)
from retrodb.dedup.minhash import NO_SHINGLES, signatures
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingles import shingle_sets
from retrodb.dedup.union_find import CONTENT_DTYPE, choose_keepers, connected_components, equal_content_pairs
from retrodb.errors import UsageError

JACCARD_80 = LeakRule("jaccard", Fraction(4, 5))


def texts_array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@given(st.lists(st.text(alphabet="abc é漢", max_size=80), min_size=1, max_size=4), st.sampled_from([1, 7, 128, 256]))
@settings(max_examples=60, deadline=None)
def test_signatures_equal_datasketch_bit_for_bit(texts: list[str], num_permutations: int) -> None:
    sets = shingle_sets(texts_array(texts), 2)
    for seed in (1, 42):
        ours = signatures(texts_array(texts), num_permutations, seed, ngram=2)
        for row in range(len(texts)):
            theirs = MinHash(num_permutations, seed=seed, hashfunc=lambda key: int(key) & 0xFFFFFFFF)
            theirs.update_batch(sets.keys[sets.offsets[row] : sets.offsets[row + 1]])
            assert ours.dtype == theirs.hashvalues.dtype
            assert np.array_equal(ours[row], theirs.hashvalues)


def corrupted(rng: random.Random, text: str, count: int) -> str:
    words = text.split()
    for _ in range(count):
        words[rng.randrange(len(words))] = f"x{rng.randrange(10**9)}"
    return " ".join(words)


def joined(
    new: SortedBands, old: SortedBands | None = None, num_prefixes: int = 1, max_bucket: int = 100, max_pairs: int = 7
) -> tuple[list[list[int]], int]:
    """The candidates of all bands, prefix by prefix, and the number of hot buckets."""
    blocks = [
        block
        for band in range(len(new))
        for prefix in range(num_prefixes)
        for block in join_band(
            [new[band, prefix_rows(new["hash"][band], prefix, num_prefixes)]],
            [] if old is None else [old[band, prefix_rows(old["hash"][band], prefix, num_prefixes)]],
            max_bucket,
            max_pairs,
        )
    ]
    pairs = unique_pairs(np.concatenate([np.empty((0, 2), np.int64), *(block.pairs for block in blocks)]))
    return pairs.tolist(), sum(block.num_hot_buckets for block in blocks)


def test_minhash_recall_is_what_its_bands_predict() -> None:
    rng = random.Random(0)
    originals = [" ".join(f"w{rng.randrange(20_000)}" for _ in range(rng.randrange(150, 400))) for _ in range(1500)]
    copies = [corrupted(rng, text, round(len(text.split()) / 13 * 0.3 * i / 1500)) for i, text in enumerate(originals)]
    texts, bands = texts_array(originals + copies), Banding(9, 13)
    sets, pairs = shingle_sets(texts), np.stack([np.arange(1500), np.arange(1500) + 1500], axis=1)
    true = pairs[JACCARD_80.is_reached(*intersection_and_union(pairs, sets))]
    keys = [set(sets.keys[sets.offsets[d] : sets.offsets[d + 1]].tolist()) for d in range(3000)]
    jaccard = np.array([len(keys[a] & keys[b]) / len(keys[a] | keys[b]) for a, b in true.tolist()])
    candidates = np.array(joined(sort_bands(signatures(texts), np.arange(3000), bands))[0])
    recalled = np.isin(true[:, 1], candidates[candidates[:, 1] - candidates[:, 0] == 1500, 1])
    misses = bands.miss_probability(jaccard)
    assert len(true) > 500
    assert misses.sum() > 20  # bands that miss enough to be measured
    assert abs((~recalled).sum() - misses.sum()) < 4 * np.sqrt((misses * (1 - misses)).sum())


def test_expected_miss_is_the_formula_of_the_bands() -> None:
    assert Banding(9, 13).miss_probability(np.array([0.8]))[0] == pytest.approx((1 - 0.8**13) ** 9)
    assert Banding(32, 8).expected_miss(0.8) < Banding(16, 8).expected_miss(0.8) < 0.01
    assert parse_bands("16x8", 128) == Banding(16, 8)
    for text in ("16x9", "0x8", "16", "x", "-1x8"):
        with pytest.raises(UsageError, match="bands"):
            parse_bands(text, 128)


@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=25), st.integers(0, 25))
@settings(max_examples=100, deadline=None)
def test_candidates_are_the_pairs_that_agree_in_a_band_however_they_came(rows: list[list[int]], split: int) -> None:
    sketch, ids, bands = np.array(rows, np.uint32), np.arange(len(rows)) * 3 + 1, Banding(3, 2)
    expected = [
        (ids[a], ids[b]) for a, b in combinations(range(len(rows)), 2)
        if any(rows[a][k : k + 2] == rows[b][k : k + 2] for k in (0, 2, 4))
    ]  # fmt: skip
    whole = sort_bands(sketch, ids, bands)
    assert joined(whole) == ([list(pair) for pair in expected], 0)
    assert joined(whole, num_prefixes=4, max_pairs=1) == joined(whole)
    old, new = sort_bands(sketch[:split], ids[:split], bands), sort_bands(sketch[split:], ids[split:], bands)
    assert sorted(joined(old)[0] + joined(new, old, num_prefixes=2)[0]) == joined(whole)[0]


def test_hot_bucket_gives_the_pairs_with_its_smallest_id_and_is_counted() -> None:
    sketch = np.ones((20, 4), np.uint32)
    assert joined(sort_bands(sketch, np.arange(20), Banding(2, 2)), max_bucket=10) == (
        [[0, i] for i in range(1, 20)],
        2,
    )


def test_blocks_of_candidates_are_bounded() -> None:
    entries = np.array([(bucket, document) for bucket in range(50) for document in range(3)], BAND_DTYPE)
    blocks = list(join_band([entries], max_pairs=6))
    assert sum(len(block.pairs) for block in blocks) > 6 * 6
    assert max(len(block.pairs) for block in blocks) <= 12


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.sampled_from([1, 2, 8]))
@settings(max_examples=100, deadline=None)
def test_every_row_has_one_prefix(values: list[int], num_prefixes: int) -> None:
    hashes = np.sort(np.array(values, np.uint64))
    parts = [hashes[prefix_rows(hashes, prefix, num_prefixes)] for prefix in range(num_prefixes)]
    assert np.array_equal(np.concatenate(parts), hashes)
    for prefix, part in enumerate(parts):
        assert all(value * num_prefixes >> 64 == prefix for value in part.tolist())


def test_documents_without_shingles_are_no_candidates() -> None:
    sketch = signatures(texts_array(["too short", "also short", ""]))
    assert (sketch == NO_SHINGLES).all()
    assert sort_bands(sketch, np.arange(3), Banding(16, 8)).shape == (16, 0)


@given(st.lists(st.text(alphabet="ab ", min_size=5, max_size=40), min_size=2, max_size=8))
@settings(max_examples=100, deadline=None)
def test_verified_pairs_are_those_of_brute_force(texts: list[str]) -> None:
    sets = shingle_sets(texts_array(texts), 1)
    keys = [set(sets.keys[sets.offsets[d] : sets.offsets[d + 1]].tolist()) for d in range(len(texts))]
    pairs = np.array(list(combinations(range(len(texts)), 2)))
    expected = [bool(keys[a] & keys[b]) and 5 * len(keys[a] & keys[b]) >= 4 * len(keys[a] | keys[b]) for a, b in pairs]
    intersection, union = intersection_and_union(pairs, sets)
    assert ((intersection > 0) & JACCARD_80.is_reached(intersection, union)).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=15))
@settings(max_examples=100, deadline=None)
def test_clusters_are_connected_components_named_by_their_smallest(edges: list[tuple[int, int]]) -> None:
    groups = {d: {d} for d in range(12)}
    for a, b in edges:
        for member in (joined := groups[a] | groups[b]):
            groups[member] = joined
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    labels = connected_components(12, [pairs[:4], pairs[4:]])
    assert labels.tolist() == [min(groups[d]) for d in range(12)]


def test_keeper_follows_the_rule_and_ties_go_to_the_first() -> None:
    labels = np.array([0, 0, 0, 3, 3, 5])
    lengths, added_at = np.array([5, 9, 9, 1, 1, 0]), np.array([1, 3, 2, 7, 8, 0])
    assert choose_keepers(labels, "first", lengths, added_at).tolist() == [0, 0, 0, 3, 3, 5]
    assert choose_keepers(labels, "longest", lengths, added_at).tolist() == [1, 1, 1, 3, 3, 5]
    assert choose_keepers(labels, "newest", lengths, added_at).tolist() == [1, 1, 1, 4, 4, 5]


def test_equal_contents_are_always_found() -> None:
    contents = [(1, 1, 40), (2, 1, 10), (1, 1, 20), (1, 2, 30), (1, 1, 0), (2, 1, 50)]
    assert equal_content_pairs(np.array(contents, CONTENT_DTYPE)).tolist() == [[0, 20], [0, 40], [10, 50]]
    assert equal_content_pairs(np.empty(0, CONTENT_DTYPE)).shape == (0, 2)
