"""Export as plain arrays: eight memory-mapped `.npy` files for a trainer of one's own, and `meta.json`.

N database chunks and Q query rows of m tokens, K neighbours; a place is a row of `tokens.npy`, -1 where there is none::

    tokens.npy (N, m)        lengths.npy (N,)        continuations.npy (N,) places
    query_tokens.npy (Q, m)  query_lengths.npy (Q,)  query_bytes.npy (Q,)  query_documents.npy (Q,)
    neighbours.npy (Q, K) places

A chunk of length 0 is padding: a missing one has no place, one that was deleted after the export keeps its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from retrodb.export.layout import ExportPositions
from retrodb.export.pieces import Piece, json_file
from retrodb.export.source import ExportSource
from retrodb.format.arrays import AnyArray, Int64Array, growing_array
from retrodb.format.entries import SpaceEntry
from retrodb.view.chunk_set import ChunkSet

AnyDtype: TypeAlias = np.dtype[Any]
Gather: TypeAlias = Callable[[Int64Array], AnyArray]
"""From a block of ids to their rows of an array."""

_PLACE, _LENGTH = np.dtype(np.int64), np.dtype(np.uint16)
_NPY_HEADER_BYTES = 128


def pieces_of_arrays(source: ExportSource) -> list[Piece]:
    """The files of the export."""
    m, token = source.chunk_tokens, np.dtype(source.settings.token_dtype)
    database, queries = source.database, source.queries

    def of_chunks(name: str, dtype: AnyDtype, gather: Gather, *shape: int) -> Piece:
        return array_piece(name, source.chunks, dtype, shape, source.state_of_chunks, gather)

    def of_rows(name: str, dtype: AnyDtype, gather: Gather, *shape: int) -> Piece:
        return array_piece(name, source.rows, dtype, shape, source.state_of_rows, gather)

    return [
        of_chunks("tokens.npy", token, lambda ids: database.gather_tokens(ids).tokens, m),
        of_chunks("lengths.npy", _LENGTH, lambda ids: database.gather_tokens(ids).lengths),
        of_chunks("continuations.npy", _PLACE, source.continuations),
        of_rows("query_tokens.npy", token, lambda ids: queries.gather_tokens(ids).tokens, m),
        of_rows("query_lengths.npy", _LENGTH, lambda ids: queries.gather_tokens(ids).lengths),
        of_rows("query_bytes.npy", np.dtype(np.int32), lambda ids: _text_bytes(queries, ids)),
        of_rows("query_documents.npy", _PLACE, queries.document_ids),
        array_piece("neighbours.npy", source.rows, _PLACE, (source.k,), source.state_of_neighbours, source.neighbours),
        _meta(source),
    ]


def array_piece(
    name: str,
    layout: ExportPositions,
    dtype: AnyDtype,
    shape: tuple[int, ...],
    state: Callable[[], str],
    gather: Gather,
) -> Piece:
    """A `.npy` file with a row for every place of a layout."""

    def write(path: Path) -> None:
        with growing_array(path, dtype, shape) as append:
            for ids in layout.blocks():
                append(gather(ids))

    size = _NPY_HEADER_BYTES + len(layout) * dtype.itemsize * math.prod(shape)
    return Piece(name, size, state, write)


def _text_bytes(chunks: ChunkSet, ids: Int64Array) -> AnyArray:
    return np.array([len(text.encode()) for text in chunks.texts(ids)], dtype=np.int32)


def _meta(source: ExportSource) -> Piece:
    settings = source.settings
    meta = {
        "format": "retrodb-arrays",
        "version": 1,
        "chunk_tokens": source.chunk_tokens,
        "k": source.k,
        "vocab_size": settings.vocab_size,
        "pad_token": settings.vocab_size,
        "tokenizer": settings.tokenizer_sha256,
        "encoder": source.view.snapshot.existing(SpaceEntry, source.table.entry.space).fingerprint,
    }
    return json_file("meta.json", meta)
