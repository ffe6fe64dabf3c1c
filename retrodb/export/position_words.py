"""Which chunks of a range have a position, and where runs begin, as bits that are ranked where they lie in a file.

A word describes 64 chunks of a range in 24 bytes. It has the counts of the words before it, so that a position is found with
one read, however many chunks there are.
"""

from __future__ import annotations

import numpy as np

from retrodb.format.arrays import AnyArray, BoolArray, Int64Array, UInt64Array

WORD = np.dtype(
    [
        ("present", "<u8"),  # bit i: chunk i of the word has a position
        ("starts", "<u8"),  # bit i: a run begins at position i of the word, counted from the first of the range
        ("present_before", "<u4"),  # bits in the words of the range before this one
        ("starts_before", "<u4"),
    ]
)
WORD_CHUNKS = 64


def num_words(num_chunks: int) -> int:
    """The words of a range."""
    return -(-num_chunks // WORD_CHUNKS)


def position_words(is_present: BoolArray, starts: Int64Array) -> AnyArray:
    """The words (W,) of a range.

    Args:
        is_present: (n,) which chunks have a position.
        starts: the positions, from the first of the range, at which a run begins, ascending.
    """
    is_start = np.zeros(len(is_present), dtype=bool)
    is_start[starts] = True
    words = np.zeros(num_words(len(is_present)), dtype=WORD)
    for name, bits in (("present", is_present), ("starts", is_start)):
        packed = np.zeros(8 * len(words), dtype=np.uint8)
        packed[: -(-len(bits) // 8)] = np.packbits(bits, bitorder="little")
        words[name] = packed.view("<u8")
        counts = _num_bits(words[name])
        words[f"{name}_before"] = np.cumsum(counts) - counts
    return words


def rows_of_bits(words: AnyArray, name: str) -> Int64Array:
    """The numbers of the bits that are set in a field, ascending."""
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(words[name]).view(np.uint8), bitorder="little"))


def bit_ranks(words: AnyArray, name: str, bits: Int64Array) -> tuple[BoolArray, Int64Array]:
    """Whether each bit is set, and how many of its range are set before it.

    Args:
        words: (Q,) the word of each bit.
        bits: (Q,) its number in the word.
    """
    masks = np.uint64(1) << bits.astype(np.uint64)
    is_set = (words[name] & masks) != 0
    return is_set, words[f"{name}_before"].astype(np.int64) + _num_bits(words[name] & (masks - np.uint64(1)))


def _num_bits(words: UInt64Array) -> Int64Array:
    """The bits that are set in each word, counted in pairs, then in groups of 4 and 8 bits (Hacker's Delight, 5-1)."""
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
