"""Arrow texts as bytes in NFKC, a batch at a time, and the way back from a normalised byte to the original one.

Nearly all text is NFKC already and is taken from the Arrow buffer as it is. In the rest only the *clusters* that NFKC
may change are handed to `unicodedata`: a cluster is a codepoint that joins nothing before it, with all that follow it
and may join. The normal form of a text is the concatenation of those of its clusters (UAX #15, section 9.1), so the
result is the same as normalising the whole.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrodb.dedup.codepoints import JOINING, KEPT, NUM_CODEPOINTS, REPLACED, UNASSIGNED, codepoint_tables
from retrodb.dedup.numba_kernel import kernel
from retrodb.errors import InputError
from retrodb.format.arrays import ByteArray, Int64Array
from retrodb.format.text_arrays import text_buffers

BATCH_BYTES = 1 << 20  # small enough for the second-level cache together with its word hashes
STRIDE = 32  # bytes looked at together
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)
MAX_TEXT_BYTES = (1 << 31) - 1  # positions inside a batch are 32-bit


@dataclass(frozen=True)
class Moves:
    """Where the C changed clusters of one document lie, before and after; ascending (C,) offsets in the document."""

    old_starts: Int64Array
    old_ends: Int64Array
    new_starts: Int64Array
    new_ends: Int64Array

    def original_starts(self, positions: Int64Array) -> Int64Array:
        """Original offsets of first bytes; one inside a changed cluster becomes the cluster's start."""
        at = np.searchsorted(self.new_starts, positions, "right") - 1
        inside = (at >= 0) & (positions < self.new_ends[at])
        return np.where(inside, self.old_starts[at], positions + self._shift(at))

    def original_ends(self, positions: Int64Array) -> Int64Array:
        """Original offsets of ends (exclusive); one inside a changed cluster becomes the cluster's end."""
        at = np.searchsorted(self.new_starts, positions, "left") - 1
        inside = (at >= 0) & (positions < self.new_ends[at])
        return np.where(inside, self.old_ends[at], positions + self._shift(at))

    def _shift(self, at: Int64Array) -> Int64Array:
        return np.where(at >= 0, self.old_ends[at] - self.new_ends[at], 0)


@dataclass(frozen=True)
class Batch:
    """Consecutive documents as normalised UTF-8."""

    first_document: int  # row of the first one in the texts
    data: ByteArray  # bytes of all of them, and possibly others
    begins: Int64Array  # (M,) first byte of each in `data`
    ends: Int64Array  # (M,) end of each
    moves: dict[int, Moves]  # document of the batch -> its changed clusters; absent where the original bytes stand


