"""Tokens of equally long chunks with padding that is no text, as trainers' formats store them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.view.chunk_set import ChunkSet

IntegerDtype: TypeAlias = np.dtype[np.uint16] | np.dtype[np.uint32] | np.dtype[np.int32] | np.dtype[np.int64]


def padded_chunk_tokens(chunks: ChunkSet, ids: Int64Array, pad: int, dtype: IntegerDtype) -> AnyArray:
    """(Q, m) tokens of chunks, with `pad` after the end of each. A missing or deleted chunk is all `pad`."""
    batch = chunks.gather_tokens(ids)
    is_token = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    return np.where(is_token, batch.tokens.astype(dtype), np.asarray(pad, dtype=dtype))


def token_dtype(largest: int) -> IntegerDtype:
    """The dtype in which trainers store tokens: uint16 where the largest id fits, int32 elsewhere."""
    return np.dtype(np.uint16) if largest < 1 << 16 else np.dtype(np.int32)
