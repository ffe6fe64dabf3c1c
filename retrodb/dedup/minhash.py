"""MinHash signatures, bit for bit equal to those of datasketch 2.0 (scheme `affine32`), the oracle in the tests.

Shapes: `M` documents, `P` permutations. The 32-bit element of a shingle is the low half of its key. It is mixed once
by fmix32, the finaliser of MurmurHash3. Permutation p maps h to `a[p] * h + b[p]` modulo 2^32 (a is odd, so this is a
bijection). The signature is the lowest value of each permutation.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrodb.dedup.codepoints import codepoint_tables
from retrodb.dedup.normalise import normalised_batches
from retrodb.dedup.numba_kernel import kernel
from retrodb.dedup.shingles import NGRAM, WordBuffers, check_ngram, ngram_keys, split_words, word_buffers
from retrodb.format.arrays import ByteArray, Int32Array, Int64Array, UInt32Array, UInt64Array

NO_SHINGLES = np.uint32(0xFFFFFFFF)  # all values of the signature of a document without shingles


def signatures(texts: pa.Array, num_permutations: int = 128, seed: int = 1, ngram: int = NGRAM) -> UInt32Array:
    """(M, P) signatures of the shingle sets of the documents.

    Raises:
        UsageError: `ngram` is less than 1.
    """
    check_ngram(ngram)
    folded = codepoint_tables().folded
    multipliers, addends = _permutations(num_permutations, seed)
    parts = [
        _sketch(
            batch.data, batch.begins, batch.ends, folded, ngram, multipliers, addends,
            word_buffers(batch.begins, batch.ends),
        )
        for batch in normalised_batches(texts)
    ]  # fmt: skip
    return np.concatenate([np.zeros((0, num_permutations), np.uint32), *parts])


def _permutations(count: int, seed: int) -> tuple[UInt32Array, UInt32Array]:
    # The legacy generator: datasketch uses it, and numpy guarantees that its stream never changes.
    generator = np.random.RandomState(seed)
    half = generator.randint(0, 1 << 31, count, dtype=np.uint32)
    return half * np.uint32(2) + np.uint32(1), generator.randint(0, 1 << 32, count, dtype=np.uint32)


@kernel
def _sketch(
    data: ByteArray, begins: Int64Array, ends: Int64Array, folded: Int32Array, ngram: int,
    multipliers: UInt32Array, addends: UInt32Array, words: WordBuffers,
) -> UInt32Array:  # fmt: skip
    rows = np.full((len(begins), len(multipliers)), NO_SHINGLES, np.uint32)
    keys = np.empty_like(words.hashes)
    for document in range(len(begins)):
        count = split_words(data, begins[document], ends[document], folded, words)
        update_signature(rows[document], keys[: ngram_keys(words.hashes[:count], ngram, keys)], multipliers, addends)
    return rows


@kernel
def update_signature(signature: UInt32Array, keys: UInt64Array, multipliers: UInt32Array, addends: UInt32Array) -> None:
    """Add shingle keys (L,) to a signature (P,), in place."""
    for key in keys:
        h = np.uint32(key)
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        for p in range(len(signature)):
            value = np.uint32(multipliers[p] * h + addends[p])
            signature[p] = min(signature[p], value)
