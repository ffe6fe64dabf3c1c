"""The exact leak scan: which documents share shingles with which items of a test set, how many, and where.

Shapes: `M` documents, `H` hits (pairs of a document and an item with a shingle in common), `R` byte ranges, `K` keys
of the table.

The shingles of a document are computed and looked up in one pass over its words. A bit filter rejects most of them, and a
hash table with open addressing decides the others. All later work is for the few shingles that are in the table. Nothing is
estimated: the intersection, both sizes and the similarities are those of the full shingle sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from retrodb.dedup.codepoints import codepoint_tables
from retrodb.dedup.normalise import normalised_batches
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingle_table import ShingleTable, find_key
from retrodb.dedup.shingles import WordBuffers, ngram_keys, split_words, whole_text_key, word_buffers, words_of
from retrodb.format.arrays import BoolArray, ByteArray, Float64Array, Int32Array, Int64Array, UInt64Array

TINY_SET = 3  # shingles; up to here one collision of 64-bit keys could decide, so the words are compared


@dataclass(frozen=True)
class Hits:
    """All pairs of a document and an item with a common shingle, ordered by document, then item."""

    document: Int64Array  # (H,) row in the texts
    item: Int64Array  # (H,) item of the table
    intersection: Int64Array  # (H,) distinct shingles in both
    document_size: Int64Array  # (H,) distinct shingles of the document
    item_size: Int64Array  # (H,) distinct shingles of the item
    counted: Int64Array  # (H,) shingles of the intersection that count for containment (not excluded as too frequent)
    counted_size: Int64Array  # (H,) distinct shingles of the item that count for containment
    range_offsets: Int64Array  # (H + 1,) first range of each hit, and the end of the last
    range_start: Int64Array  # (R,) first byte, in the document, of consecutive words that common shingles cover
    range_end: Int64Array  # (R,) its end; the ranges of a hit ascend and do not touch

    def __len__(self) -> int:
        return len(self.document)

    def jaccard(self) -> Float64Array:
        """(H,) Jaccard similarity of the shingle sets, for reports. It is rounded; `LeakRule` compares without rounding."""
        return self.intersection / (self.document_size + self.item_size - self.intersection)

    def containment(self) -> Float64Array:
        """(H,) fraction of the item's counted shingles that are in the document."""
        return self.counted / np.maximum(self.counted_size, 1)

    def take(self, chosen: Int64Array) -> Hits:
        """The hits at the positions `chosen`, ascending."""
        sizes = np.diff(self.range_offsets)[chosen]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        ranges = np.repeat(self.range_offsets[:-1][chosen] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Hits(
            self.document[chosen], self.item[chosen], self.intersection[chosen],
            self.document_size[chosen], self.item_size[chosen], self.counted[chosen], self.counted_size[chosen],
            offsets, self.range_start[ranges], self.range_end[ranges],
        )  # fmt: skip

    def renumbered(self, documents: Int64Array) -> Hits:
        """The same hits of documents that are `documents[i]`, ascending, in a larger array of texts."""
        return replace(self, document=documents[self.document])


@dataclass(frozen=True)
class ShortHits:
    """Documents of fewer than n words that have exactly the words of an item, ordered by document, then item."""

    document: Int64Array  # (S,) row in the texts
    item: Int64Array  # (S,) item of the table


@dataclass(frozen=True)
class ScanResult:
    """The result of one scan."""

    hits: Hits
    short_hits: ShortHits
    num_words: Int64Array  # (M,) words of each document; 0 for one that was not scanned


@dataclass(frozen=True)
class _Occurrences:
    """The occurrences of the keys of the table, ordered by document, then position; and counts per document."""

    document: Int64Array  # (O,)
    key: Int64Array  # (O,) position in the table's keys
    start: Int64Array  # (O,) first byte of the n-gram in the document
    end: Int64Array  # (O,) its end
    num_words: Int64Array  # (M,)
    sizes: Int64Array  # (M,) distinct shingles; 0 for a document without occurrences
    whole_keys: UInt64Array  # (M,) whole-text key of a document of fewer than n words


def scan_texts(texts: pa.Array, table: ShingleTable, excluded: BoolArray | None = None) -> ScanResult:
    """Compare documents with a test set.

    Args:
        texts: (M,) documents, a LargeStringArray (or a StringArray, which is copied).
        table: the test set.
        excluded: (K,) keys that do not count for containment, from `frequent_keys`.
    """
    occurrences = _find_occurrences(texts, table)
    excluded_keys = np.zeros(0, np.int64) if excluded is None else np.flatnonzero(excluded)
    hits = _verify_tiny(_group(occurrences, table, excluded_keys), texts, table)
    return ScanResult(hits, _match_short(occurrences, texts, table), occurrences.num_words)


def count_documents(texts: pa.Array, table: ShingleTable) -> Int64Array:
    """(K,) the number of documents that have each key. Counts of different texts can be added."""
    occurrences = _find_occurrences(texts, table)
    pairs = np.unique(np.stack([occurrences.document, occurrences.key]), axis=1)
    return np.bincount(pairs[1], minlength=len(table.keys))


def frequent_keys(counts: Int64Array, num_documents: int, max_fraction: float) -> BoolArray:
    """(K,) whether a key is in more than `max_fraction` of the documents, so that containment should not count it."""
    return counts > max_fraction * num_documents


def touched_chunks(starts: Int64Array, ends: Int64Array, chunk_offsets: Int64Array) -> Int64Array:
    """The chunks of a document, ascending, that overlap with byte ranges (R,) of the document.

    Args:
        chunk_offsets: (C + 1,) first byte of each chunk in the document, and the end of the last chunk.
    """
    first = np.searchsorted(chunk_offsets, starts, "right") - 1
    last = np.searchsorted(chunk_offsets, ends, "left")  # exclusive
    change = np.bincount(first, minlength=len(chunk_offsets)) - np.bincount(last, minlength=len(chunk_offsets))
    return np.flatnonzero(np.cumsum(change) > 0)


def _find_occurrences(texts: pa.Array, table: ShingleTable) -> _Occurrences:
    folded, parts = codepoint_tables().folded, []
    for batch in normalised_batches(texts):
        rows, *counts = _look_up(
            batch.data, batch.begins, batch.ends, folded, table.ngram,
            table.keys, table.slots, table.filter_bits, word_buffers(batch.begins, batch.ends),
        )  # fmt: skip
        for document in batch.offset_maps.keys() & set(rows[:, 0].tolist()):
            is_of_document, offset_map = rows[:, 0] == document, batch.offset_maps[document]
            rows[is_of_document, 2] = offset_map.original_starts(rows[is_of_document, 2])
            rows[is_of_document, 3] = offset_map.original_ends(rows[is_of_document, 3])
        rows[:, 0] += batch.first_document
        parts.append((rows, *counts))
    none = np.zeros(0, np.int64)
    parts = parts or [(np.zeros((0, 4), np.int64), none, none, np.zeros(0, np.uint64))]
    rows, num_words, sizes, whole_keys = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Occurrences(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3], num_words, sizes, whole_keys)


