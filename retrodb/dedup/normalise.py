"""Arrow texts as bytes in NFKC, in batches, and the map from normalised bytes back to the original bytes.

Nearly all text is already in NFKC. It is read from the Arrow buffer without a copy. In other text only the *clusters* that
NFKC may change are passed to `unicodedata`. A cluster is a codepoint that does not combine with the one before it, and all
following codepoints that may combine. The normal form of a text is the concatenation of the normal forms of its clusters
(UAX #15, section 9.1), so the result is equal to normalising the whole text.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrodb.dedup.codepoints import JOINING, KEPT, NUM_CODEPOINTS, REPLACED, UNASSIGNED, codepoint_tables
from retrodb.dedup.numba_kernel import kernel
from retrodb.errors import InputError
from retrodb.format.arrays import ByteArray, Int64Array
from retrodb.format.text_arrays import text_buffers

BATCH_BYTES = 1 << 20  # fits the second-level cache together with its word hashes
STRIDE = 32  # bytes that are tested together
_REPLACEMENT = np.int64(0xFFFD)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)
MAX_TEXT_BYTES = (1 << 31) - 1  # positions inside a batch are 32-bit


@dataclass(frozen=True)
class OffsetMap:
    """The C changed clusters of one document, before and after: ascending (C,) offsets in the document."""

    old_starts: Int64Array
    old_ends: Int64Array
    new_starts: Int64Array
    new_ends: Int64Array

    def original_starts(self, positions: Int64Array) -> Int64Array:
        """Original offsets of first bytes. A byte inside a changed cluster gives the start of the cluster."""
        cluster = np.searchsorted(self.new_starts, positions, "right") - 1
        is_inside = (cluster >= 0) & (positions < self.new_ends[cluster])
        return np.where(is_inside, self.old_starts[cluster], positions + self._shift(cluster))

    def original_ends(self, positions: Int64Array) -> Int64Array:
        """Original offsets of ends (exclusive). An end inside a changed cluster gives the end of the cluster."""
        cluster = np.searchsorted(self.new_starts, positions, "left") - 1
        is_inside = (cluster >= 0) & (positions < self.new_ends[cluster])
        return np.where(is_inside, self.old_ends[cluster], positions + self._shift(cluster))

    def _shift(self, cluster: Int64Array) -> Int64Array:
        return np.where(cluster >= 0, self.old_ends[cluster] - self.new_ends[cluster], 0)


@dataclass(frozen=True)
class NormalisedBatch:
    """Consecutive documents as normalised UTF-8."""

    first_document: int  # its row in the texts
    data: ByteArray  # the bytes of all documents, and possibly other bytes
    begins: Int64Array  # (M,) first byte of each in `data`
    ends: Int64Array  # (M,) end of each
    offset_maps: dict[
        int, OffsetMap
    ]  # document of the batch -> its changed clusters; no entry for an unchanged document


def normalised_batches(texts: pa.Array, max_bytes: int = BATCH_BYTES) -> Iterator[NormalisedBatch]:
    """Normalise texts (M,) in batches of at most `max_bytes`, or of one longer document.

    Raises:
        InputError: a text has 2 GiB or more.
    """
    data, offsets = text_buffers(texts)
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + max_bytes, "right")) - 1
        last = min(max(last, first + 1), count)
        if offsets[last] - offsets[first] > MAX_TEXT_BYTES:
            raise InputError("a text of 2 GiB or more cannot be scanned", where=f"document {first}")
        yield _normalise_batch(data[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first], first)
        first = last


def _normalise_batch(data: ByteArray, offsets: Int64Array, first_document: int) -> NormalisedBatch:
    begins, ends = offsets[:-1].copy(), offsets[1:].copy()
    tables, offset_maps, parts, size = codepoint_tables(), {}, [data], len(data)
    for document in np.flatnonzero(_has_non_ascii(data, offsets)).tolist():
        begin, end = int(begins[document]), int(ends[document])
        clusters = _find_clusters(data[begin:end], tables.nfkc_state, tables.combining)
        if len(clusters) == 0:
            continue
        new, offset_maps[document] = _normalise(data[begin:end], clusters)
        parts.append(new)
        begins[document], ends[document] = size, size + len(new)
        size += len(new)
    return NormalisedBatch(first_document, np.concatenate(parts) if offset_maps else data, begins, ends, offset_maps)


def _normalise(old: ByteArray, clusters: NDArray[np.int64]) -> tuple[ByteArray, OffsetMap]:
    """A text with its clusters (C, 2) normalised: clusters of one codepoint by table, others by `unicodedata`."""
    starts, table = _replacements()
    codepoints = _single_codepoints(old, clusters)
    sources, lengths = starts[codepoints], starts[codepoints + 1] - starts[codepoints]
    replacements, size = [table], len(table)
    for c in np.flatnonzero(lengths == 0).tolist():
        new = _nfkc(old[clusters[c, 0] : clusters[c, 1]].tobytes())
        replacements.append(np.frombuffer(new, np.uint8))
        sources[c], lengths[c] = size, len(new)
        size += len(new)
    new_ends = clusters[:, 1] + np.cumsum(lengths - (clusters[:, 1] - clusters[:, 0]))
    offset_map = OffsetMap(clusters[:, 0], clusters[:, 1], new_ends - lengths, new_ends)
    new_text = np.empty(len(old) + new_ends[-1] - clusters[-1, 1], np.uint8)
    pieces = np.concatenate(replacements) if len(replacements) > 1 else table
    _splice(old, clusters, pieces, sources, lengths, new_text)
    return new_text, offset_map


@functools.cache
def _replacements() -> tuple[Int64Array, ByteArray]:
    """(NUM_CODEPOINTS + 1,) offsets into the UTF-8 that replaces each codepoint in NFKC. Most codepoints have none."""
    tables = codepoint_tables()
    replaced = np.flatnonzero((tables.nfkc_state == REPLACED) & (tables.word_class != UNASSIGNED))
    texts = [unicodedata.normalize("NFKC", chr(codepoint)).encode() for codepoint in replaced.tolist()]
    starts = np.zeros(NUM_CODEPOINTS + 1, np.int64)
    starts[replaced + 1] = [len(text) for text in texts]
    return np.cumsum(starts), np.frombuffer(b"".join(texts), np.uint8)


@functools.lru_cache(maxsize=1 << 16)
def _nfkc(cluster: bytes) -> bytes:
    # A codepoint that is not in Unicode 14.0 is a separator, even if a later version has it.
    word_class = codepoint_tables().word_class
    text = cluster.decode("utf-8", errors="replace")
    known = "".join(" " if word_class[ord(char)] == UNASSIGNED else char for char in text)
    return unicodedata.normalize("NFKC", known).encode()


@kernel
def _single_codepoints(data: ByteArray, clusters: NDArray[np.int64]) -> Int64Array:
    """(C,) the codepoint of each cluster of one codepoint; 0, which has no replacement, for the others."""
    codepoints = np.zeros(len(clusters), np.int64)
    for c in range(len(clusters)):
        codepoint, i = decode_codepoint(data, clusters[c, 0], clusters[c, 1])
        if i == clusters[c, 1]:
            codepoints[c] = codepoint
    return codepoints


@kernel
def _splice(
    old: ByteArray, clusters: NDArray[np.int64], pieces: ByteArray, sources: Int64Array, lengths: Int64Array, new: ByteArray
) -> None:  # fmt: skip
    """Write the old text to `new`, with pieces[source : source + length] instead of its clusters."""
    done, end = 0, 0
    for c in range(len(clusters)):
        kept = clusters[c, 0] - done
        new[end : end + kept] = old[done : clusters[c, 0]]
        end += kept
        new[end : end + lengths[c]] = pieces[sources[c] : sources[c] + lengths[c]]
        end += lengths[c]
        done = clusters[c, 1]
    new[end:] = old[done:]


@kernel
def _has_non_ascii(data: ByteArray, offsets: Int64Array) -> NDArray[np.bool_]:
    has_non_ascii = np.zeros(len(offsets) - 1, np.bool_)
    for document in range(len(has_non_ascii)):
        bits = np.uint8(0)
        for i in range(offsets[document], offsets[document + 1]):
            bits |= data[i]
        has_non_ascii[document] = bits >= 0x80
    return has_non_ascii


@kernel
def decode_codepoint(data: ByteArray, i: int, end: int) -> tuple[np.int64, int]:
    """The codepoint that begins at data[i], a byte of 0x80 or more, and its end; U+FFFD if it is not UTF-8."""
    # Indices are unsigned, here and below, because numba tests signed indices for negative values.
    first, lead = np.uint64(i), np.int64(data[np.uint64(i)])
    if 0xC2 <= lead < 0xE0 and i + 2 <= end:
        return (lead & 0x1F) << 6 | _low_bits(data, first + _ONE), i + 2
    if 0xE0 <= lead < 0xF0 and i + 3 <= end:
        return (lead & 0x0F) << 12 | _low_bits(data, first + _ONE) << 6 | _low_bits(data, first + _TWO), i + 3
    if 0xF0 <= lead < 0xF5 and i + 4 <= end:
        high = (lead & 0x07) << 18 | _low_bits(data, first + _ONE) << 12
        codepoint = high | _low_bits(data, first + _TWO) << 6 | _low_bits(data, first + _THREE)
        return codepoint if codepoint < NUM_CODEPOINTS else _REPLACEMENT, i + 4
    return _REPLACEMENT, i + 1


@kernel
def _low_bits(data: ByteArray, position: np.uint64) -> np.int64:
    return np.int64(data[position]) & 0x3F


@kernel
def _is_ascii(data: ByteArray, i: int) -> np.bool_:
    """Whether the STRIDE bytes from i are ASCII. Compiles to a few vector instructions."""
    bits = np.uint8(0)
    for byte in data[i : i + STRIDE]:
        bits |= byte
    return bits < 0x80


@kernel
def _find_clusters(data: ByteArray, nfkc_state: ByteArray, combining: ByteArray) -> NDArray[np.int64]:
    """(C, 2) byte ranges of the clusters of one text that NFKC may change."""
    clusters = np.empty((len(data) // 2 + 1, 2), np.int64)
    count, i, end = 0, 0, len(data)
    cluster_start, previous_class, is_changed = 0, np.uint8(0), np.bool_(False)
    while i < end:
        if not is_changed and i + STRIDE <= end and _is_ascii(data, i):
            i += STRIDE
            cluster_start, previous_class = i - 1, np.uint8(0)
            continue
        start, codepoint, i = i, np.int64(data[np.uint64(i)]), i + 1
        if codepoint < 0x80 and not is_changed:  # a shortcut for the usual case
            cluster_start, previous_class = start, np.uint8(0)
            continue
        if codepoint >= 0x80:
            codepoint, i = decode_codepoint(data, start, end)
        state, mark = nfkc_state[np.uint64(codepoint)], combining[np.uint64(codepoint)]
        if state == JOINING or mark != 0:
            is_changed |= state == JOINING or 0 < mark < previous_class
            previous_class = mark
            continue
        if is_changed:
            clusters[count, 0], clusters[count, 1] = cluster_start, start
            count += 1
        cluster_start, previous_class, is_changed = start, np.uint8(0), state != KEPT
    if is_changed:
        clusters[count, 0], clusters[count, 1] = cluster_start, end
        count += 1
    return clusters[:count]