def iter_batches(texts: pa.Array, max_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
    """Cut texts (M,) into batches of at most `max_bytes`, or of one longer document, and normalise each.

    Raises:
        InputError: for a text of 2 GiB or more.
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


def _normalise_batch(data: ByteArray, offsets: Int64Array, first_document: int) -> Batch:
    begins, ends = offsets[:-1].copy(), offsets[1:].copy()
    tables, moves, parts, size = codepoint_tables(), {}, [data], len(data)
    for document in np.flatnonzero(_has_non_ascii(data, offsets)).tolist():
        begin, end = int(begins[document]), int(ends[document])
        clusters = _find_clusters(data[begin:end], tables.nfkc_state, tables.combining)
        if len(clusters) == 0:
            continue
        new, moves[document] = _normalise(data[begin:end], clusters)
        parts.append(new)
        begins[document], ends[document] = size, size + len(new)
        size += len(new)
    return Batch(first_document, np.concatenate(parts) if moves else data, begins, ends, moves)


def _normalise(old: ByteArray, clusters: NDArray[np.int64]) -> tuple[ByteArray, Moves]:
    """A text with its clusters (C, 2) brought to NFKC: single codepoints by table, the others by `unicodedata`."""
    starts, table = _replacements()
    codepoints = _single_codepoints(old, clusters)
    sources, lengths = starts[codepoints], starts[codepoints + 1] - starts[codepoints]
    others, size = [table], len(table)
    for c in np.flatnonzero(lengths == 0).tolist():
        new = _nfkc(old[clusters[c, 0] : clusters[c, 1]].tobytes())
        others.append(np.frombuffer(new, np.uint8))
        sources[c], lengths[c] = size, len(new)
        size += len(new)
    new_ends = clusters[:, 1] + np.cumsum(lengths - (clusters[:, 1] - clusters[:, 0]))
    moves = Moves(clusters[:, 0], clusters[:, 1], new_ends - lengths, new_ends)
    new_text = np.empty(len(old) + new_ends[-1] - clusters[-1, 1], np.uint8)
    _splice(old, clusters, np.concatenate(others) if len(others) > 1 else table, sources, lengths, new_text)
    return new_text, moves


@functools.cache
def _replacements() -> tuple[Int64Array, ByteArray]:
    """(NUM_CODEPOINTS + 1,) offsets into the UTF-8 that NFKC puts in the place of each codepoint; most have none."""
    tables = codepoint_tables()
    replaced = np.flatnonzero((tables.nfkc_state == REPLACED) & (tables.word_class != UNASSIGNED))
    texts = [unicodedata.normalize("NFKC", chr(codepoint)).encode() for codepoint in replaced.tolist()]
    starts = np.zeros(NUM_CODEPOINTS + 1, np.int64)
    starts[replaced + 1] = [len(text) for text in texts]
    return np.cumsum(starts), np.frombuffer(b"".join(texts), np.uint8)


@functools.lru_cache(maxsize=1 << 16)
def _nfkc(cluster: bytes) -> bytes:
    # A codepoint that Unicode 14.0 did not have is a separator, whatever a later version makes of it.
    word_class = codepoint_tables().word_class
    text = cluster.decode("utf-8", errors="replace")
    known = "".join(" " if word_class[ord(char)] == UNASSIGNED else char for char in text)
    return unicodedata.normalize("NFKC", known).encode()


@kernel
def _single_codepoints(data: ByteArray, clusters: NDArray[np.int64]) -> Int64Array:
    """(C,) the codepoint of a cluster of one, else 0, which nothing replaces."""
    found = np.zeros(len(clusters), np.int64)
    for c in range(len(clusters)):
        codepoint, i = decode(data, clusters[c, 0], clusters[c, 1])
        if i == clusters[c, 1]:
            found[c] = codepoint
    return found


@kernel
def _splice(
    old: ByteArray, clusters: NDArray[np.int64], pieces: ByteArray, sources: Int64Array, lengths: Int64Array, new: ByteArray
) -> None:  # fmt: skip
    """Write the old text with pieces[source : source + length] in the place of its clusters."""
    done, at = 0, 0
    for c in range(len(clusters)):
        kept = clusters[c, 0] - done
        new[at : at + kept] = old[done : clusters[c, 0]]
        at += kept
        new[at : at + lengths[c]] = pieces[sources[c] : sources[c] + lengths[c]]
        at += lengths[c]
        done = clusters[c, 1]
    new[at:] = old[done:]


@kernel
def _has_non_ascii(data: ByteArray, offsets: Int64Array) -> NDArray[np.bool_]:
    found = np.zeros(len(offsets) - 1, np.bool_)
    for document in range(len(found)):
        every = np.uint8(0)
        for i in range(offsets[document], offsets[document + 1]):
            every |= data[i]
        found[document] = every >= 0x80
    return found


@kernel
def decode(data: ByteArray, i: int, end: int) -> tuple[Any, int]:
    """The codepoint that begins at data[i], a byte of 0x80 or more, and its end; U+FFFD if it is no UTF-8."""
    # Unsigned indices, here and below: numba then need not ask whether they are negative.
    at, lead = np.uint64(i), np.int64(data[np.uint64(i)])
    if 0xC2 <= lead < 0xE0 and i + 2 <= end:
        return (lead & 0x1F) << 6 | _low_bits(data, at + _ONE), i + 2
    if 0xE0 <= lead < 0xF0 and i + 3 <= end:
        return (lead & 0x0F) << 12 | _low_bits(data, at + _ONE) << 6 | _low_bits(data, at + _TWO), i + 3
    if 0xF0 <= lead < 0xF5 and i + 4 <= end:
        high = (lead & 0x07) << 18 | _low_bits(data, at + _ONE) << 12
        codepoint = high | _low_bits(data, at + _TWO) << 6 | _low_bits(data, at + _THREE)
        return codepoint if codepoint < NUM_CODEPOINTS else 0xFFFD, i + 4
    return 0xFFFD, i + 1


@kernel
def _low_bits(data: ByteArray, at: np.uint64) -> Any:
    return np.int64(data[at]) & 0x3F


@kernel
def _is_ascii(data: ByteArray, i: int) -> np.bool_:
    """Whether the STRIDE bytes from i are ASCII; compiles to a few vector instructions."""
    every = np.uint8(0)
    for byte in data[i : i + STRIDE]:
        every |= byte
    return every < 0x80


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
        if codepoint < 0x80 and not is_changed:  # the usual case; what follows would do the same
            cluster_start, previous_class = start, np.uint8(0)
            continue
        if codepoint >= 0x80:
            codepoint, i = decode(data, start, end)
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
