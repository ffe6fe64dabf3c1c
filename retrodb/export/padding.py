"""Tokens at a fixed stride with padding that is no text, as trainers' formats store them."""

from __future__ import annotations

import numpy as np

from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet


def padded_tokens(chunks: ChunkSet, ids: Int64Array, pad: int, dtype: np.dtype[np.generic]) -> AnyArray:
    """(Q, m) tokens of chunks, `pad` behind the end of each; a missing or deleted chunk is nothing else."""
    batch = chunks.gather_tokens(ids)
    inside = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    return np.where(inside, batch.tokens.astype(dtype), np.asarray(pad, dtype=dtype))


def token_dtype(largest: int) -> np.dtype[np.generic]:
    """What trainers store tokens as: uint16 where the largest id fits, int32 elsewhere."""
    return np.dtype(np.uint16) if largest < 1 << 16 else np.dtype(np.int32)
