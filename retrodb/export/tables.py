"""A neighbour table as two Arrow tables: rows with their neighbours, and the chunks that they name.

`rows`: row, document, position, tokens, neighbours (k ids, -1 for none), distances.
`chunks`: chunk_id, tokens, continuation (the next chunk's tokens, empty where there is none), doc_id, source.

A reader looks neighbours up by chunk_id, so a missing one (-1) finds nothing and can never become another chunk's text.
Each part holds what lies in one range of ids, so that it changes only when something in that range does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.export.source import ExportSource, state_of
from retrodb.format.arrays import Int64Array
from retrodb.view.chunk_set import ChunkTokens

if TYPE_CHECKING:
    import pyarrow as pa

_RANGE_IDS = 1 << 17


@dataclass(frozen=True)
class TablePart:
    """The rows of one of the two tables that lie in one range of ids."""

    table: str  # "rows" or "chunks"
    number: int  # of the range
    size_bytes: int  # before compression
    state: Callable[[], str]  # digest of what the content follows from
    content: Callable[[], pa.Table]


def table_parts(source: ExportSource) -> list[TablePart]:
    """The parts of both tables."""
    token_bytes = source.chunk_tokens * np.dtype(source.settings.token_dtype).itemsize
    rows = list(by_range(source.table.rows()))
    return [
        *_parts("rows", rows, token_bytes + 12 * source.k + 24, source, _rows_state, _rows_table),
        *_parts("chunks", by_range(_named(source, rows)), 2 * token_bytes + 40, source, _chunks_state, _chunks_table),
    ]


def by_range(ids: Int64Array) -> Iterator[Int64Array]:
    """Ascending ids, cut where a new range begins."""
    return iter(np.split(ids, np.flatnonzero(np.diff(ids // _RANGE_IDS)) + 1) if len(ids) else [])


def range_number(ids: Int64Array) -> int:
    """The range that a part's ids lie in: the same for as long as there are any."""
    return int(ids[0] // _RANGE_IDS)


def _parts(
    table: str,
    pieces: Iterable[Int64Array],
    row_bytes: int,
    source: ExportSource,
    state: Callable[[ExportSource, Int64Array], str],
    content: Callable[[ExportSource, Int64Array], pa.Table],
) -> Iterator[TablePart]:
    for ids in pieces:
        size = len(ids) * row_bytes
        yield TablePart(table, range_number(ids), size, partial(state, source, ids), partial(content, source, ids))


def _named(source: ExportSource, rows: list[Int64Array]) -> Int64Array:
    """The ids of all chunks that are a neighbour of some row, ascending."""
    from pyroaring import BitMap64

    named = BitMap64()
    for piece in rows:
        ids, _ = source.table.read(piece)
        named.update(np.unique(ids[ids >= 0]).tolist())
    return np.fromiter(named, dtype=np.int64, count=len(named))


def _rows_state(source: ExportSource, rows: Int64Array) -> str:
    return state_of([rows, *source.table.read(rows)])


def _chunks_state(source: ExportSource, ids: Int64Array) -> str:
    return state_of([ids, source.database.continuation(ids)])


def _rows_table(source: ExportSource, rows: Int64Array) -> pa.Table:
    import pyarrow as pa

    documents = source.queries.document_ids(rows)
    ids, distances = source.table.read(rows)
    return pa.table(
        {
            "row": rows,
            "document": documents,
            "position": rows - documents,
            "tokens": token_lists(source.queries.gather_tokens(rows)),
            "neighbours": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), source.k),
            "distances": pa.FixedSizeListArray.from_arrays(pa.array(distances.ravel()), source.k),
        }
    )


def _chunks_table(source: ExportSource, ids: Int64Array) -> pa.Table:
    import pyarrow as pa

    chunks = source.database
    own, which = np.unique(chunks.document_ids(ids), return_inverse=True)
    documents = chunks.documents(own)
    named = {
        "doc_id": pa.array([document and document["doc_id"] for document in documents], pa.string()),
        "source": pa.array([document and document["source"] for document in documents], pa.string()),
    }
    return pa.table(
        {
            "chunk_id": ids,
            "tokens": token_lists(chunks.gather_tokens(ids)),
            "continuation": token_lists(chunks.gather_tokens(chunks.continuation(ids))),
            **{name: column.take(pa.array(which)) for name, column in named.items()},
        }
    )


def token_lists(batch: ChunkTokens) -> pa.LargeListArray:
    """The tokens of each chunk as a list of its own length; a missing chunk is an empty list."""
    import pyarrow as pa

    inside = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    offsets = np.concatenate(([0], np.cumsum(batch.lengths)))
    return pa.LargeListArray.from_arrays(offsets, pa.array(batch.tokens[inside]))
