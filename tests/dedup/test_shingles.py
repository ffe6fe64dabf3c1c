"""Shingles against a plain Python reading of their specification."""

from __future__ import annotations

import functools
import itertools
import random
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrodb.dedup.codepoints import UNASSIGNED, codepoint_tables
from retrodb.dedup.normalise import normalised_batches
from retrodb.dedup.shingles import shingle_sets, words_of
from retrodb.errors import InputError, UsageError
from retrodb.format.text_arrays import join_chunk_texts

MASK = (1 << 64) - 1
SINGLES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B)),
    *((0x3041, 0x30FF), (0x31F0, 0x31FF), (0x1B000, 0x1B16F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),
    (0x20000, 0x3FFFF),
)


@functools.cache
def is_single(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in SINGLES)


@functools.lru_cache(maxsize=4)
def reference_words(text: str) -> list[str]:
    text = "".join(" " if codepoint_tables().word_class[ord(c)] == UNASSIGNED else c for c in text)
    text = "".join("i" if c == "\u0130" else c.lower() for c in unicodedata.normalize("NFKC", text))
    words: list[list[str]] = []
    inside = False
    for char in text:
        category = unicodedata.category(char)[0]
        if category in "LMN" and is_single(char):
            words.append([char])
            inside = False
        elif category in "LN" or (category == "M" and inside):
            if not inside:
                words.append([])
            words[-1].append(char)
            inside = True
        else:
            inside = False
    return ["".join(word) for word in words]


def fmix64(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


@functools.cache
def word_hash(word: str) -> int:
    h = 0xCBF29CE484222325
    for byte in word.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return fmix64(h)


def reference_keys(text: str, ngram: int) -> list[int]:
    hashes, keys = [word_hash(word) for word in reference_words(text)], set()
    for i in range(len(hashes) - ngram + 1):
        value = 0
        for h in hashes[i : i + ngram]:
            value = value * 0x9E3779B97F4A7C15 + h & MASK
        keys.add(fmix64(value))
    return sorted(keys)


def assert_equal_to_reference(texts: list[str], ngram: int) -> None:
    sets = shingle_sets(pa.array(texts, pa.large_string()), ngram)
    for row, text in enumerate(texts):
        keys = sets.keys[sets.offsets[row] : sets.offsets[row + 1]]
        assert keys.tolist() == reference_keys(text, ngram), (row, text)
        assert sets.num_words[row] == len(reference_words(text))
        assert words_of(text) == reference_words(text)


def test_every_unicode_block_gives_the_keys_of_the_reference() -> None:
    rng = random.Random(0)
    texts = []
    for block in range(0, 0x110000, 0x80):
        is_uniform = 0x3400 < block < 0x9F00 or 0xAC80 < block < 0xD700 or 0x20000 < block < 0xE0000
        if 0xD800 <= block < 0xE000 or block >= 0xF0000 or (is_uniform and rng.random() < 0.95):
            continue
        # Every codepoint of the block among letters, marks, jamo and halfwidth forms that join with it.
        company = [*range(0x20, 0x7F), *range(0x300, 0x350), *range(0x1160, 0x1180), *range(0xFF9E, 0xFFA5), 0x30AB]
        chars = [c for codepoint in range(block, block + 0x80) for c in (codepoint, rng.choice(company))]
        texts.append("".join(map(chr, chars)))
        rng.shuffle(chars)
        texts.append("".join(map(chr, chars)))
    assert_equal_to_reference(texts, 2)


@given(st.lists(st.text(max_size=60), max_size=5), st.integers(1, 15))
@settings(max_examples=150, deadline=None)
def test_any_texts_give_the_keys_of_the_reference(texts: list[str], ngram: int) -> None:
    assert_equal_to_reference(texts, ngram)


def test_words_follow_the_specification() -> None:
    text = "Don't_stop: №5 ﬁne CAFE\u0301 \u2764\ufe0f नमस्ते 漢字かなカ ภาษา İSS ΣΑΣ \U0001f600"
    assert words_of(text) == [
        *("don", "t", "stop", "no5", "fine", "café", "नमस्ते", "漢", "字", "か", "な", "カ"),
        *("ภ", "า", "ษ", "า", "iss", "σασ"),
    ]  # fmt: skip


def test_repetitive_and_long_texts_give_the_keys_of_the_reference() -> None:
    assert_equal_to_reference(["la " * 1000, "… a\u0301 " * 300, "x" * 5000, "漢" * 1000], 13)


def test_slices_string_arrays_and_nulls_give_the_same_shingles() -> None:
    texts = ["ignored", "one two three", None, "… four\u00a0five six", "", "seven eight"]
    whole = shingle_sets(pa.array([text or "" for text in texts[1:]], pa.large_string()), 2)
    for kind in (pa.string(), pa.large_string()):
        sliced = shingle_sets(pa.array(texts, kind).slice(1), 2)
        assert np.array_equal(sliced.keys, whole.keys)
        assert np.array_equal(sliced.offsets, whole.offsets)
    assert len(shingle_sets(pa.array([], pa.large_string())).keys) == 0


def test_documents_are_a_view_of_their_chunks() -> None:
    rows = pa.array(["skipped", "one tw", "o three", "", "four"], pa.large_string())
    documents = join_chunk_texts(rows.slice(1), np.array([0, 2, 2, 4]))
    assert documents.to_pylist() == ["one two three", "", "four"]
    assert documents.buffers()[2].address == rows.buffers()[2].address


@given(st.lists(st.text(alphabet="ab \u0301é½…漢\uff0c\uac00\u1161\u11a8", max_size=30), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_normalised_batches_are_nfkc_and_positions_lead_back(texts: list[str]) -> None:
    for batch in normalised_batches(pa.array(texts, pa.large_string()), max_bytes=16):
        for i in range(len(batch.begins)):
            text = texts[batch.first_document + i]
            normal = bytes(batch.data[batch.begins[i] : batch.ends[i]])
            assert normal.decode() == unicodedata.normalize("NFKC", text)
            if i not in batch.offset_maps:
                assert normal == text.encode()
                continue
            # The original between the two positions must hold all that is between them in the normal form.
            bounds = [len(normal.decode()[:k].encode()) for k in range(len(normal.decode()) + 1)]
            for a, b in itertools.pairwise(bounds):
                start = batch.offset_maps[i].original_starts(np.array([a]))[0]
                end = batch.offset_maps[i].original_ends(np.array([b]))[0]
                assert normal[a:b].decode() in unicodedata.normalize("NFKC", text.encode()[start:end].decode())


def test_a_text_cut_inside_a_character_is_not_read_beyond_its_end() -> None:
    data = pa.py_buffer("one \u00e9\u6f22\U0001f600".encode())
    for end in range(4, 14):
        array = pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, end], np.int64)), data)
        assert shingle_sets(array, 1).num_words[0] == 1 + (end >= 6) + (end >= 9)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="0 words"):
        shingle_sets(pa.array(["a"], pa.large_string()), 0)
    with pytest.raises(InputError, match="must be strings"):
        shingle_sets(pa.array([1, 2]))
