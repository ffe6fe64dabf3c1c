"""Exposure: the rows of a neighbour table that contain n-grams of a test set, in their own text or through neighbours.

The *own text* of a row matches where a shared n-gram touches its chunk, also one that crosses the chunk's border. The
*neighbours* match where an n-gram is in a neighbour's chunk, and the *continuations* where one touches the chunk after it.
The table is compared as it was written, because this is what a trainer read. A match is *live* when today's table still
has it. The rows of one shard of the query set are compared at a time.

Legend: Q rows of a range of the table, k neighbours of a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from retrodb.dedup.exact_scan import scan_texts, touched_chunks
from retrodb.dedup.shingle_table import ShingleTable
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.records import ChunkRange
from retrodb.stages.context import Context
from retrodb.stages.dedup.testset import open_table, registered_testset
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.document_blocks import document_blocks
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

_BLOCK = 1 << 12  # neighbours whose texts are in memory at once


@dataclass(frozen=True)
class ExposedRow:
    """A row of a query set that contains n-grams of a test set."""

    row: int  # of the query set
    sample: int  # its position in the table, from 0
    doc_id: str  # of its document
    is_seen: bool  # it is among the consumed samples
    is_live: bool  # today's table would expose it too
    own_items: tuple[str, ...]  # items with an n-gram in its own text
    neighbour_items: tuple[str, ...]  # items with an n-gram in a neighbour
    continuation_items: tuple[str, ...]  # items with an n-gram in a neighbour's continuation
    chunks: tuple[int, ...]  # ids of these neighbours


@dataclass(frozen=True)
class ExposureResult:
    """How much of a table contains n-grams of a test set."""

    table: str
    testset: str
    num_rows: int  # of the table
    num_consumed_samples: int  # the first rows of the table, in the order of their numbers
    num_exposed_seen: int  # exposed rows among them
    num_exposed_unseen: int  # exposed rows after them
    num_exposed_unseen_live: int  # of these, the ones that today's table would expose too
    exposed: tuple[ExposedRow, ...]  # by row


@dataclass
class _NeighbourItems:
    """Items of the test set with an n-gram in a neighbour."""

    chunk: set[int] = field(default_factory=set)
    continuation: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Comparison:
    """A table that is compared with a test set."""

    view: View
    table: NeighbourTable
    queries: ChunkSet
    chunks_then: ChunkSet | None  # as they were when the table was computed; None when that snapshot has expired
    items: ShingleTable
    consumed_samples: int


@dataclass(frozen=True)
class _Matches:
    """The rows of a range and their neighbours that have n-grams of a test set."""

    items: ShingleTable
    own_items: dict[int, set[int]]  # row of the query set -> items
    neighbour_items: dict[int, _NeighbourItems]  # chunk id -> items


def run_exposure(
    context: Context,
    testset: str,
    *,
    table: str | None = None,
    consumed_samples: int = 0,
    as_of: int | None = None,
) -> ExposureResult:
    """Find the exposed rows of a neighbour table.

    Args:
        consumed_samples: number of rows that the training has consumed, in the order of their numbers.

    Raises:
        UsageError: when the test set is not registered.
        MissingStep: when there is no such table.
    """
    if consumed_samples < 0:
        raise UsageError(f"{consumed_samples} consumed samples", remedy="Give 0 or more.")
    view = context.view(as_of)
    items = open_table(view, registered_testset(view, testset))
    neighbours = NeighbourTable(view, table)
    queries = view.query_set(neighbours.query_set)
    comparison = _Comparison(view, neighbours, queries, _chunks_of_table(context, neighbours), items, consumed_samples)
    exposed, num_rows = list[ExposedRow](), 0
    for span in _spans(neighbours, queries):
        rows = neighbours.all_rows_in(*span)
        exposed += _exposed_rows(comparison, span, rows, num_rows) if len(rows) else ()
        num_rows += len(rows)
    return ExposureResult(
        table=neighbours.name,
        testset=testset,
        num_rows=num_rows,
        num_consumed_samples=min(consumed_samples, num_rows),
        num_exposed_seen=sum(row.is_seen for row in exposed),
        num_exposed_unseen=sum(not row.is_seen for row in exposed),
        num_exposed_unseen_live=sum(row.is_live and not row.is_seen for row in exposed),
        exposed=tuple(exposed),
    )


def _spans(table: NeighbourTable, queries: ChunkSet) -> Iterator[ChunkRange]:
    """Ranges that together have all rows of a table, ascending: those of the query set, and gaps whose documents are lost."""
    end, last = 0, ChunkRange(max((file.span.end for file in table.files), default=0), 0)
    for span in [*(record.span for record in queries.ranges), last]:
        if end < span.first_chunk:
            yield ChunkRange(end, span.first_chunk - end)
        if span.num_chunks:
            yield span
        end = max(end, span.end)


def _exposed_rows(
    comparison: _Comparison, span: ChunkRange, rows: Int64Array, first_sample: int
) -> Iterator[ExposedRow]:
    """The exposed ones of the rows (Q,) that the table has in a range.

    Args:
        first_sample: position in the table of the first of these rows.
    """
    view, queries, items = comparison.view, comparison.queries, comparison.items
    written, today = comparison.table.written(rows), comparison.table.read(rows)[0]  # (Q, k) each
    near = np.hstack([written, today])
    neighbour_items = _neighbour_items(view, comparison.chunks_then, np.unique(near), items)
    matches = _Matches(items, _own_items(queries, span, items), neighbour_items)
    is_exposed = np.isin(rows, list(matches.own_items)) | np.isin(near, list(neighbour_items)).any(axis=1)
    is_live = queries.is_live(rows[is_exposed]).tolist()
    for index, document, is_row_live in zip(
        np.flatnonzero(is_exposed).tolist(), queries.documents(rows[is_exposed]), is_live, strict=True
    ):
        yield _exposed_row(
            view,
            matches,
            row=int(rows[index]),
            sample=first_sample + index,
            doc_id=document["doc_id"] if document else "",
            is_seen=first_sample + index < comparison.consumed_samples,
            is_row_live=is_row_live,
            written=set(written[index].tolist()),
            today=set(today[index].tolist()),
        )


def _exposed_row(
    view: View,
    matches: _Matches,
    *,
    row: int,
    sample: int,
    doc_id: str,
    is_seen: bool,
    is_row_live: bool,
    written: set[int],
    today: set[int],
) -> ExposedRow:
    """One row, with its neighbours as the table was written and as it is today."""
    own_items, of_chunk = matches.own_items.get(row, set()), matches.neighbour_items
    chunks = sorted((written | today) & of_chunk.keys())
    has_live_chunk = any(chunk in today and _is_live(view, chunk, of_chunk[chunk]) for chunk in chunks)
    return ExposedRow(
        row=row,
        sample=sample,
        doc_id=doc_id,
        is_seen=is_seen,
        is_live=is_row_live and (has_live_chunk or bool(own_items)),
        own_items=_ids(matches.items, own_items),
        neighbour_items=_ids(matches.items, set().union(*(of_chunk[chunk].chunk for chunk in chunks))),
        continuation_items=_ids(matches.items, set().union(*(of_chunk[chunk].continuation for chunk in chunks))),
        chunks=tuple(chunks),
    )


def _chunks_of_table(context: Context, table: NeighbourTable) -> ChunkSet | None:
    """The chunks as they were when the table was computed; None when that snapshot has expired."""
    try:
        return context.view(table.entry.snapshot).chunks
    except UsageError:
        return None


def _own_items(chunks: ChunkSet, span: ChunkRange, items: ShingleTable) -> dict[int, set[int]]:
    """The items that have an n-gram in each row of a range of a query set, in the text of the row's document."""
    items_of: dict[int, set[int]] = defaultdict(set)
    for record in chunks.overlapping("documents", *span):
        file = chunks.file("chunks", *record.span)
        for block in document_blocks(chunks.files.open(file), chunks.layout(record), chunks.files.rows(file).present):
            hits = scan_texts(block.documents(), items).hits
            for hit, document in enumerate(hits.document.tolist()):
                first, end = block.bounds[document], block.bounds[document + 1]
                ranges = slice(hits.range_offsets[hit], hits.range_offsets[hit + 1])
                offsets = block.offsets(int(first), int(end))
                touched = touched_chunks(hits.range_start[ranges], hits.range_end[ranges], offsets)
                for row in (record.first_chunk + block.rows[first + touched]).tolist():
                    items_of[row].add(int(hits.item[hit]))
    return items_of


