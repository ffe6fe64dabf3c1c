"""The leak scan against brute force over sets of word tuples."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.dedup.exact_scan import Hits, count_documents, frequent_keys, scan_texts, touched_chunks
from retrodb.dedup.leak_rule import LeakRule, parse_rule
from retrodb.dedup.shingle_table import (
    ShingleTable,
    build_shingle_table,
    fill_slots,
    find_key,
    load_shingle_table,
    save_shingle_table,
)
from retrodb.dedup.shingles import words_of
from retrodb.errors import DamagedFileError, MismatchError, MissingFileError, UsageError


def texts_array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def table_of(items: list[str], ngram: int) -> ShingleTable:
    return build_shingle_table(texts_array(items), [f"item-{i}" for i in range(len(items))], ngram)


def grams(text: str, ngram: int) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)}


def brute_force(documents: list[str], items: list[str], ngram: int) -> list[tuple[int, ...]]:
    item_grams = [grams(item, ngram) for item in items]
    hits = []
    for d, document_grams in enumerate(grams(document, ngram) for document in documents):
        hits += [
            (d, i, len(document_grams & g), len(document_grams), len(g))
            for i, g in enumerate(item_grams)
            if document_grams & g
        ]
    return hits


def as_tuples(hits: Hits) -> list[tuple[int, ...]]:
    columns = (hits.document, hits.item, hits.intersection, hits.document_size, hits.item_size)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def ranges_of(hits: Hits, hit: int) -> list[tuple[int, int]]:
    ranges = slice(hits.range_offsets[hit], hits.range_offsets[hit + 1])
    return list(zip(hits.range_start[ranges].tolist(), hits.range_end[ranges].tolist(), strict=True))


# Few words, so that shingles repeat within and between texts; separators and letters that NFKC changes.
words = st.sampled_from(["a", "b", "B", "é", "e\u0301", "ﬁ", "fi", "漢", "½"])
texts_of_words = st.lists(
    st.lists(words, max_size=25).flatmap(lambda w: st.sampled_from([" ", "…", "\u00a0, "]).map(lambda s: s.join(w))),
    min_size=1,
    max_size=6,
)


@given(texts_of_words, texts_of_words, st.integers(1, 13))
@settings(max_examples=200, deadline=None)
def test_scan_equals_brute_force(documents: list[str], items: list[str], ngram: int) -> None:
    result = scan_texts(texts_array(documents), table_of(items, ngram))
    assert as_tuples(result.hits) == brute_force(documents, items, ngram)
    assert result.num_words.tolist() == [len(words_of(document)) for document in documents]
    short = [
        (d, i)
        for d, document in enumerate(documents)
        for i, item in enumerate(items)
        if 0 < len(words_of(document)) < ngram and words_of(document) == words_of(item)
    ]
    assert list(zip(result.short_hits.document.tolist(), result.short_hits.item.tolist(), strict=True)) == short


@given(texts_of_words, texts_of_words, st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_ranges_hold_every_shared_shingle_and_what_is_left_has_none(docs: list[str], items: list[str], n: int) -> None:
    hits = scan_texts(texts_array(docs), table_of(items, n)).hits
    for hit in range(len(hits)):
        text, item = docs[hits.document[hit]].encode(), grams(items[hits.item[hit]], n)
        ranges = ranges_of(hits, hit)
        assert all(start < end for start, end in ranges)
        inside = set().union(*(grams(text[start:end].decode(), n) for start, end in ranges))
        assert inside >= grams(text.decode(), n) & item
        bounds = [0, *itertools.chain(*ranges), len(text)]
        outside = [text[a:b].decode() for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
        assert not set().union(*(grams(piece, n) for piece in outside)) & item


def test_results_do_not_depend_on_how_documents_are_grouped() -> None:
    rng = random.Random(3)
    documents = [" ".join(rng.choices("abcd", k=rng.randrange(60))) for _ in range(50)]
    table = table_of([" ".join(rng.choices("abcd", k=20)) for _ in range(30)], 4)
    whole = scan_texts(texts_array(documents), table).hits
    parts = [scan_texts(texts_array(documents).slice(i, 7), table).hits for i in range(0, 50, 7)]
    for name in ("item", "intersection", "document_size", "range_start", "range_end"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


def test_planted_corruptions_are_found_exactly_at_the_threshold() -> None:
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(5000)]
    items = [" ".join(rng.choices(vocabulary, k=rng.randrange(100, 200))) for _ in range(1500)]
    documents = []
    for i, item in enumerate(items):  # every corrupted word takes up to 13 shingles with it
        changed = item.split()
        for _ in range(round(len(changed) / 13 * 0.35 * i / 1500)):
            changed[rng.randrange(len(changed))] = "corrupted"
        documents.append(" ".join(changed))
    hits = scan_texts(texts_array(documents), table_of(items, 13)).hits
    jaccard_of = {d: Fraction(i, a + b - i) for d, item, i, a, b in brute_force_diagonal(documents, items) if d == item}
    assert min(jaccard_of.values()) < Fraction(3, 5)
    assert sum(Fraction(7, 10) < jaccard < Fraction(9, 10) for jaccard in jaccard_of.values()) > 300
    flagged = hits.document[LeakRule("jaccard", Fraction(4, 5)).is_leak(hits)]
    assert flagged.tolist() == [d for d, jaccard in sorted(jaccard_of.items()) if jaccard >= Fraction(4, 5)]


def brute_force_diagonal(documents: list[str], items: list[str]) -> list[tuple[int, ...]]:
    return [
        (i, i, *row[2:]) for i in range(len(items)) for row in brute_force(documents[i : i + 1], items[i : i + 1], 13)
    ]


def test_threshold_is_not_rounded() -> None:
    # 8 of 10 shingles in the union: exactly 0.8; a hundred-millionth less is no leak.
    common = " ".join(f"c{i}" for i in range(8))
    hits = scan_texts(texts_array([common + " x y", common + " x y z"]), table_of([common], 1)).hits
    assert parse_rule("jaccard>=0.8").is_leak(hits).tolist() == [True, False]
    assert parse_rule("jaccard>=0.800001").is_leak(hits).tolist() == [False, False]


def test_boilerplate_counts_for_jaccard_but_not_for_containment() -> None:
    licence = "licensed under the terms of the licence"
    documents = [f"{licence} document {i} here" for i in range(9)] + ["own words of the item only"]
    table = table_of([f"{licence} own words of the item only"], 3)
    half = [count_documents(texts_array(part), table) for part in (documents[:4], documents[4:])]
    counts = half[0] + half[1]
    assert np.array_equal(counts, count_documents(texts_array(documents), table))
    excluded = frequent_keys(counts, len(documents), 0.5)
    plain, counted = (
        scan_texts(texts_array(documents), table).hits,
        scan_texts(texts_array(documents), table, excluded).hits,
    )
    assert as_tuples(plain) == as_tuples(counted)
    assert counted.counted.tolist() == [0] * 9 + [4]
    assert parse_rule("containment>=0.3").is_leak(plain).tolist() == [True] * 10
    assert parse_rule("containment>=0.3").is_leak(counted).tolist() == [False] * 9 + [True]


def test_colliding_keys_do_not_remove_a_tiny_document() -> None:
    item, document = "one two three", "four five six"
    table = table_of([item], 3)
    collided = table_of([document], 3)  # as if both 3-grams had the same key
    forged = replace(table, keys=collided.keys, slots=collided.slots, filter_bits=collided.filter_bits)
    assert len(scan_texts(texts_array([document]), forged).hits) == 0
    assert len(scan_texts(texts_array([item]), table).hits) == 1


def test_chained_slots_are_found() -> None:
    keys = np.array(sorted((i << 20) | 1023 for i in range(300)), np.uint64)  # all want the last of 1,024 slots
    slots = fill_slots(keys, 1024)
    assert [find_key(key, keys, slots) for key in keys] == list(range(300))
    assert find_key(np.uint64(999 << 20 | 1023), keys, slots) == -1


def test_saved_table_is_mapped_and_scans_the_same(tmp_path: Path) -> None:
    for items in (["a b c d", "é", "b c d e"], ["too short"], []):
        table = table_of(items, 3)
        save_shingle_table(table, tmp_path)
        loaded = load_shingle_table(tmp_path.iterdir())
        documents = texts_array(["x a b c d e", "É", "too short"])
        assert as_tuples(scan_texts(documents, loaded).hits) == as_tuples(scan_texts(documents, table).hits)
        assert [loaded.text(i) for i in range(loaded.num_items)] == items
        assert [loaded.id(i) for i in range(loaded.num_items)] == [f"item-{i}" for i in range(len(items))]


def test_missing_damaged_and_foreign_tables_are_refused(tmp_path: Path) -> None:
    table = table_of(["a b c d"], 3)
    save_shingle_table(table, tmp_path)
    np.save(tmp_path / "header.npy", np.array([99, 3]))
    with pytest.raises(MismatchError, match="version 99"):
        load_shingle_table(tmp_path.iterdir())
    (tmp_path / "header.npy").write_bytes(b"no array")
    with pytest.raises(DamagedFileError):
        load_shingle_table(tmp_path.iterdir())
    (tmp_path / "header.npy").unlink()
    with pytest.raises(MissingFileError):
        load_shingle_table(tmp_path.iterdir())


def test_touched_chunks_are_all_that_a_range_overlaps() -> None:
    offsets = np.array([0, 10, 20, 20, 30])  # the third chunk has no text of its own
    for start, end, expected in [(0, 10, [0]), (9, 11, [0, 1]), (10, 20, [1]), (15, 25, [1, 2, 3]), (20, 30, [3])]:
        assert touched_chunks(np.array([start]), np.array([end]), offsets).tolist() == expected
    assert touched_chunks(np.array([0, 29]), np.array([1, 30]), offsets).tolist() == [0, 3]
    assert touched_chunks(np.zeros(0, np.int64), np.zeros(0, np.int64), offsets).tolist() == []


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_without_touched_chunks_no_ngram_of_an_item_is_in_a_chunk_and_its_continuation(seed: int) -> None:
    rng = random.Random(seed)
    page = [f"p{rng.randrange(40)}" for _ in range(rng.randrange(10, 60))]
    items = [" ".join(f"q{rng.randrange(9)}" for _ in range(8)) for _ in range(2)]
    for item in items:
        page.insert(rng.randrange(len(page)), item)
    chunks, rest = [], " ".join(page) + " "
    while rest:  # chunks end at word ends
        end = rest.index(" ", min(rng.randrange(1, 30), len(rest) - 1)) + 1
        chunks, rest = [*chunks, rest[:end]], rest[end:]
    hits = scan_texts(texts_array(["".join(chunks)]), table_of(items, 4)).hits
    offsets = np.cumsum([0, *map(len, chunks)])
    removed = set(touched_chunks(hits.range_start, hits.range_end, offsets).tolist())
    assert removed
    for c in set(range(len(chunks))) - removed:
        continuation = chunks[c + 1] if c + 1 < len(chunks) and c + 1 not in removed else ""
        assert not any(grams(chunks[c] + continuation, 4) & grams(item, 4) for item in items)


def test_rules_are_parsed_exactly_or_refused() -> None:
    assert parse_rule("jaccard>=0.8") == LeakRule("jaccard", Fraction(4, 5))
    assert parse_rule(" containment >= 1 ") == LeakRule("containment", Fraction(1))
    assert str(parse_rule("containment>=0.25")) == "containment>=0.25"
    for text in ("jaccard>0.8", "jaccard>=0", "jaccard>=1.1", "cosine>=0.5", "jaccard>=.8e0", ""):
        with pytest.raises(UsageError, match="is not a rule"):
            parse_rule(text)