def _group(occurrences: _Occurrences, table: ShingleTable, excluded_keys: Int64Array) -> Hits:
    """One hit per document and item: an occurrence counts for every item that has its key."""
    index, posting = _postings(table, occurrences.key)
    item = table.posting_items[posting].astype(np.int64)
    order = np.lexsort((item, occurrences.document[index]))  # stable: by position within a hit
    index, item = index[order], item[order]
    document, key = occurrences.document[index], occurrences.key[index]
    start, end = occurrences.start[index], occurrences.end[index]
    is_first = _differs(document) | _differs(item)
    hit = np.cumsum(is_first) - 1

    by_key = np.lexsort((key, hit))
    is_distinct = _differs(hit[by_key]) | _differs(key[by_key])
    distinct_hit, distinct_key = hit[by_key][is_distinct], key[by_key][is_distinct]
    num_hits = int(is_first.sum())
    intersection = np.bincount(distinct_hit, minlength=num_hits)
    counted = np.bincount(distinct_hit[~np.isin(distinct_key, excluded_keys)], minlength=num_hits)
    excluded_items = table.posting_items[_postings(table, excluded_keys)[1]]
    counted_sizes = table.item_sizes - np.bincount(excluded_items, minlength=table.num_items)

    # The n-grams of a hit start and end in the same order. A range ends before an n-gram that starts after its end.
    is_new = is_first.copy()
    is_new[1:] |= start[1:] > end[:-1]
    firsts = np.flatnonzero(is_new)
    lasts = np.append(firsts[1:], len(start)) - 1 if len(firsts) else firsts
    document, item = document[is_first], item[is_first]
    return Hits(
        document, item, intersection, occurrences.sizes[document], np.asarray(table.item_sizes)[item],
        counted, counted_sizes[item],
        np.searchsorted(hit[firsts], np.arange(num_hits + 1)), start[firsts], end[lasts],
    )  # fmt: skip


