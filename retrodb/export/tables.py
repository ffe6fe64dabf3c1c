"""A neighbour table as two Arrow tables: the rows with their neighbours, and the chunks that are neighbours.

`rows`: row, document, position, tokens, neighbours (k ids, -1 for none), and how near each is: `similarity` of a space with inner
products (greater is nearer), `squared_distance` of one with distances (smaller is nearer), null for none.
`chunks`: chunk_id, tokens, continuation (the next chunk's tokens, empty where there is none), doc_id, source.

A reader looks neighbours up by chunk_id, so a missing one (-1) finds nothing and can never become the text of another chunk.
Each part covers one range of ids, so that it changes only when something in that range changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.export.export_source import ExportSource, arrays_digest
from retrodb.format.arrays import Int64Array
from retrodb.view.chunk_set import ChunkTokens

if TYPE_CHECKING:
    import pyarrow as pa

_RANGE_IDS = 1 << 17


@dataclass(frozen=True)
class TablePart:
    """The rows of one of the two tables in one range of ids."""

    table: str  # "rows" or "chunks"
    number: int  # of the range
    size_bytes: int  # before compression
    inputs_digest: Callable[[], str]  # of everything that the content depends on
    content: Callable[[], pa.Table]


def table_parts(source: ExportSource) -> list[TablePart]:
    """The parts of both tables."""
    token_bytes = source.chunk_tokens * np.dtype(source.settings.token_dtype).itemsize
    rows = list(split_by_range(source.table.rows()))
    chunks = split_by_range(_neighbour_ids(source, rows))
    return [
        *_parts("rows", rows, token_bytes + 12 * source.k + 24, source, _rows_digest, _rows_table),
        *_parts("chunks", chunks, 2 * token_bytes + 40, source, _chunks_digest, _chunks_table),
    ]


def split_by_range(ids: Int64Array) -> Iterator[Int64Array]:
    """Ascending ids, cut where a new range begins."""
    return iter(np.split(ids, np.flatnonzero(np.diff(ids // _RANGE_IDS)) + 1) if len(ids) else [])


def range_number(ids: Int64Array) -> int:
    """The number of the range that all of these ids lie in."""
    return int(ids[0] // _RANGE_IDS)


def _parts(
    table: str,
    ranges: Iterable[Int64Array],
    row_bytes: int,
    source: ExportSource,
    inputs_digest: Callable[[ExportSource, Int64Array], str],
    content: Callable[[ExportSource, Int64Array], pa.Table],
) -> Iterator[TablePart]:
    for ids in ranges:
        size = len(ids) * row_bytes
        yield TablePart(
            table, range_number(ids), size, partial(inputs_digest, source, ids), partial(content, source, ids)
        )


def _neighbour_ids(source: ExportSource, rows: list[Int64Array]) -> Int64Array:
    """The ids of all chunks that are a neighbour of any row, ascending."""
    from pyroaring import BitMap64

    named = BitMap64()
    for block in rows:
        ids, _ = source.table.read(block)
        named.update(np.unique(ids[ids >= 0]).tolist())
    return np.fromiter(named, dtype=np.int64, count=len(named))


def _rows_digest(source: ExportSource, rows: Int64Array) -> str:
    return arrays_digest([rows, *source.table.read(rows)])


def _chunks_digest(source: ExportSource, ids: Int64Array) -> str:
    return arrays_digest([ids, source.database.continuation(ids)])


def _rows_table(source: ExportSource, rows: Int64Array) -> pa.Table:
    import pyarrow as pa

    documents = source.queries.document_ids(rows)
    ids, scores = source.table.read_scores(rows)
    return pa.table(
        {
            "row": rows,
            "document": documents,
            "position": rows - documents,
            "tokens": token_lists(source.queries.gather_tokens(rows)),
            "neighbours": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), source.k),
            source.table.measure: pa.FixedSizeListArray.from_arrays(
                pa.array(scores.ravel(), mask=(ids < 0).ravel()), source.k
            ),
        }
    )


def _chunks_table(source: ExportSource, ids: Int64Array) -> pa.Table:
    import pyarrow as pa

    chunks = source.database
    unique, inverse = np.unique(chunks.document_ids(ids), return_inverse=True)
    documents = chunks.documents(unique)
    named = {
        "doc_id": pa.array([document and document["doc_id"] for document in documents], pa.string()),
        "source": pa.array([document and document["source"] for document in documents], pa.string()),
    }
    return pa.table(
        {
            "chunk_id": ids,
            "tokens": token_lists(chunks.gather_tokens(ids)),
            "continuation": token_lists(chunks.gather_tokens(chunks.continuation(ids))),
            **{name: column.take(pa.array(inverse)) for name, column in named.items()},
        }
    )


def token_lists(batch: ChunkTokens) -> pa.LargeListArray:
    """The tokens of each chunk as a list of its own length; a missing chunk is an empty list."""
    import pyarrow as pa

    is_token = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    offsets = np.concatenate(([0], np.cumsum(batch.lengths)))
    return pa.LargeListArray.from_arrays(offsets, pa.array(batch.tokens[is_token]))
