"""Arrow string arrays as bytes and offsets, without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from retrodb.errors import InputError
from retrodb.format.arrays import ByteArray, Int64Array


def text_buffers(texts: pa.Array) -> tuple[ByteArray, Int64Array]:
    """The bytes and the (M + 1,) offsets of an Arrow string array.

    A LargeStringArray without nulls is not copied. A null counts as an empty text.

    Raises:
        InputError: when the array holds no strings.
    """
    if not (pa.types.is_large_string(texts.type) or pa.types.is_string(texts.type)):
        raise InputError(f"texts must be strings, not {texts.type}")
    if texts.null_count:
        texts = texts.fill_null("")
    if pa.types.is_string(texts.type):
        texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8), bounds


def join_chunk_texts(chunk_texts: pa.Array, first_rows: Int64Array) -> pa.LargeStringArray:
    """Documents as a zero-copy view of their chunks' texts.

    Args:
        chunk_texts: (R,) texts; the rows of a document follow each other.
        first_rows: (M + 1,) first row of each document, and the end of the last.
    """
    data, offsets = text_buffers(chunk_texts)
    bounds = np.ascontiguousarray(offsets[first_rows])
    return pa.LargeStringArray.from_buffers(len(first_rows) - 1, pa.py_buffer(bounds), pa.py_buffer(data))
