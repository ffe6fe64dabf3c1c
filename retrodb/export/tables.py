"""A neighbour table as two Arrow tables: the rows with their neighbours, and the chunks that are neighbours.

`rows`: row, document, position, tokens, neighbours (k ids, -1 for none), and how near each is: `similarity` of a space with inner
products (greater is nearer), `squared_distance` of one with distances (smaller is nearer), null for none.
`chunks`: chunk_id, tokens, continuation (the next chunk's tokens, empty where there is none), doc_id, source.

A reader looks neighbours up by chunk_id, so a missing one (-1) finds nothing and can never become the text of another chunk.
Each part covers one range of ids, so that it changes only when something in that range changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.export.export_file import ExportFile, whole_file
from retrodb.export.export_source import ExportSource, arrays_digest
from retrodb.format.arrays import Int64Array
from retrodb.format.records import ChunkRange
from retrodb.view.chunk_set import ChunkTokens

if TYPE_CHECKING:
    import pyarrow as pa

_RANGE_IDS = 1 << 17
_MAX_STRING_BYTES = (1 << 31) - 1
_NAMED_FILES = 16
"""Files with the bits of chunks that are neighbours: so many tasks find them, and each file has a bit for every chunk."""


@dataclass(frozen=True)
class TablePart:
    """The rows of one of the two tables in one range of ids."""

    table: str  # "rows" or "chunks"
    number: int  # of the range
    size_bytes: int  # before compression
    inputs_digest: Callable[[], str]  # of everything that the content depends on
    content: Callable[[], pa.Table]


def table_parts(source: ExportSource) -> list[TablePart]:
    """The parts that both tables can have; one whose digest is "" has no rows."""
    token_bytes = source.chunk_tokens * np.dtype(source.settings.token_dtype).itemsize
    num_rows = sum(span.num_chunks for span in source.table.spans())
    num_chunks = sum(record.num_chunks for record in source.database.ranges)
    named = min(1.0, num_rows * source.k / max(1, num_chunks))  # an upper bound of the fraction that is a neighbour
    rows_bytes, chunks_bytes = token_bytes + 12 * source.k + 24, int((2 * token_bytes + 40) * named)
    ranges = [record.span for record in source.database.ranges]
    return [
        *_parts(source, "rows", source.table.spans(), rows_bytes, _rows_of_range, _rows_digest, _rows_table),
        *_parts(source, "chunks", ranges, chunks_bytes, _named_of_range, _chunks_digest, _chunks_table),
    ]


def _parts(
    source: ExportSource,
    table: str,
    spans: Iterable[ChunkRange],
    row_bytes: int,
    ids_of: Callable[[ExportSource, int], Int64Array],
    inputs_digest: Callable[[ExportSource, Int64Array], str],
    content: Callable[[ExportSource, Int64Array], pa.Table],
) -> Iterator[TablePart]:
    def digest(number: int) -> str:
        ids = ids_of(source, number)
        return inputs_digest(source, ids) if len(ids) else ""

    for number, num_ids in _ids_by_range(spans).items():
        yield TablePart(
            table,
            number,
            num_ids * row_bytes,
            partial(digest, number),
            lambda number=number: content(source, ids_of(source, number)),  # type: ignore[misc]
        )


def _ids_by_range(spans: Iterable[ChunkRange]) -> dict[int, int]:
    """The ids that spans have in each range, by the number of the range, ascending."""
    counts: dict[int, int] = {}
    for span in spans:
        for number in range(span.first_chunk // _RANGE_IDS, -(-span.end // _RANGE_IDS)):
            start, end = max(span.first_chunk, number * _RANGE_IDS), min(span.end, (number + 1) * _RANGE_IDS)
            counts[number] = counts.get(number, 0) + end - start
    return dict(sorted(counts.items()))


def _rows_of_range(source: ExportSource, number: int) -> Int64Array:
    return source.table.rows_in(number * _RANGE_IDS, _RANGE_IDS)


def named_files(source: ExportSource) -> list[ExportFile]:
    """Files for `ExportSource.scratch`: a bit for every chunk that is a neighbour of a row, each file for some of the rows."""
    spans = source.table.spans()
    groups = np.array_split(np.arange(len(spans)), min(_NAMED_FILES, max(1, len(spans))))
    size = -(-source.database.end // 8)

    def write(path: Path, group: Int64Array) -> None:
        with path.open("wb") as file:
            file.truncate(size)
        if not size:
            return
        bits = np.memmap(path, dtype=np.uint8, mode="r+")
        for number in group.tolist():
            for rows in source.table.blocks_in(*spans[number]):
                ids = source.table.read(rows)[0]
                ids = np.unique(ids[ids >= 0])
                np.bitwise_or.at(bits, ids >> 3, (1 << (ids & 7)).astype(np.uint8))
        bits.flush()

    return [
        whole_file(_named_file(number), size, lambda: "named", partial(write, group=group))
        for number, group in enumerate(groups)
    ]


def _named_of_range(source: ExportSource, number: int) -> Int64Array:
    """The chunks of a range that are a neighbour of any row, ascending."""
    first, count = number * _RANGE_IDS // 8, _RANGE_IDS // 8
    named = np.zeros(count, dtype=np.uint8)
    for file in range(min(_NAMED_FILES, max(1, len(source.table.spans())))):
        bits = np.fromfile(source.scratch / _named_file(file), dtype=np.uint8, count=count, offset=first)
        named[: len(bits)] |= bits
    return number * _RANGE_IDS + np.flatnonzero(np.unpackbits(named, bitorder="little"))


def _named_file(number: int) -> str:
    return f"named-{number:02d}.bits"


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
    return pa.table(
        {
            "chunk_id": ids,
            "tokens": token_lists(chunks.gather_tokens(ids)),
            "continuation": token_lists(chunks.gather_tokens(chunks.continuation(ids))),
            "doc_id": repeated_strings([document and document["doc_id"] for document in documents], inverse),
            "source": repeated_strings([document and document["source"] for document in documents], inverse),
        }
    )


def repeated_strings(values: Sequence[str | None], inverse: Int64Array) -> pa.ChunkedArray:
    """The value of each row (Q,) by its number, as Arrow strings: in batches whose bytes 32-bit offsets can address."""
    import pyarrow as pa

    sizes = np.array([0 if value is None else len(value.encode()) for value in values], dtype=np.int64)
    ends = np.cumsum(sizes[inverse])
    batches, start = [], 0
    while start < len(inverse):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _MAX_STRING_BYTES, side="right")))
        batches.append(pa.array([values[number] for number in inverse[start:stop].tolist()], pa.string()))
        start = stop
    return pa.chunked_array(batches, pa.string())


def token_lists(batch: ChunkTokens) -> pa.LargeListArray:
    """The tokens of each chunk as a list of its own length; a missing chunk is an empty list."""
    import pyarrow as pa

    is_token = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    offsets = np.concatenate(([0], np.cumsum(batch.lengths)))
    return pa.LargeListArray.from_arrays(offsets, pa.array(batch.tokens[is_token]))
