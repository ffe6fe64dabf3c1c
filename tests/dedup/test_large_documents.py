"""Documents with ids beyond 2^33, and a document of more than 2^31 bytes."""

from __future__ import annotations

import numpy as np

from retrodb.dedup.codepoints import codepoint_tables
from retrodb.dedup.lsh import BAND_DTYPE, BandEntries, Banding, common_buckets, join_band, sort_bands, unique_pairs
from retrodb.dedup.shingles import WordBuffers, split_words
from retrodb.format.arrays import Int64Array

LARGE = np.array([3, 1, 2, 0]) * (1 << 32) + (1 << 33)
"""Ids that are equal in their low 32 bits."""


def test_candidates_keep_ids_beyond_32_bits() -> None:
    signatures = np.zeros((4, 8), dtype=np.uint32)
    signatures[2:] = 7
    bands = sort_bands(signatures, LARGE, Banding(2, 4))
    assert bands.dtype == BAND_DTYPE
    expected = [sorted(LARGE[[2, 3]].tolist()), sorted(LARGE[[0, 1]].tolist())]
    assert _pairs(bands[0]).tolist() == expected
    small = sort_bands(signatures, np.arange(4), Banding(2, 4))
    near, far = (small[0].copy() for _ in range(2))
    near["document"] += 1 << 33
    far["document"] += 1 << 34
    shifted = _pairs(near, far) - (1 << 33)
    assert set(map(tuple, shifted.tolist())) == {
        *((0, 1), (2, 3)),
        *((a, b + (1 << 33)) for a in range(4) for b in range(4) if (a < 2) == (b < 2)),
    }
    pairs = common_buckets(bands, bands)
    assert set(pairs.ravel().tolist()) == set(LARGE.tolist())


def _pairs(new: BandEntries, *old: BandEntries) -> Int64Array:
    """The candidates of one band."""
    return unique_pairs(np.concatenate([candidates.pairs for candidates in join_band([new], old)]))


def test_words_are_found_beyond_2_gib_of_a_document() -> None:
    """The bytes before are zeros, which the system does not store."""
    start = (1 << 31) + 10
    data = np.zeros(start + 10, dtype=np.uint8)
    data[start : start + 4] = np.frombuffer(b"word", np.uint8)
    words = WordBuffers(np.zeros(2, np.uint64), np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert split_words(data, 0, len(data), codepoint_tables().folded, words) == 1
    assert (words.starts[0], words.ends[0]) == (start, start + 4)
