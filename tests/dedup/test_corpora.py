"""What is known of the real corpora."""

from __future__ import annotations

import io
import itertools
import tarfile
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real_corpora import DATA, content

from retrodb.dedup.exact_scan import scan_texts
from retrodb.dedup.leak_rule import LeakRule, parse_rule
from retrodb.dedup.lsh import join_band, parse_bands, sort_bands, unique_pairs
from retrodb.dedup.minhash import signatures
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingle_table import ShingleTable, build_shingle_table
from retrodb.dedup.shingles import ShingleSets, shingle_sets
from retrodb.dedup.testset_items import read_test_items

pytestmark = [pytest.mark.corpora, pytest.mark.skipif(not DATA.exists(), reason="no corpora next to the repository")]


def archive_texts(name: str, folder: str = "") -> pa.LargeStringArray:
    with tarfile.open(fileobj=io.BytesIO(content(name))) as archive:
        members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith(".md") and folder in m.name]
        files = [archive.extractfile(m) for m in sorted(members, key=lambda m: m.name)]
        return pa.array([file.read().decode(errors="replace") for file in files if file], pa.large_string())


def table_of(name: str) -> ShingleTable:
    items = read_test_items([DATA / "eval" / f"{name}.jsonl.zst"])
    return build_shingle_table(items.texts, items.ids)


@pytest.fixture(scope="module")
def books() -> pa.LargeStringArray:
    return archive_texts("classic-books.md.tar.zst")


def test_mmlu_rows_in_classic_books_are_found(books: pa.LargeStringArray) -> None:
    hits = scan_texts(books, table_of("mmlu-test")).hits
    assert len(np.unique(hits.item)) == 31
    assert len(np.unique(hits.item[parse_rule("containment>=0.5").is_leak(hits)])) == 20
    assert not parse_rule("jaccard>=0.8").is_leak(hits).any()


CLEAN = ["gsm8k-test", "xquad-paragraphs", "xquad-questions", "pubmedqa", "nq-open-dev", "wikitext2-test"]


@pytest.mark.parametrize("name", CLEAN)
def test_clean_test_sets_have_no_hit_in_any_corpus(books: pa.LargeStringArray, name: str) -> None:
    table = table_of(name)
    law = pq.read_table(str(DATA / "dc-law.parquet"))["text"].combine_chunks()
    wikipedia = read_test_items([DATA / "wikipedia-en.jsonl.zst"]).texts
    for corpus in (books, law, wikipedia):
        result = scan_texts(corpus, table)
        assert len(result.hits) == 0, np.unique(result.hits.item)
        assert len(result.short_hits.item) == 0


def brute_force_pairs(a: ShingleSets, b: ShingleSets, rule: LeakRule) -> list[list[int]]:
    """All pairs over the threshold, by counting the keys that both have, for every pair."""
    num_a = len(a.sizes())
    left, right = ([set(part.tolist()) for part in np.split(s.keys, s.offsets[1:-1])] for s in (a, b))
    pairs = []
    for i, j in itertools.product(range(len(left)), range(len(right))):
        both = len(left[i] & right[j])
        if both and Fraction(both, len(left[i]) + len(right[j]) - both) >= rule.threshold:
            pairs.append([i, num_a + j])
    return pairs


# Of the EIPs that moved to the ERCs the old collection has the texts, the new one stubs.
@pytest.mark.parametrize(("folder", "at_least"), [("EIPs/new", 2), ("EIPs/old", 300)])
def test_near_duplicates_of_eips_and_ercs_are_those_of_brute_force(folder: str, at_least: int) -> None:
    eips, ercs = archive_texts("eips-ercs.tar.zst", folder), archive_texts("eips-ercs.tar.zst", "ERCs/new")
    texts, rule = pa.concat_arrays([eips, ercs]), parse_rule("jaccard>=0.8")
    expected = brute_force_pairs(shingle_sets(eips), shingle_sets(ercs), rule)
    run = sort_bands(signatures(texts, 256), np.arange(len(texts)), parse_bands("32x8", 256))
    pairs = unique_pairs(np.concatenate([block.pairs for band in run for block in join_band([band])]))
    intersection, union = intersection_and_union(pairs, shingle_sets(texts))
    verified = pairs[(intersection > 0) & rule.is_reached(intersection, union)]
    across = verified[(verified[:, 0] < len(eips)) & (verified[:, 1] >= len(eips))]
    assert across.tolist() == expected
    assert len(expected) >= at_least