def _neighbour_items(
    view: View, chunks_then: ChunkSet | None, ids: Int64Array, items: ShingleTable
) -> dict[int, _NeighbourItems]:
    """The items that have an n-gram in each neighbour, or in its continuation."""
    items_of: dict[int, _NeighbourItems] = defaultdict(_NeighbourItems)
    ids = ids[ids >= 0]
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        following = chunks_then.continuation(block) if chunks_then is not None else _next_chunk(view.chunks, block)
        texts, continuations = (view.chunks.texts(chunks, deleted_too=True) for chunks in (block, following))
        for index, item, _ in _common_ngrams(texts, items):
            items_of[int(block[index])].chunk.add(item)
        both = [text + continuation for text, continuation in zip(texts, continuations, strict=True)]
        for index, item, end in _common_ngrams(both, items):
            if end > len(texts[index].encode()):
                items_of[int(block[index])].continuation.add(item)
    return items_of


def _next_chunk(chunks: ChunkSet, ids: Int64Array) -> Int64Array:
    """(Q,) the next chunk of the same document, deleted or not; -1 for none."""
    is_same = chunks.document_ids(ids + 1) == chunks.document_ids(ids)
    return np.where(is_same, ids + 1, -1)


def _common_ngrams(texts: list[str], items: ShingleTable) -> Iterator[tuple[int, int, int]]:
    """Every text and item with a shared n-gram, and the end in bytes of the last one in the text."""
    hits = scan_texts(pa.array(texts, pa.large_string()), items).hits
    ends = hits.range_end[hits.range_offsets[1:] - 1]
    yield from zip(hits.document.tolist(), hits.item.tolist(), ends.tolist(), strict=True)


def _is_live(view: View, chunk: int, items: _NeighbourItems) -> bool:
    """Whether a live neighbour still has an n-gram in it or in its continuation."""
    return bool(items.chunk) or view.chunks.continuation(np.array([chunk]))[0] >= 0


def _ids(items: ShingleTable, numbers: set[int]) -> tuple[str, ...]:
    return tuple(items.id(item) for item in sorted(numbers))
