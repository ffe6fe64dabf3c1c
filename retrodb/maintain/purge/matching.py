"""Which of very many values are traces: a table of bits passes few other values, and a binary search decides about these.

Every token, word and vector of a database is compared with the traces of a purge. So the values of tokens and words are
computed and compared in one pass, without an array of all values.

Legend: N values, R rows of T tokens or D dimensions, M texts, B bits of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from retrodb.dedup.codepoints import codepoint_tables
from retrodb.dedup.normalise import normalised_batches
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import NGRAM, WordBuffers, ngram_keys, split_words, whole_text_key, word_buffers
from retrodb.format.arrays import AnyArray, BoolArray, ByteArray, Int32Array, Int64Array, UInt64Array

RUN_TOKENS = 16  # of 64: a copy of a quarter of a chunk is found wherever it begins
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BITS_PER_VALUE = 64  # so that one of 64 other values passes the table
_MIN_BITS = 1 << 16
_ONE, _SIX, _LOW = np.uint64(1), np.uint64(6), np.uint64(63)
_CAPACITY = 1 << 12  # matches that are expected in a block

_Kernel: TypeAlias = Callable[..., tuple[int, int]]  # type: ignore[explicit-any]
"""Finds values that pass the table: gives their number, and the number of all values."""


@dataclass(frozen=True)
class Matches:
    """Values that are in a set."""

    positions: Int64Array  # (n,) where each is
    values: UInt64Array  # (n,)
    num_compared: int  # values that were compared with the set


@dataclass(frozen=True)
class ValueSet:
    """Values to look for."""

    values: UInt64Array  # (N,) ascending, distinct
    words: UInt64Array  # (B / 64,) a table of bits, in which each value sets one
    shift: np.uint64  # of a mixed value to its bit

    @staticmethod
    def of(values: UInt64Array) -> ValueSet:
        """From ascending, distinct values."""
        bits = max(_MIN_BITS, 1 << (_BITS_PER_VALUE * len(values)).bit_length())
        words, shift = np.zeros(bits // 64, np.uint64), np.uint64(64 - (bits.bit_length() - 1))
        positions = (values * _MULTIPLIER) >> shift
        np.bitwise_or.at(words, (positions >> _SIX).astype(np.int64), _ONE << (positions & _LOW))
        return ValueSet(values, words, shift)

    def contains(self, values: UInt64Array) -> BoolArray:
        """(N,) bool: which values are in the set."""
        is_in = np.zeros(len(values), dtype=bool)
        if len(self.values):
            candidates = np.flatnonzero(_may_contain(np.ascontiguousarray(values), self.words, self.shift))
            is_in[candidates] = self._is_equal(values[candidates])
        return is_in

    def _is_equal(self, values: UInt64Array) -> BoolArray:
        positions = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
        return np.asarray(self.values[positions] == values)

    def collect(self, find: _Kernel, *arguments: object) -> Matches:
        """What a kernel finds that is in the set.

        Args:
            find: a kernel that is given the arguments, the table, the shift, and room for positions and values. It writes those
                that pass the table, as many as there is room for, and gives their number and the number of all values.
        """
        capacity = _CAPACITY
        while True:
            positions, values = np.empty(capacity, np.int64), np.empty(capacity, np.uint64)
            count, num_compared = find(*arguments, self.words, self.shift, positions, values)
            if count <= capacity:
                break
            capacity = count
        is_in = self._is_equal(values[:count]) if count and len(self.values) else np.zeros(count, dtype=bool)
        return Matches(positions[:count][is_in], values[:count][is_in], num_compared)


def matching_runs(tokens: AnyArray, traces: ValueSet) -> Matches:
    """The runs of 16 tokens in the rows of integers (R, T) that are traces; a position is row * T + column."""
    return traces.collect(_find_runs, np.ascontiguousarray(tokens, dtype=np.uint64))


def token_runs(tokens: AnyArray) -> UInt64Array:
    """(..., T - 15) the values of all runs of 16 tokens along the last axis of (..., T)."""
    length = tokens.shape[-1] - RUN_TOKENS + 1
    if length < 1:
        return np.empty((*tokens.shape[:-1], 0), np.uint64)
    runs = np.zeros((*tokens.shape[:-1], length), np.uint64)
    for offset in range(RUN_TOKENS):
        runs = runs * _MULTIPLIER + tokens[..., offset : offset + length].astype(np.uint64) + np.uint64(1)
    return runs


def matching_shingles(texts: pa.Array, traces: ValueSet) -> Matches:
    """The shingles of texts (M,), and whole texts of fewer words, that are traces; a position is the number of the text."""
    folded, parts = codepoint_tables().folded, [Matches(np.empty(0, np.int64), np.empty(0, np.uint64), 0)]
    for batch in normalised_batches(texts):
        buffers = word_buffers(batch.begins, batch.ends)
        keys = np.empty(len(buffers.hashes), np.uint64)
        found = traces.collect(_find_shingles, batch.data, batch.begins, batch.ends, folded, buffers, keys)
        parts.append(replace(found, positions=found.positions + batch.first_document))
    return Matches(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.values for part in parts]),
        sum(part.num_compared for part in parts),
    )


def row_values(rows: AnyArray) -> UInt64Array:
    """(R,) the values of rows (R, D) of float16 or single bytes; different rows have different values (almost surely)."""
    unsigned = {1: np.uint8, 2: np.uint16}[rows.dtype.itemsize]
    weights = np.random.Generator(np.random.PCG64(rows.dtype.itemsize)).integers(
        0, 1 << 63, rows.shape[1], dtype=np.uint64
    )
    factors = np.asarray(2 * weights + np.uint64(1))
    return _row_sums(np.ascontiguousarray(rows).view(unsigned), factors)


@kernel
def _row_sums(numbers: AnyArray, factors: UInt64Array) -> UInt64Array:
    """The sums of (number + 1) * factor along the rows (R, D), modulo 2^64."""
    sums = np.zeros(len(numbers), np.uint64)
    for row in range(len(numbers)):
        for column in range(len(factors)):
            sums[row] += (np.uint64(numbers[row, column]) + _ONE) * factors[column]
    return sums


@kernel
def _may_be(value: np.uint64, words: UInt64Array, shift: np.uint64) -> bool:
    bit = (value * _MULTIPLIER) >> shift
    return bool((words[bit >> _SIX] >> (bit & _LOW)) & _ONE)


@kernel
def _may_contain(values: UInt64Array, words: UInt64Array, shift: np.uint64) -> BoolArray:
    passes = np.empty(len(values), np.bool_)
    for i in range(len(values)):
        passes[i] = _may_be(values[i], words, shift)
    return passes


@kernel
def _find_runs(
    tokens: UInt64Array, words: UInt64Array, shift: np.uint64, positions: Int64Array, values: UInt64Array
) -> tuple[int, int]:
    """The runs that pass the table. A run's value follows from that of the run before it."""
    leaving = np.uint64(1)
    for _ in range(RUN_TOKENS):
        leaving *= _MULTIPLIER
    count, length = 0, tokens.shape[1]
    for row in range(len(tokens)):
        value = np.uint64(0)
        for column in range(length):
            value = value * _MULTIPLIER + tokens[row, column] + _ONE
            if column >= RUN_TOKENS:
                value -= (tokens[row, column - RUN_TOKENS] + _ONE) * leaving
            if column >= RUN_TOKENS - 1 and _may_be(value, words, shift):
                if count < len(positions):
                    positions[count], values[count] = row * length + column - RUN_TOKENS + 1, value
                count += 1
    return count, len(tokens) * max(length - RUN_TOKENS + 1, 0)


@kernel
def _find_shingles(
    data: ByteArray, begins: Int64Array, ends: Int64Array, folded: Int32Array, buffers: WordBuffers, keys: UInt64Array,
    words: UInt64Array, shift: np.uint64, positions: Int64Array, values: UInt64Array,
) -> tuple[int, int]:  # fmt: skip
    """The shingles that pass the table."""
    count, num_compared = 0, 0
    for text in range(len(begins)):
        num_words = split_words(data, begins[text], ends[text], folded, buffers)
        if num_words == 0:
            continue
        num_keys = 1
        if num_words < NGRAM:
            keys[0] = whole_text_key(buffers.hashes[:num_words])
        else:
            num_keys = ngram_keys(buffers.hashes[:num_words], NGRAM, keys)
        num_compared += num_keys
        for i in range(num_keys):
            if _may_be(keys[i], words, shift):
                if count < len(positions):
                    positions[count], values[count] = text, keys[i]
                count += 1
    return count, num_compared
