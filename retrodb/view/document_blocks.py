"""The texts of whole documents, some row groups at a time: what dedup and exposure hold does not grow with the shard.

Shapes: `R` chunks and `M` documents of a block, `W` windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrodb.format.arrays import Int64Array
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.text_arrays import join_chunk_texts, text_buffers
from retrodb.view.layout import DocumentLayout

if TYPE_CHECKING:
    from retrodb.view.chunk_set import ChunkSet

_BLOCK_ROWS = 1 << 15  # about 10 MB of text
EMPTY = pa.scalar("", pa.large_string())
_SEPARATOR = "\n"  # between key and value, so that no word is made of the last of one and the first of the other


@dataclass(frozen=True)
class DocumentBlock:
    """Consecutive documents of one range."""

    first_document: int  # of the range's documents
    rows: Int64Array  # (R,) the row in the range of each chunk
    texts: pa.LargeStringArray  # (R,) its text, the first one of a value behind a separator
    bounds: Int64Array  # (M + 1,) first chunk of each document, and the end

    def documents(self) -> pa.LargeStringArray:
        """(M,) the documents' texts, without a copy."""
        return join_chunk_texts(self.texts, self.bounds)

    def windows(self) -> Iterator[tuple[pa.LargeStringArray, Int64Array, Int64Array]]:
        """All texts that a reader may see: documents, chunks, and chunks with their continuation.

        Yields:
            (W,) texts, and the first chunk and the end of each.
        """
        yield self.documents(), self.bounds[:-1], self.bounds[1:]
        chunks = np.arange(len(self.texts))
        yield self.texts, chunks, chunks + 1
        is_first = np.isin(chunks, self.bounds)
        pairs = np.flatnonzero(~is_first[1:] & (np.diff(self.rows) == 1))
        yield pc.binary_join_element_wise(self.texts.take(pairs), self.texts.take(pairs + 1), EMPTY), pairs, pairs + 2

    def offsets(self, first: int, end: int) -> Int64Array:
        """(end - first + 1,) where each of some chunks begins in the bytes of their joined text, and the end."""
        offsets = text_buffers(self.texts)[1][first : end + 1]
        return np.asarray(offsets - offsets[0])


def document_blocks(path: Path, layout: DocumentLayout, rows: Int64Array) -> Iterator[DocumentBlock]:
    """The documents of a chunks file in order.

    Args:
        rows: the rows of the range that the file holds, ascending.
    """
    starts = np.searchsorted(rows, layout.first_row)
    ends = np.append(starts[1:], len(rows)).astype(np.int64)
    pending: list[pa.Array] = []
    document, begin, end = 0, 0, 0
    for group in iterate_row_groups(path, ["text"]):
        pending += group.column("text").chunks
        end += group.num_rows
        last = int(np.searchsorted(ends, end, "right"))  # documents before it are here whole
        if last == document or (end - begin < _BLOCK_ROWS and end < len(rows)):
            continue
        texts = pa.concat_arrays(pending)
        size = int(ends[last - 1]) - begin
        bounds = np.append(starts[document:last], ends[last - 1]).astype(np.int64) - begin
        block_rows = rows[begin : begin + size]
        separated = _separated(texts.slice(0, size), block_rows, layout, document, last)
        yield DocumentBlock(document, block_rows, separated, bounds)
        pending, begin, document = [texts.slice(size)], begin + size, last


def document_texts(chunks: ChunkSet, ids: Int64Array) -> pa.LargeStringArray:
    """The texts of the documents whose first chunks are `ids`, deleted or not, as a block has them."""
    documents = [document for document in chunks.documents(ids) if document is not None]
    spans = [np.arange(d["first_chunk"], d["first_chunk"] + d["num_chunks"]) for d in documents]
    texts = iter(chunks.texts(np.concatenate([np.empty(0, np.int64), *spans]), deleted_too=True))
    joined = []
    for document in documents:
        parts = [next(texts) for _ in range(document["num_chunks"])]
        keys = document["num_key_chunks"]
        joined.append("".join([*parts[:keys], _SEPARATOR, *parts[keys:]]) if keys else "".join(parts))
    return pa.array(joined, pa.large_string())


def _separated(texts: pa.Array, rows: Int64Array, layout: DocumentLayout, first: int, last: int) -> pa.LargeStringArray:
    num_keys = layout.num_key_chunks[first:last]
    if not num_keys.any():
        return texts
    begins_value = np.isin(rows, (layout.first_row[first:last] + num_keys)[num_keys > 0])
    before = pc.if_else(pa.array(begins_value), pa.scalar(_SEPARATOR, pa.large_string()), EMPTY)
    return pc.binary_join_element_wise(before, texts, EMPTY)
