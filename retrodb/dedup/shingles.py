"""Shingles: the 64-bit keys of the word n-grams of a text. This docstring specifies SHINGLE_VERSION 1.

1. **Characters.** Those of Unicode 14.0. A codepoint that is not assigned there counts as a space. The text, valid UTF-8,
   is normalised to NFKC. Then each codepoint is mapped to its simple lower case (UnicodeData.txt, field 13: U+0130
   becomes `i`, and there is no rule for a final sigma).
2. **Words.** Letters and numbers are the codepoints of general category L* and N*, marks those of M*. Codepoints of these
   categories in the following ranges are words by themselves: U+0E00-0EFF (Thai, Lao), 1000-109F (Myanmar), 1780-17FF
   (Khmer), 3005-3007, 3021-3029, 3038-303B, 3041-30FF, 31F0-31FF, 1B000-1B16F (kana), 3400-4DBF, 4E00-9FFF,
   F900-FAFF, 20000-3FFFF (ideographs). All other words are maximal runs of letters, numbers and marks that begin with a
   letter or number. All other codepoints separate words.
3. **Word hash.** FNV-1a of 64 bits over the word's UTF-8 (offset 0xCBF29CE484222325, prime 0x100000001B3), then
   fmix64, the finaliser of MurmurHash3: `h ^= h >> 33; h *= 0xFF51AFD7ED558CCD; h ^= h >> 33; h *=
   0xC4CEB9FE1A85EC53; h ^= h >> 33`.
4. **Key.** `fmix64(w[0] * B^(n-1) + w[1] * B^(n-2) + ... + w[n-1])` modulo 2^64, with B = 0x9E3779B97F4A7C15, for
   every n consecutive words of a text. A text of W words has W - n + 1 shingles, which may repeat. Its *shingle set* has
   the distinct ones. A text of 1 to n - 1 words has no shingles but one *whole-text key*: the same formula for all its
   words.

Jaccard similarity and containment are those of shingle sets. Equal n-grams have equal keys. Different n-grams have equal
keys with probability 2^-64. For sets so small that one such error decides, `exact_scan` compares the words themselves.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from retrodb.dedup.codepoints import LETTER, MARK, SINGLE, UNASSIGNED, codepoint_tables
from retrodb.dedup.normalise import decode_codepoint, normalised_batches
from retrodb.dedup.numba_kernel import kernel
from retrodb.errors import UsageError
from retrodb.format.arrays import ByteArray, Int32Array, Int64Array, UInt64Array

SHINGLE_VERSION = 1
NGRAM = 13  # words of a shingle in Borgeaud et al. 2022, section 2.6

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
POLYNOMIAL_BASE = np.uint64(0x9E3779B97F4A7C15)
_SHIFT, _MIX_1, _MIX_2 = np.uint64(33), np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


@dataclass(frozen=True)
class ShingleSets:
    """The shingle sets of M texts, one text after the other."""

    keys: UInt64Array  # distinct and ascending within a text
    offsets: Int64Array  # (M + 1,) first key of each text, and the end of the last
    whole_keys: UInt64Array  # (M,) whole-text key of a text of 1 to n - 1 words; 0 for other texts
    num_words: Int64Array  # (M,) words of each text

    def sizes(self) -> Int64Array:
        """(M,) distinct shingles of each text."""
        return np.diff(self.offsets)


def check_ngram(ngram: int) -> None:
    """Raises UsageError if the number of words of a shingle is not positive."""
    if ngram < 1:
        raise UsageError(f"invalid n-gram of {ngram} words", remedy="Use 1 or more. RETRO uses 13.")


def shingle_sets(texts: pa.Array, ngram: int = NGRAM) -> ShingleSets:
    """The shingle set of every text (M,).

    Raises:
        UsageError: `ngram` is less than 1.
    """
    check_ngram(ngram)
    folded = codepoint_tables().folded
    parts = [
        _shingle_sets(batch.data, batch.begins, batch.ends, folded, ngram, word_buffers(batch.begins, batch.ends))
        for batch in normalised_batches(texts)
    ] or [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64))]
    keys, sizes, whole_keys, num_words = (np.concatenate(column) for column in zip(*parts, strict=True))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return ShingleSets(keys, offsets, whole_keys, num_words)


def words_of(text: str) -> list[str]:
    """The words of a text by steps 1 and 2 of the specification, as strings. Slow: for a few texts."""
    tables = codepoint_tables()
    assigned = "".join(" " if tables.word_class[ord(char)] == UNASSIGNED else char for char in text)
    lowered = "".join(chr(tables.lower[ord(char)]) for char in unicodedata.normalize("NFKC", assigned))
    classes = "".join(str(tables.word_class[ord(char)]) for char in lowered)
    return [
        lowered[match.start() : match.end()] for match in re.finditer(f"{LETTER}[{LETTER}{MARK}]*|{SINGLE}", classes)
    ]


class WordBuffers(NamedTuple):
    """Room for the words of one document: entry i is word i. numba reads it like three arrays."""

    hashes: UInt64Array
    starts: Int64Array  # first byte, from the start of the document
    ends: Int64Array  # end, from the start of the document


def word_buffers(begins: Int64Array, ends: Int64Array) -> WordBuffers:
    """Room for the words of the longest document, used for one document after the other."""
    # Words are at least one byte apart, or have three bytes.
    capacity = int((ends - begins).max(initial=0)) // 2 + 1
    return WordBuffers(np.empty(capacity, np.uint64), np.empty(capacity, np.int64), np.empty(capacity, np.int64))


@kernel
def fmix64(value: np.uint64) -> np.uint64:
    """The finaliser of MurmurHash3, a bijection of 64 bits."""
    value = (value ^ (value >> _SHIFT)) * _MIX_1
    value = (value ^ (value >> _SHIFT)) * _MIX_2
    return value ^ (value >> _SHIFT)


@kernel
def _hash_codepoint(value: np.uint64, codepoint: int) -> np.uint64:
    """FNV-1a over the UTF-8 of one codepoint."""
    if codepoint < 0x80:
        return (value ^ np.uint64(codepoint)) * FNV_PRIME
    if codepoint < 0x800:
        value = (value ^ np.uint64(0xC0 | codepoint >> 6)) * FNV_PRIME
    else:
        if codepoint < 0x10000:
            value = (value ^ np.uint64(0xE0 | codepoint >> 12)) * FNV_PRIME
        else:
            value = (value ^ np.uint64(0xF0 | codepoint >> 18)) * FNV_PRIME
            value = (value ^ np.uint64(0x80 | codepoint >> 12 & 0x3F)) * FNV_PRIME
        value = (value ^ np.uint64(0x80 | codepoint >> 6 & 0x3F)) * FNV_PRIME
    return (value ^ np.uint64(0x80 | codepoint & 0x3F)) * FNV_PRIME


@kernel
def split_words(data: ByteArray, begin: int, end: int, folded: Int32Array, words: WordBuffers) -> int:
    """Write hash, start and end of every word of data[begin:end] to `words`. Returns their number W."""
    count, i = 0, begin
    while i < end:
        start, codepoint, i = i, np.int64(data[np.uint64(i)]), i + 1
        if codepoint >= 0x80:
            codepoint, i = decode_codepoint(data, start, end)
        entry = folded[np.uint64(codepoint)]
        kind = entry & 7
        if kind not in (LETTER, SINGLE):
            continue
        value, stop = _hash_codepoint(FNV_OFFSET, entry >> 3), i
        while kind in (LETTER, MARK) and i < end:
            codepoint, i = np.int64(data[np.uint64(i)]), i + 1
            if codepoint >= 0x80:
                codepoint, i = decode_codepoint(data, i - 1, end)
            entry = folded[np.uint64(codepoint)]
            kind = entry & 7
            if kind in (LETTER, MARK):
                value, stop = _hash_codepoint(value, entry >> 3), i
        if kind == SINGLE:
            i = stop  # the codepoint after the word is a word, too
        words.hashes[count], words.starts[count], words.ends[count] = fmix64(value), start - begin, stop - begin
        count += 1
    return count


@kernel
def ngram_keys(words: UInt64Array, ngram: int, keys: UInt64Array) -> int:
    """Write the keys of the n-grams of `words` (W,) to `keys`, in order. Returns their number L."""
    value, leaving = np.uint64(0), np.uint64(1)
    for _ in range(ngram):
        leaving *= POLYNOMIAL_BASE
    for i in range(len(words)):
        value = value * POLYNOMIAL_BASE + words[i]
        if i >= ngram:
            value -= words[i - ngram] * leaving
        if i >= ngram - 1:
            keys[i - ngram + 1] = fmix64(value)
    return max(len(words) - ngram + 1, 0)


@kernel
def whole_text_key(words: UInt64Array) -> np.uint64:
    """The whole-text key of the words (W,) of a short text."""
    value = np.uint64(0)
    for word in words:
        value = value * POLYNOMIAL_BASE + word
    return fmix64(value)


@kernel
def _shingle_sets(
    data: ByteArray, begins: Int64Array, ends: Int64Array, folded: Int32Array, ngram: int,
    words: WordBuffers,
) -> tuple[UInt64Array, Int64Array, UInt64Array, Int64Array]:  # fmt: skip
    total = np.int64(0)
    for document in range(len(begins)):
        total += (ends[document] - begins[document]) // 2 + 1
    keys, sizes = np.empty(total, np.uint64), np.zeros(len(begins), np.int64)
    whole_keys, num_words = np.zeros(len(begins), np.uint64), np.zeros(len(begins), np.int64)
    used = 0
    for document in range(len(begins)):
        count = split_words(data, begins[document], ends[document], folded, words)
        num_words[document] = count
        if 0 < count < ngram:
            whole_keys[document] = whole_text_key(words.hashes[:count])
        length = ngram_keys(words.hashes[:count], ngram, keys[used:])
        if length > 0:
            sizes[document] = sort_distinct(keys[used : used + length])
            used += sizes[document]
    return keys[:used].copy(), sizes, whole_keys, num_words


@kernel
def sort_distinct(keys: UInt64Array) -> int:
    """Sort keys (L >= 1,) in place and move the distinct keys to the front. Returns their number."""
    keys.sort()
    count = 1
    for i in range(1, len(keys)):
        if keys[i] != keys[count - 1]:
            keys[count] = keys[i]
            count += 1
    return count
