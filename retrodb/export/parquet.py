"""Export to Parquet: a file of rows with their neighbours, and a file of the chunks that they name.

`rows/*.parquet`: row, document, position, tokens, neighbours (k ids, -1 for none), distances.
`chunks/*.parquet`: chunk_id, tokens, continuation (the next chunk's tokens, empty where there is none), doc_id, source.

A reader looks neighbours up by chunk_id, so a missing one (-1) finds nothing and can never become another chunk's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.parquet import write_table
from retrodb.view.chunk_set import ChunkSet, ChunkTokens
from retrodb.view.neighbour_table import NeighbourTable

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_ROWS = 1 << 17


def write_parquet(source: NeighbourTable, out: Path, advance: Callable[[int], None]) -> None:
    """Write the table's rows and all chunks that are neighbours of any row."""
    from pyroaring import BitMap64

    for name in ("rows", "chunks"):
        (out / name).mkdir()
    named = BitMap64()
    queries = source.view.query_set(source.query_set)
    for number, rows in enumerate(_pieces(source.rows())):
        ids, distances = source.read(rows)
        named.update(np.unique(ids[ids >= 0]).tolist())
        write_table(out / "rows" / f"{number:05d}.parquet", _rows_table(queries, rows, ids, distances))
        advance(len(rows))
    for number, chunk_ids in enumerate(_pieces(np.fromiter(named, dtype=np.int64, count=len(named)))):
        write_table(out / "chunks" / f"{number:05d}.parquet", _chunks_table(source.view.chunks, chunk_ids))


def estimate_parquet(source: NeighbourTable) -> int:
    """Bytes before compression, at most: every row with its tokens, and every row as a neighbour."""
    per_row = source.view.settings.chunk_tokens * np.dtype(source.view.settings.token_dtype).itemsize
    return len(source.rows()) * (3 * per_row + 12 * source.k + 24)


def _pieces(ids: Int64Array) -> Iterator[Int64Array]:
    for start in range(0, len(ids), _FILE_ROWS):
        yield ids[start : start + _FILE_ROWS]


def _rows_table(queries: ChunkSet, rows: Int64Array, ids: Int64Array, distances: AnyArray) -> pa.Table:
    import pyarrow as pa

    documents = queries.document_ids(rows)
    k = ids.shape[1]
    return pa.table(
        {
            "row": rows,
            "document": documents,
            "position": rows - documents,
            "tokens": token_lists(queries.gather_tokens(rows)),
            "neighbours": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), k),
            "distances": pa.FixedSizeListArray.from_arrays(pa.array(distances.ravel()), k),
        }
    )


def _chunks_table(chunks: ChunkSet, ids: Int64Array) -> pa.Table:
    import pyarrow as pa

    documents = [document or {} for document in chunks.documents(ids)]
    return pa.table(
        {
            "chunk_id": ids,
            "tokens": token_lists(chunks.gather_tokens(ids)),
            "continuation": token_lists(chunks.gather_tokens(chunks.continuation(ids))),
            "doc_id": pa.array([document.get("doc_id") for document in documents], pa.string()),
            "source": pa.array([document.get("source") for document in documents], pa.string()),
        }
    )


def token_lists(batch: ChunkTokens) -> pa.LargeListArray:
    """The tokens of each chunk as a list of its own length; a missing chunk is an empty list."""
    import pyarrow as pa

    inside = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    offsets = np.concatenate(([0], np.cumsum(batch.lengths)))
    return pa.LargeListArray.from_arrays(offsets, pa.array(batch.tokens[inside]))
