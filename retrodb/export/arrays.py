"""Export as plain arrays for your own trainer: eight `.npy` files that can be memory-mapped, and `meta.json`.

N database chunks and Q query rows of m tokens, K neighbours; a position is a row of `tokens.npy`, -1 where there is none::

    tokens.npy (N, m)        lengths.npy (N,)        continuations.npy (N,) positions
    query_tokens.npy (Q, m)  query_lengths.npy (Q,)  query_bytes.npy (Q,)  query_documents.npy (Q,)
    neighbours.npy (Q, K) positions

A chunk of length 0 is padding: it was deleted after the export, and keeps its position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from retrodb.export.arrays_format import FORMAT, META_FILE, VERSION, ArraysMeta
from retrodb.export.export_source import ExportSource
from retrodb.export.folder import ExportFile, json_file
from retrodb.export.padding import IntegerDtype
from retrodb.export.positions import ExportPositions
from retrodb.format.arrays import AnyArray, Int64Array, growing_array
from retrodb.format.entries import SpaceEntry
from retrodb.view.chunk_set import ChunkSet

Gather: TypeAlias = Callable[[Int64Array], AnyArray]
"""A block of ids (Q,) -> their rows of an array (Q, ...)."""

_POSITION, _LENGTH = np.dtype(np.int64), np.dtype(np.uint16)
_NPY_HEADER_BYTES = 128


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
    inputs_digest: Callable[[], str],
    gather: Gather,
) -> ExportFile:
    """A `.npy` file with one row for every position.

    Args:
        shape: of one row.
        inputs_digest: of everything that the rows depend on.
        gather: gives the rows of a block of ids.
    """

    def write(path: Path) -> None:
        with growing_array(path, dtype, shape) as append:
            for ids in positions.blocks():
                append(gather(ids))

    size = _NPY_HEADER_BYTES + len(positions) * dtype.itemsize * math.prod(shape)
    return ExportFile(name, size, inputs_digest, write)


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
