"""`hashing:<dim>`: an encoder without a model, for tests, demonstrations and lexical baselines.

Signed feature hashing (Weinberger et al. 2009): a text is the bag of its words and of the 4-byte pieces of its words, each
adding +1 or -1 times a weight to one of D cells. Cells are summed as integers, which is exact in any order; the one division
and the square root of the normalisation are correctly rounded by IEEE 754. So the vectors are equal bit for bit on every
platform and in every version, and texts that share words are near each other by inner product.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numba as nb
import numpy as np
import numpy.typing as npt

from retrodb.encode.identity import EncodedBatch, EncoderIdentity, Provenance, library_versions

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.encode.identity import Texts

# Part of a space's identity: any change to the features below needs a new name.
FEATURES = "words+4-bytes/1"
PIECE_BYTES = 4
# A word counts as much as up to eight of its pieces: short words are the frequent ones and say little.
MAX_WORD_WEIGHT = 8
# A word is a run of ASCII letters, digits and bytes above 127: the cheapest rule that keeps every script, and one that no
# Unicode version changes.
IS_WORD = np.zeros(256, np.bool_)
IS_WORD[[*b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", *range(128, 256)]] = True

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
MIX = np.uint64(0xFF51AFD7ED558CCD)


@nb.njit(cache=True, nogil=True)
def _lower(byte: int) -> int:
    return byte + 32 if 65 <= byte <= 90 else byte


@nb.njit(cache=True, nogil=True)
def _add(cells_D: Any, feature: Any, weight: int) -> None:
    """Adds the weight to the feature's cell, with the sign of a bit that does not choose the cell."""
    mixed = (feature ^ (feature >> np.uint64(33))) * MIX
    mixed ^= mixed >> np.uint64(33)
    cell = np.int64((mixed >> np.uint64(1)) % np.uint64(len(cells_D)))
    cells_D[cell] += weight if mixed & np.uint64(1) else -weight


@nb.njit(cache=True, nogil=True)
def _add_word(text: Any, start: int, stop: int, cells_D: Any) -> None:
    word = FNV_OFFSET
    for i in range(start, stop):
        word = (word ^ np.uint64(_lower(text[i]))) * FNV_PRIME
    _add(cells_D, word, min(stop - start, MAX_WORD_WEIGHT))
    for first in range(start, stop - PIECE_BYTES + 1):
        piece = FNV_OFFSET + np.uint64(1)  # another offset: a piece is not the word of the same letters
        for i in range(first, first + PIECE_BYTES):
            piece = (piece ^ np.uint64(_lower(text[i]))) * FNV_PRIME
        _add(cells_D, piece, 1)


@nb.njit(cache=True, nogil=True)
def _count_features(text: Any, offsets: Any, cells_ND: Any, words_N: Any) -> None:
    for row in range(len(offsets) - 1):
        start = -1
        for i in range(offsets[row], offsets[row + 1] + 1):
            inside = i < offsets[row + 1] and IS_WORD[text[i]]
            if inside and start < 0:
                start = i
            elif not inside and start >= 0:
                _add_word(text, start, i, cells_ND[row])
                words_N[row] += 1
                start = -1


def hash_texts(texts: Texts, dimension: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]]:
    """Unit vectors (N, D) and the number of words (N,) of the texts.

    A text without words, or whose features cancel out, is the first unit vector: valid, and near nothing in particular.
    """
    text, offsets = _utf8(texts)
    cells_ND = np.zeros((len(offsets) - 1, dimension), np.int32)
    words_N = np.zeros(len(offsets) - 1, np.int32)
    _count_features(text, offsets, cells_ND, words_N)
    squares_N = np.einsum("nd,nd->n", cells_ND, cells_ND, dtype=np.int64)  # exact, in any order
    cells_ND[squares_N == 0, 0] = 1
    norms_N = np.sqrt(np.maximum(squares_N, 1).astype(np.float64))
    return (cells_ND / norms_N[:, None]).astype(np.float16), words_N


def _utf8(texts: Texts) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The texts' bytes and their N + 1 offsets, as they lie in the Arrow buffers."""
    import pyarrow as pa

    array: pa.LargeStringArray
    array = pa.array(texts, pa.large_string()) if isinstance(texts, Sequence) else texts.cast(pa.large_string())
    if len(array) == 0:
        return np.zeros(1, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    rows = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8), rows


class HashingEncoder:
    """The `hashing:<dim>` encoder; passages and queries are treated alike."""

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

    def num_flops(self, num_tokens_N: npt.NDArray[np.int32]) -> float:
        """None that are worth counting."""
        return 0.0

    def matrix_rate(self) -> float:
        """It multiplies no matrices."""
        return 0.0

    def encode_passages(self, texts: Texts) -> EncodedBatch:
        """Unit vectors of the texts; a token is a word here, and nothing is ever cut off."""
        vectors_ND, words_N = hash_texts(texts, self.identity.dimension)
        return EncodedBatch(vectors_ND, words_N, num_truncated=0)

    def encode_windows(self, text_windows: Iterable[Texts]) -> Iterable[EncodedBatch]:
        """One result for each window of texts, in order."""
        return map(self.encode_passages, text_windows)

    def encode_queries(self, texts: Texts) -> npt.NDArray[np.float32]:
        """What `encode_passages` gives, as (Q, D) float32."""
        return self.encode_passages(texts).vectors_ND.astype(np.float32)
