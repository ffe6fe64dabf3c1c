"""`hashing:<dim>`: an encoder without a model, for tests, demonstrations and lexical baselines.

Signed feature hashing (Weinberger et al. 2009): the features of a text are its words and the 4-byte pieces of its words. Each
adds +1 or -1 times a weight to one of D cells. Cells are sums of integers, which are exact in any order. IEEE 754 defines
the rounding of the division and the square root of the normalisation. So the vectors are bit for bit equal on every platform
and in every version. Texts with common words have a high inner product.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrodb.dedup.numba_kernel import kernel
from retrodb.encode.encoder import EncodedBatch
from retrodb.encode.identity import EncoderIdentity, Provenance, library_versions
from retrodb.format.arrays import ByteArray, Float16Array, Float32Array, Int32Array, Int64Array

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.encode.encoder import Texts

# Part of the identity of a space. Any change to the features below needs a new name.
FEATURES = "words+4-bytes/1"
PIECE_BYTES = 4
# The weight of a word is its length, up to this: short words are frequent and say little.
MAX_WORD_WEIGHT = 8
# A word is a run of ASCII letters, digits and bytes above 127: the fastest rule that works for every script and does not
# depend on the Unicode version.
IS_WORD = np.zeros(256, np.bool_)
IS_WORD[[*b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", *range(128, 256)]] = True

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
MIX = np.uint64(0xFF51AFD7ED558CCD)


@kernel
def _lower(byte: int) -> int:
    return byte + 32 if 65 <= byte <= 90 else byte


@kernel
def _add(cells_D: Int32Array, feature: np.uint64, weight: int) -> None:
    """Add the weight to the cell of the feature. The sign is a bit that is not used to choose the cell."""
    mixed = (feature ^ (feature >> np.uint64(33))) * MIX
    mixed ^= mixed >> np.uint64(33)
    cell = np.int64((mixed >> np.uint64(1)) % np.uint64(len(cells_D)))
    cells_D[cell] += weight if mixed & np.uint64(1) else -weight


@kernel
def _add_word(text: ByteArray, start: int, stop: int, cells_D: Int32Array) -> None:
    word = FNV_OFFSET
    for i in range(start, stop):
        word = (word ^ np.uint64(_lower(text[i]))) * FNV_PRIME
    _add(cells_D, word, min(stop - start, MAX_WORD_WEIGHT))
    for first in range(start, stop - PIECE_BYTES + 1):
        piece = FNV_OFFSET + np.uint64(1)  # another offset, so that a piece differs from the word of its letters
        for i in range(first, first + PIECE_BYTES):
            piece = (piece ^ np.uint64(_lower(text[i]))) * FNV_PRIME
        _add(cells_D, piece, 1)


@kernel
def _count_features(text: ByteArray, offsets: Int64Array, cells_ND: Int32Array, words_N: Int32Array) -> None:
    for row in range(len(offsets) - 1):
        start = -1
        for i in range(offsets[row], offsets[row + 1] + 1):
            is_inside = i < offsets[row + 1] and IS_WORD[text[i]]
            if is_inside and start < 0:
                start = i
            elif not is_inside and start >= 0:
                _add_word(text, start, i, cells_ND[row])
                words_N[row] += 1
                start = -1


def hash_texts(texts: Texts, dimension: int) -> tuple[Float16Array, Int32Array]:
    """Vectors (N, D) of length 1, and the number of words (N,) of the texts.

    A text without words, or whose features cancel each other, gets the first unit vector, which is valid and arbitrary.
    """
    text, offsets = _utf8(texts)
    cells_ND = np.zeros((len(offsets) - 1, dimension), np.int32)
    words_N = np.zeros(len(offsets) - 1, np.int32)
    _count_features(text, offsets, cells_ND, words_N)
    squares_N = np.einsum("nd,nd->n", cells_ND, cells_ND, dtype=np.int64)  # exact, in any order
    cells_ND[squares_N == 0, 0] = 1
    norms_N = np.sqrt(np.maximum(squares_N, 1).astype(np.float64))
    return (cells_ND / norms_N[:, None]).astype(np.float16), words_N


def _utf8(texts: Texts) -> tuple[ByteArray, Int64Array]:
    """The bytes of the texts and their N + 1 offsets, as in the Arrow buffers."""
    import pyarrow as pa

    array: pa.LargeStringArray
    array = pa.array(texts, pa.large_string()) if isinstance(texts, Sequence) else texts.cast(pa.large_string())
    if len(array) == 0:
        return np.zeros(1, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    rows = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8), rows


class HashingEncoder:
    """The `hashing:<dim>` encoder. Passages and queries have equal vectors."""

    def __init__(self, dimension: int) -> None:
        self.identity = EncoderIdentity(
            kind="hashing", dimension=dimension, weights=FEATURES, normalise=True, metric="inner_product"
        )
        self.provenance = Provenance(
            name=f"hashing:{dimension}",
            origin="built in",
            implementation="hashing",
            device="cpu",
            compute_dtype="int32",
            versions=library_versions("numpy"),
        )

    def num_flops(self, num_tokens_N: Int32Array) -> float:
        """0: the few operations are not counted."""
        return 0.0

    def matrix_rate(self) -> float:
        """0: it has no matrix products."""
        return 0.0

    def encode_passages(self, texts: Texts) -> EncodedBatch:
        """Vectors of the texts. Their tokens are words, and no text is cut off."""
        vectors_ND, words_N = hash_texts(texts, self.identity.dimension)
        return EncodedBatch(vectors_ND, words_N, num_truncated=0)

    def encode_windows(self, text_windows: Iterable[Texts]) -> Iterable[EncodedBatch]:
        """One result for each window of texts, in order."""
        return map(self.encode_passages, text_windows)

    def encode_queries(self, texts: Texts) -> Float32Array:
        """The vectors of `encode_passages` as (Q, D) float32."""
        return self.encode_passages(texts).vectors_ND.astype(np.float32)
