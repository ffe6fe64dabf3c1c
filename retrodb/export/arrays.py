"""Export as plain arrays for your own trainer: eight `.npy` files that can be memory-mapped, and `meta.json`.

N database chunks and Q query rows of m tokens, K neighbours; a position is a row of `tokens.npy`, -1 where there is none::

    tokens.npy (N, m)        lengths.npy (N,)        continuations.npy (N,) positions
    query_tokens.npy (Q, m)  query_lengths.npy (Q,)  query_bytes.npy (Q,)  query_documents.npy (Q,)
    neighbours.npy (Q, K) positions

A chunk of length 0 is padding: it was deleted after the export, and keeps its position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from retrodb.export.arrays_format import FORMAT, META_FILE, VERSION, ArraysMeta
from retrodb.export.export_file import ExportFile, FileRange, RangedPiece, json_file, ranged_file
from retrodb.export.export_source import ExportSource
from retrodb.export.padding import IntegerDtype
from retrodb.export.positions import ExportPositions, PositionSpan
from retrodb.format.arrays import AnyArray, Int64Array, array_header
from retrodb.format.entries import SpaceEntry
from retrodb.view.chunk_set import ChunkSet

Gather: TypeAlias = Callable[[Int64Array], AnyArray]
"""A block of ids (Q,) -> their rows of an array (Q, ...)."""
SpanDigest: TypeAlias = Callable[[PositionSpan], str]
"""A span -> a digest of everything that its rows depend on."""

_POSITION, _LENGTH = np.dtype(np.int64), np.dtype(np.uint16)


def arrays_files(source: ExportSource) -> list[ExportFile]:
    """The files of the export."""
    m, token = source.chunk_tokens, np.dtype(source.settings.token_dtype)
    database, queries = source.database, source.queries

    def of_chunks(name: str, dtype: IntegerDtype, gather: Gather, *shape: int) -> ExportFile:
        return array_file(f"{name}.npy", source.chunks, dtype, shape, source.chunks_digest, gather)

    def of_rows(name: str, dtype: IntegerDtype, gather: Gather, *shape: int) -> ExportFile:
        return array_file(f"{name}.npy", source.rows, dtype, shape, source.rows_digest, gather)

    return [
        of_chunks("tokens", token, lambda ids: database.gather_tokens(ids).tokens, m),
        of_chunks("lengths", _LENGTH, lambda ids: database.gather_tokens(ids).lengths),
        of_chunks("continuations", _POSITION, source.continuations),
        of_rows("query_tokens", token, lambda ids: queries.gather_tokens(ids).tokens, m),
        of_rows("query_lengths", _LENGTH, lambda ids: queries.gather_tokens(ids).lengths),
        of_rows("query_bytes", np.dtype(np.int32), lambda ids: _text_bytes(queries, ids)),
        of_rows("query_documents", _POSITION, queries.document_ids),
        array_file("neighbours.npy", source.rows, _POSITION, (source.k,), source.neighbours_digest, source.neighbours),
        _meta(source),
    ]


def array_file(
    name: str,
    positions: ExportPositions,
    dtype: IntegerDtype,
    shape: tuple[int, ...],
    inputs_digest: SpanDigest,
    gather: Gather,
) -> ExportFile:
    """A `.npy` file with one row for every position, in one piece for every span.

    Args:
        shape: of one row.
        gather: gives the rows of a block of ids.
    """
    head = array_header(dtype, (len(positions), *shape))
    row_bytes = dtype.itemsize * math.prod(shape)

    def piece(span: PositionSpan) -> RangedPiece:
        def blocks() -> Iterator[AnyArray]:
            return (gather(ids).astype(dtype, copy=False) for ids in span.blocks())

        part = FileRange(len(head) + span.first * row_bytes, len(span) * row_bytes, blocks)
        return RangedPiece(partial(inputs_digest, span), [part])

    return ranged_file(name, [piece(span) for span in positions.spans], head=head)


def _text_bytes(chunks: ChunkSet, ids: Int64Array) -> AnyArray:
    return np.array([len(text.encode()) for text in chunks.texts(ids)], dtype=np.int32)


def _meta(source: ExportSource) -> ExportFile:
    settings = source.settings
    meta = ArraysMeta(
        format=FORMAT,
        version=VERSION,
        chunk_tokens=source.chunk_tokens,
        k=source.k,
        vocab_size=settings.vocab_size,
        pad_token=settings.vocab_size,
        tokenizer=settings.tokenizer_sha256,
        encoder=source.view.snapshot.existing(SpaceEntry, source.table.entry.space).fingerprint,
    )
    return json_file(META_FILE, meta)
