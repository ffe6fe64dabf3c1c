"""Candidate pairs of near-duplicates from MinHash signatures (locality-sensitive hashing).

The bands of each set of documents are kept sorted, so that later documents can be joined with them.

Shapes: `M` documents, `P` permutations, `B` bands of `R` rows each (B x R at most P), `E` candidate pairs.

Documents that are equal in all rows of a band are in the same *bucket*. Two documents with Jaccard similarity s have a
common bucket with probability `1 - (1 - s^R)^B`. So candidates must be verified (`pair_similarity`), and a fraction of the
true pairs is missed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retrodb.dedup.minhash import NO_SHINGLES
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import POLYNOMIAL_BASE, fmix64
from retrodb.errors import UsageError
from retrodb.format.arrays import AnyArray, Int64Array, UInt32Array, UInt64Array

MAX_BUCKET = 100  # documents, so 4,950 pairs. In a larger bucket all are compared only with the smallest id

BAND_DTYPE = np.dtype([("hash", "<u8"), ("document", "<i8")])
SortedBands = NDArray[np.void]
"""A (B, M) array of BAND_DTYPE: for each band all documents, ascending by hash, then document."""
BandEntries = NDArray[np.void]
"""An (n,) array of BAND_DTYPE: documents of one band by their ids, ascending by hash, then document."""
MAX_PAIRS = 1 << 22  # of a block of candidates, unless one bucket has more: 64 MB


@dataclass(frozen=True)
class Banding:
    """How a signature is cut into bands."""

    count: int  # B
    rows: int  # R, values of the signature in one band

    def miss_probability(self, jaccard: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability that pairs with these true similarities have no common band."""
        return (1 - np.asarray(jaccard) ** self.rows) ** self.count

    def expected_miss(self, threshold: float) -> float:
        """The fraction of true pairs that is missed if their similarities are spread evenly from the threshold to 1."""
        return float(self.miss_probability(np.linspace(threshold, 1, 1001)).mean())


@dataclass(frozen=True)
class Candidates:
    """A block of pairs with a common bucket of a band, without repetition."""

    pairs: Int64Array  # (E, 2) documents, the smaller id first; pairs ascend
    num_hot_buckets: int  # buckets above the limit, of which not all pairs are included


def parse_bands(text: str, num_permutations: int) -> Banding:
    """Parse a banding such as `16x8`.

    Raises:
        UsageError: it has another form, or needs more permutations than there are.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise UsageError(f"'{text}' is not a valid number of bands", remedy="Write BANDSxROWS, such as 16x8.")
    banding = Banding(int(match[1]), int(match[2]))
    if banding.count * banding.rows > num_permutations:
        raise UsageError(
            f"{text} bands need {banding.count * banding.rows} permutations, but there are {num_permutations}",
            remedy="Use more permutations or fewer bands.",
        )
    return banding


def sort_bands(signatures: UInt32Array, documents: Int64Array, banding: Banding) -> SortedBands:
    """The sorted bands of documents with ids (M,) and signatures (M, P), without documents that have no shingles."""
    chosen = (signatures != NO_SHINGLES).any(axis=1)
    hashes = _band_hashes(np.ascontiguousarray(signatures[chosen]), banding.count, banding.rows)
    bands = np.empty((banding.count, len(hashes)), BAND_DTYPE)
    for band in range(banding.count):
        order = np.lexsort((documents[chosen], hashes[:, band]))
        bands["hash"][band], bands["document"][band] = hashes[order, band], documents[chosen][order]
    return bands


def common_buckets(left: SortedBands, right: SortedBands) -> Int64Array:
    """(E, 2) all pairs of a left and a right document with a common bucket, without repetition."""
    pairs = [np.zeros((0, 2), np.int64)]
    for a, b in zip(left, right, strict=True):
        low = np.searchsorted(b["hash"], a["hash"], "left")
        count = np.searchsorted(b["hash"], a["hash"], "right") - low
        left_rows = np.repeat(np.arange(len(a)), count)
        right_rows = np.arange(len(left_rows)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        pairs.append(unique_pairs(np.stack([a["document"][left_rows], b["document"][right_rows]], axis=1)))
    return unique_pairs(np.concatenate(pairs))


class SortedHashes(Protocol):
    """Ascending hashes, such as an array of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> int | np.uint64: ...


