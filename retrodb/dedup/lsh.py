"""Candidate pairs of near-duplicates from MinHash signatures: bands, kept as sorted runs that later runs are joined
with.

Shapes: `M` documents, `P` permutations, `B` bands of `R` rows each (B x R at most P), `E` candidate pairs.

Documents that agree in all rows of a band stand together in a *bucket*. A pair of Jaccard similarity s shares a
bucket with probability `1 - (1 - s^R)^B`: candidates are no answer, they have to be verified (`clusters`), and a
share of the true pairs is never seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrodb.dedup.minhash import EMPTY
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import POLYNOMIAL_BASE, fmix64
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array, UInt32Array, UInt64Array

MAX_BUCKET = 100  # documents; 4,950 pairs. In larger buckets all are compared with the smallest id only

# A run is a (B, M) array of these: for each band all documents, ascending by hash, then document.
RUN_DTYPE = np.dtype([("hash", "<u8"), ("document", "<i8")])
Run = NDArray[np.void]
Placed = tuple[Run, int]  # a run, and what is added to its documents to give their ids


@dataclass(frozen=True)
class Bands:
    """How a signature is cut."""

    count: int  # B
    rows: int  # R, values of the signature in one band

    def miss_probability(self, jaccard: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability that pairs of these true similarities share no band."""
        return (1 - np.asarray(jaccard) ** self.rows) ** self.count

    def expected_miss(self, threshold: float) -> float:
        """The share of true pairs missed when their similarities are spread evenly from the threshold to 1."""
        return float(self.miss_probability(np.linspace(threshold, 1, 1001)).mean())


@dataclass(frozen=True)
class Candidates:
    """Pairs that share a bucket, each once."""

    pairs: Int64Array  # (E, 2) documents, the smaller id first; ascending
    num_hot_buckets: int  # buckets above the limit, in which not all pairs were taken


def parse_bands(text: str, num_permutations: int) -> Bands:
    """Read `16x8`.

    Raises:
        UsageError: for anything else, or more values than there are permutations.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise UsageError(f"'{text}' are no bands", remedy="Write BANDSxROWS, such as 16x8.")
    bands = Bands(int(match[1]), int(match[2]))
    if bands.count * bands.rows > num_permutations:
        raise UsageError(
            f"{text} bands need {bands.count * bands.rows} permutations, there are {num_permutations}",
            remedy="Take more permutations or fewer bands.",
        )
    return bands


def make_run(signatures: UInt32Array, documents: Int64Array, bands: Bands) -> Run:
    """The run of documents with ids (M,) and signatures (M, P); those without shingles have no place in it."""
    chosen = (signatures != EMPTY).any(axis=1)
    hashes = _band_hashes(np.ascontiguousarray(signatures[chosen]), bands.count, bands.rows)
    run = np.empty((bands.count, len(hashes)), RUN_DTYPE)
    for band in range(bands.count):
        order = np.lexsort((documents[chosen], hashes[:, band]))
        run["hash"][band], run["document"][band] = hashes[order, band], documents[chosen][order]
    return run


def common_buckets(left: Run, right: Run) -> Int64Array:
    """(E, 2) all pairs of a document of one run and a document of another that share a bucket, each once."""
    pairs = [np.zeros((0, 2), np.int64)]
    for a, b in zip(left, right, strict=True):
        low = np.searchsorted(b["hash"], a["hash"], "left")
        count = np.searchsorted(b["hash"], a["hash"], "right") - low
        at = np.repeat(np.arange(len(a)), count)
        place = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        pairs.append(_unique_pairs(np.stack([a["document"][at], b["document"][place]], axis=1)))
    return _unique_pairs(np.concatenate(pairs))


def candidate_pairs(
    new: Sequence[Placed], old: Sequence[Placed] = (), without: Int64Array | None = None, max_bucket: int = MAX_BUCKET
) -> Candidates:
    """All pairs with a document of a new run: among themselves and with those of old runs.

    Args:
        new: runs of `make_run` with the same bands; they may be memory-mapped, one band is looked at at a time.
        old: runs of other documents.
        without: ids, ascending, of documents to leave out.
        max_bucket: a larger bucket gives only the pairs with its smallest id, and is counted as hot.
    """
    pairs, hot = [np.zeros((0, 2), np.int64)], 0
    for band in range(len(new[0][0]) if new else 0):
        hashes, documents = _band(new, band, without)
        wanted = np.unique(hashes)
        parts = [_band([placed], band, without, wanted) for placed in old]
        is_new = np.arange(len(hashes) + sum(len(part[0]) for part in parts)) < len(hashes)
        hashes = np.concatenate([hashes, *(part[0] for part in parts)])
        documents = np.concatenate([documents, *(part[1] for part in parts)])
        order = np.lexsort((documents, hashes))
        found, num_hot = _bucket_pairs(hashes[order], documents[order], is_new[order], max_bucket)
        pairs.append(_unique_pairs(found))
        hot += num_hot
    return Candidates(_unique_pairs(np.concatenate(pairs)), hot)


def _band(
    runs: Sequence[Placed], band: int, without: Int64Array | None, wanted: UInt64Array | None = None
) -> tuple[UInt64Array, Int64Array]:
    """Hashes and ids of one band of some runs; only of wanted hashes, where these (ascending) are given."""
    hashes = np.concatenate([run["hash"][band] for run, _ in runs])
    documents = np.concatenate([run["document"][band] + first for run, first in runs])
    chosen = np.ones(len(hashes), np.bool_)
    if wanted is not None:
        chosen &= _is_among(hashes, wanted)
    if without is not None:
        chosen &= ~_is_among(documents, without)
    return hashes[chosen], documents[chosen]


def _is_among(values: NDArray[np.generic], known: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether each value is one of the known ones, which ascend."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    return np.asarray(known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values)


def _unique_pairs(pairs: Int64Array) -> Int64Array:
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    is_first = np.ones(len(pairs), np.bool_)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_first]


@kernel
def _band_hashes(signatures: UInt32Array, count: int, rows: int) -> UInt64Array:
    """(M, B) hash of each band's values."""
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