def _match_short(occurrences: _Occurrences, texts: pa.Array, table: ShingleTable) -> ShortHits:
    documents = np.flatnonzero((occurrences.num_words > 0) & (occurrences.num_words < table.ngram))
    first = np.searchsorted(table.short_keys, occurrences.whole_keys[documents], "left")
    last = np.searchsorted(table.short_keys, occurrences.whole_keys[documents], "right")
    index, posting = _expand(first, last - first)
    document, item = documents[index], table.short_items[posting].astype(np.int64)
    is_equal = [
        words_of(texts[d].as_py()) == words_of(table.text(i))
        for d, i in zip(document.tolist(), item.tolist(), strict=True)
    ]
    chosen = np.array(is_equal, bool)
    order = np.lexsort((item[chosen], document[chosen]))
    return ShortHits(document[chosen][order], item[chosen][order])


def _verify_tiny(hits: Hits, texts: pa.Array, table: ShingleTable) -> Hits:
    """Count the intersections with sets of up to `TINY_SET` shingles again, by words instead of keys."""
    intersection = hits.intersection.copy()
    for hit in np.flatnonzero(np.minimum(hits.document_size, hits.item_size) <= TINY_SET).tolist():
        text = texts[int(hits.document[hit])].as_py().encode()
        ranges = range(hits.range_offsets[hit], hits.range_offsets[hit + 1])
        pieces = (text[hits.range_start[r] : hits.range_end[r]].decode() for r in ranges)
        grams = {gram for piece in pieces for gram in _word_grams(piece, table.ngram)}
        shared = len(grams & _word_grams(table.text(int(hits.item[hit])), table.ngram))
        intersection[hit] = min(intersection[hit], shared)
    if np.array_equal(intersection, hits.intersection):
        return hits
    checked = replace(hits, intersection=intersection, counted=np.minimum(hits.counted, intersection))
    return checked.take(np.flatnonzero(intersection))


def _word_grams(text: str, ngram: int) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)}


def _postings(table: ShingleTable, keys: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The pairs (i, p) for every i and every posting p of keys[i]."""
    return _expand(table.posting_offsets[keys], table.posting_offsets[keys + 1] - table.posting_offsets[keys])


def _expand(first: Int64Array, count: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The pairs (i, p) for every i and every p of first[i] .. first[i] + count[i] - 1, as two arrays."""
    index = np.repeat(np.arange(len(first)), count)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def _differs(values: Int64Array) -> BoolArray:
    """Whether each value differs from the value before it. True for the first."""
    return np.concatenate([np.ones(min(len(values), 1), np.bool_), values[1:] != values[:-1]])


@kernel
def _look_up(
    data: ByteArray, begins: Int64Array, ends: Int64Array, folded: Int32Array, ngram: int,
    table_keys: UInt64Array, slots: Int32Array, filter_bits: ByteArray,
    words: WordBuffers,
) -> tuple[Int64Array, Int64Array, Int64Array, UInt64Array]:  # fmt: skip
    """Occurrences (O, 4) as (document, key, start, end); words, sizes and whole-text keys of the documents."""
    num_words, sizes = np.zeros(len(begins), np.int64), np.zeros(len(begins), np.int64)
    whole_keys, rows = np.zeros(len(begins), np.uint64), np.empty((1024, 4), np.int64)
    used, shift = 0, np.uint64(64)
    bits = len(filter_bits) * 8
    while bits > 1:
        bits, shift = bits >> 1, shift - np.uint64(1)
    keys = np.empty_like(words.hashes)
    for document in range(len(begins)):
        count = split_words(data, begins[document], ends[document], folded, words)
        num_words[document] = count
        if 0 < count < ngram:
            whole_keys[document] = whole_text_key(words.hashes[:count])
        length, before = ngram_keys(words.hashes[:count], ngram, keys), used
        for i in range(length):
            bit = keys[i] >> shift
            if not filter_bits[bit >> np.uint64(3)] >> (bit & np.uint64(7)) & np.uint64(1):
                continue
            position = find_key(keys[i], table_keys, slots)
            if position < 0:
                continue
            if used == len(rows):
                rows = np.concatenate((rows, np.empty_like(rows)))
            rows[used, 0], rows[used, 1] = document, position
            rows[used, 2], rows[used, 3] = words.starts[i], words.ends[i + ngram - 1]
            used += 1
        if used > before:
            sizes[document] = _count_distinct(keys[:length])
    return rows[:used].copy(), num_words, sizes, whole_keys


@kernel
def _count_distinct(keys: UInt64Array) -> int:
    """The number of distinct keys (L,), counted with a hash set with open addressing."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots, mask = np.zeros(size, np.uint64), np.uint64(size - 1)
    count, has_zero = 0, 0
    for key in keys:
        if key == 0:  # the value of a free slot
            has_zero = 1
            continue
        slot = key & mask
        while slots[slot] != 0 and slots[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == 0:
            slots[slot] = key
            count += 1
    return count + has_zero