def prefix_rows(hashes: SortedHashes, prefix: int, num_prefixes: int) -> slice[int, int, None]:
    """The rows of ascending hashes (n,) that begin with a prefix, found by binary search: a mapped file is not read whole.

    Args:
        prefix: 0 .. num_prefixes - 1.
        num_prefixes: a power of two.
    """
    shift = 65 - num_prefixes.bit_length()
    is_last = prefix == num_prefixes - 1
    end = len(hashes) if is_last else bisect_left(hashes, (prefix + 1) << shift)
    return slice(bisect_left(hashes, prefix << shift) if prefix else 0, end)


def join_band(
    new: Iterable[BandEntries],
    old: Iterable[BandEntries] = (),
    max_bucket: int = MAX_BUCKET,
    max_pairs: int = MAX_PAIRS,
) -> Iterator[Candidates]:
    """All pairs of two new documents, and of a new and an old document, with a common bucket of one band, in blocks.

    Args:
        new: entries of one band, or of the same prefix of it. They are copied, so they may be memory-mapped.
        old: entries of other documents; they are read one after another, and only those in buckets of new ones are kept.
        max_bucket: a larger bucket gives only the pairs with its smallest id, and is counted as hot.
        max_pairs: of a block, about; at most twice as many unless one bucket has more.
    """
    entries = np.concatenate([np.empty(0, BAND_DTYPE), *new])
    wanted = np.unique(entries["hash"])
    if not len(wanted):
        return
    num_new = len(entries)
    entries = np.concatenate([entries, *(part[_is_in_sorted(part["hash"], wanted)] for part in old)])
    order = np.lexsort((entries["document"], entries["hash"]))
    hashes, documents, is_new = entries["hash"][order], entries["document"][order], order < num_new
    for first, end in pairwise(_block_bounds(hashes, max_bucket, max_pairs)):
        pairs, num_hot = _bucket_pairs(hashes[first:end], documents[first:end], is_new[first:end], max_bucket)
        yield Candidates(unique_pairs(pairs), num_hot)


def _block_bounds(hashes: UInt64Array, max_bucket: int, max_pairs: int) -> list[int]:
    """Rows of ascending hashes at which blocks of whole buckets begin, and the end."""
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    sizes = np.diff(starts, append=len(hashes))
    num_pairs = np.where(sizes > max_bucket, sizes - 1, sizes * (sizes - 1) // 2)
    is_first = np.diff(np.cumsum(num_pairs) // max_pairs, prepend=-1) > 0
    return [*starts[is_first].tolist(), len(hashes)]


def _is_in_sorted(values: AnyArray, known: AnyArray) -> NDArray[np.bool_]:
    """Whether each value is one of the known values, which ascend."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    return np.asarray(known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values)


def unique_pairs(pairs: Int64Array) -> Int64Array:
    """The pairs (E, 2) in ascending order, without repetition."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    is_first = np.ones(len(pairs), np.bool_)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_first]


@kernel
def _band_hashes(signatures: UInt32Array, count: int, rows: int) -> UInt64Array:
    """(M, B) hash of the values of each band."""
    hashes = np.empty((len(signatures), count), np.uint64)
    for document in range(len(signatures)):
        for band in range(count):
            value = np.uint64(0)
            for row in range(band * rows, (band + 1) * rows):
                value = fmix64(value * POLYNOMIAL_BASE + np.uint64(signatures[document, row]))
            hashes[document, band] = value
    return hashes


@kernel
def _bucket_pairs(
    hashes: UInt64Array, documents: Int64Array, is_new: NDArray[np.bool_], max_bucket: int
) -> tuple[Int64Array, int]:
    pairs, used, hot, first = np.empty((1024, 2), np.int64), 0, 0, 0
    while first < len(hashes):
        last = first + 1
        while last < len(hashes) and hashes[last] == hashes[first]:
            last += 1
        is_hot = last - first > max_bucket
        hot += is_hot
        for i in range(first, first + 1 if is_hot else last):
            for j in range(i + 1, last):
                if not (is_new[i] or is_new[j]):
                    continue
                if used == len(pairs):
                    pairs = np.concatenate((pairs, np.empty_like(pairs)))
                pairs[used, 0], pairs[used, 1] = documents[i], documents[j]
                used += 1
        first = last
    return pairs[:used].copy(), hot
