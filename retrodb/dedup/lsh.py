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

from retrodb.dedup.kernel import kernel
from retrodb.dedup.minhash import EMPTY, Words32
from retrodb.dedup.normalise import Ints
from retrodb.dedup.shingles import POLYNOMIAL_BASE, Keys, fmix64
from retrodb.errors import UsageError

MAX_BUCKET = 100  # documents; 4,950 pairs. In larger buckets all are compared with the smallest id only

# A run is an array of these, ascending by band, hash, document.
RUN_DTYPE = np.dtype([("band", "<u2"), ("hash", "<u8"), ("document", "<i8")])
Run = NDArray[np.void]


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

    pairs: Ints  # (E, 2) documents, the smaller id first; ascending
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


def make_run(signatures: Words32, documents: Ints, bands: Bands) -> Run:
    """The sorted run of documents with ids (M,) and signatures (M, P); those without shingles have no place in it."""
    chosen = (signatures != EMPTY).any(axis=1)
    hashes = _band_hashes(np.ascontiguousarray(signatures[chosen]), bands.count, bands.rows)
    run = np.empty(hashes.size, RUN_DTYPE)
    run["band"] = np.tile(np.arange(bands.count), len(hashes))
    run["hash"] = hashes.ravel()
    run["document"] = np.repeat(documents[chosen], bands.count)
    return run[np.lexsort((run["document"], run["hash"], run["band"]))]


def candidate_pairs(new_run: Run, old_runs: Sequence[Run] = (), max_bucket: int = MAX_BUCKET) -> Candidates:
    """All pairs with a document of the new run: among themselves and with those of old runs.

    Args:
        new_run: from `make_run`; runs may be memory-mapped, one band of each is looked at at a time.
        old_runs: of other documents with the same bands.
        max_bucket: a larger bucket gives only the pairs with its smallest id, and is counted as hot.
    """
    pairs, hot = [np.zeros((0, 2), np.int64)], 0
    for band in np.unique(new_run["band"]):
        new = _band(new_run, band)
        old = [_band(run, band) for run in old_runs]
        old = [part[np.isin(part["hash"], new["hash"])] for part in old]
        both = np.concatenate([new, *old])
        is_new = np.arange(len(both)) < len(new)
        order = np.lexsort((both["document"], both["hash"]))
        found, num_hot = _bucket_pairs(both["hash"][order], both["document"][order], is_new[order], max_bucket)
        pairs.append(_unique_pairs(found))
        hot += num_hot
    return Candidates(_unique_pairs(np.concatenate(pairs)), hot)


def _band(run: Run, band: np.uint16) -> Run:
    first, last = np.searchsorted(run["band"], band, "left"), np.searchsorted(run["band"], band, "right")
    return run[first:last]


def _unique_pairs(pairs: Ints) -> Ints:
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    is_first = np.ones(len(pairs), np.bool_)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_first]


@kernel
def _band_hashes(signatures: Words32, count: int, rows: int) -> Keys:
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
def _bucket_pairs(hashes: Keys, documents: Ints, is_new: NDArray[np.bool_], max_bucket: int) -> tuple[Ints, int]:
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
