"""The tasks that compare a neighbour table with a test set. Each reads rows of the table, or chunks, of some shards.

    rows of the table ──NAMED──> ids of the chunks that they name, ascending
    ids of some shards ──MATCH──> those of them, and of their continuations, with n-grams of the test set
    rows and all matches ──ROWS──> exposed rows

Legend: Q rows of a range of the table, k neighbours of a row, H matches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from retrodb.dedup.exact_scan import scan_texts, touched_chunks
from retrodb.dedup.shingle_table import ShingleTable
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.dedup.testset import open_table, registered_testset
from retrodb.stages.file_list import read_file_list
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.document_blocks import document_blocks
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

IN_CHUNK, IN_CONTINUATION, IN_LIVE_CONTINUATION = range(3)
"""Where a match is: in the chunk; or in the chunk after it in its document, which is deleted now, or is not."""

_BLOCK = 1 << 12  # neighbours whose texts are in memory at once


@dataclass(frozen=True)
class ComparedTable:
    """A table and a test set."""

    snapshot: PlannedSnapshot
    computed: PlannedSnapshot | None  # that the table was computed on; None when that snapshot has expired
    testset: str
    table: str


@dataclass(frozen=True)
class NamedPayload:
    """Collect the chunks that rows of some ranges name."""

    run: str  # id of the run that stores them
    compared: ComparedTable
    spans: tuple[ChunkRange, ...]


@dataclass(frozen=True)
class MatchPayload:
    """Compare the named chunks of some shards."""

    run: str
    compared: ComparedTable
    named: FileRecord  # list of files, each (n,) int64, ascending
    span: ChunkRange  # of the shards


@dataclass(frozen=True)
class RowsPayload:
    """Find the exposed rows of some ranges."""

    compared: ComparedTable
    matches: FileRecord  # (H, 3) int64, by chunk: chunk, item, where
    spans: tuple[ChunkRange, ...]
    first_sample: int  # position in the table of the first row of these ranges
    consumed_samples: int


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
class ExposedRows:
    """The exposed rows of some ranges, ascending."""

    rows: tuple[ExposedRow, ...]


NAMED = TaskKind[NamedPayload, NoResult]("exposure-named", 1, NoResult)
MATCH = TaskKind[MatchPayload, NoResult]("exposure-match", 1, NoResult)
ROWS = TaskKind[RowsPayload, ExposedRows]("exposure-rows", 1, ExposedRows)


@dataclass
class _NeighbourItems:
    """Items of the test set with an n-gram in a neighbour."""

    chunk: set[int] = field(default_factory=set)
    continuation: set[int] = field(default_factory=set)
    is_live: bool = False  # an n-gram is in the chunk, or the chunk after it is live


@dataclass(frozen=True)
class _Comparison:
    """A table that is compared with a test set."""

    view: View
    table: NeighbourTable
    queries: ChunkSet
    chunks_then: ChunkSet | None  # as they were when the table was computed; None when that snapshot has expired
    items: ShingleTable


@lru_cache(maxsize=1)
def _opened(storage: Storage, compared: ComparedTable) -> _Comparison:
    """A comparison, opened once per process."""
    view = planned_view(storage, compared.snapshot)
    table = NeighbourTable(view, compared.table)
    then = None
    if compared.computed is not None:
        then = view if compared.computed == compared.snapshot else planned_view(storage, compared.computed)
    items = open_table(view, registered_testset(view, compared.testset))
    return _Comparison(view, table, view.query_set(table.query_set), then.chunks if then else None, items)


def run_named(storage: Storage, task: Task[NamedPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The chunks that rows of some ranges name, as the table was written and as it is today: (n,) int64, ascending."""
    del clock
    comparison = _opened(storage, task.payload.compared)
    named = [np.empty(0, np.int64)]
    for span in task.payload.spans:
        rows = comparison.table.all_rows_in(*span)
        named.append(np.unique(_near(comparison.table, rows)))
    ids = np.unique(np.concatenate(named))
    return _publish(storage, task.payload.run, task.id, ids[ids >= 0])


def run_match(storage: Storage, task: Task[MatchPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The n-grams of a test set in the named chunks of some shards, and in their continuations: (H, 3) int64, by chunk."""
    del clock
    payload = task.payload
    comparison, ids = _opened(storage, payload.compared), [np.empty(0, np.int64)]
    for record in read_file_list(storage, payload.named):
        named = map_array(comparison.view.files.open(record))
        low, high = np.searchsorted(named, [payload.span.first_chunk, payload.span.end])
        ids.append(np.asarray(named[low:high]))
    matches = sorted(_matches(comparison, np.unique(np.concatenate(ids))))
    return _publish(storage, payload.run, task.id, np.array(matches, dtype=np.int64).reshape(-1, 3))


def run_exposed_rows(storage: Storage, task: Task[RowsPayload, ExposedRows], clock: str) -> TaskRecord[ExposedRows]:
    """The exposed rows of some ranges of the table."""
    del clock
    payload = task.payload
    comparison = _opened(storage, payload.compared)
    matches = map_array(comparison.view.files.open(payload.matches))
    exposed, sample = list[ExposedRow](), payload.first_sample
    for span in payload.spans:
        rows = comparison.table.all_rows_in(*span)
        if len(rows):
            exposed += _exposed_rows(comparison, matches, span, rows, sample, payload.consumed_samples)
        sample += len(rows)
    return TaskRecord(task.id, result=ExposedRows(tuple(exposed)))


def _near(table: NeighbourTable, rows: Int64Array) -> Int64Array:
    """(Q, 2 k) int64: the neighbours of rows as they were written, then those of today; -1 for none."""
    return np.hstack([table.written(rows), table.read(rows)[0]])


def _exposed_rows(
    comparison: _Comparison,
    matches: AnyArray,
    span: ChunkRange,
    rows: Int64Array,
    first_sample: int,
    consumed_samples: int,
) -> Iterator[ExposedRow]:
    """The exposed ones of the rows (Q,) that the table has in a range.

    Args:
        first_sample: position in the table of the first of these rows.
    """
    queries, near = comparison.queries, _near(comparison.table, rows)
    written, today = np.hsplit(near, 2)
    of_chunk = _items_of_chunks(matches, near)
    own_items = _own_items(queries, span, comparison.items)
    is_exposed = np.isin(rows, list(own_items)) | np.isin(near, list(of_chunk)).any(axis=1)
    is_live = queries.is_live(rows[is_exposed]).tolist()
    for index, document, is_row_live in zip(
        np.flatnonzero(is_exposed).tolist(), queries.documents(rows[is_exposed]), is_live, strict=True
    ):
        row, sample = int(rows[index]), first_sample + index
        own, near_today = own_items.get(row, set()), set(today[index].tolist())
        chunks = sorted((set(written[index].tolist()) | near_today) & of_chunk.keys())
        has_live_chunk = any(chunk in near_today and of_chunk[chunk].is_live for chunk in chunks)
        yield ExposedRow(
            row=row,
            sample=sample,
            doc_id=document["doc_id"] if document else "",
            is_seen=sample < consumed_samples,
            is_live=is_row_live and (has_live_chunk or bool(own)),
            own_items=_ids(comparison.items, own),
            neighbour_items=_ids(comparison.items, set().union(*(of_chunk[chunk].chunk for chunk in chunks))),
            continuation_items=_ids(comparison.items, set().union(*(of_chunk[chunk].continuation for chunk in chunks))),
            chunks=tuple(chunks),
        )


def _items_of_chunks(matches: AnyArray, ids: Int64Array) -> dict[int, _NeighbourItems]:
    """The items that have an n-gram in some chunks, or in their continuations."""
    items_of: dict[int, _NeighbourItems] = defaultdict(_NeighbourItems)
    named = np.unique(ids)
    position = np.minimum(np.searchsorted(named, matches[:, 0]), max(len(named) - 1, 0))
    is_named = named[position] == matches[:, 0] if len(named) else np.zeros(len(matches), dtype=bool)
    for chunk, item, where in matches[is_named].tolist():
        items = items_of[chunk]
        (items.chunk if where == IN_CHUNK else items.continuation).add(item)
        items.is_live |= where != IN_CONTINUATION
    return items_of


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


def _matches(comparison: _Comparison, ids: Int64Array) -> Iterator[tuple[int, int, int]]:
    """Each chunk and item with a common n-gram, in the chunk or in its continuation, and where it is."""
    view, items = comparison.view, comparison.items
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        then = comparison.chunks_then
        following = then.continuation(block) if then is not None else _next_chunk(view.chunks, block)
        texts, continuations = (view.chunks.texts(chunks, deleted_too=True) for chunks in (block, following))
        for index, item, _ in _common_ngrams(texts, items):
            yield int(block[index]), item, IN_CHUNK
        both = [text + continuation for text, continuation in zip(texts, continuations, strict=True)]
        is_live = view.chunks.continuation(block) >= 0
        for index, item, end in _common_ngrams(both, items):
            if end > len(texts[index].encode()):
                yield int(block[index]), item, IN_LIVE_CONTINUATION if is_live[index] else IN_CONTINUATION


def _next_chunk(chunks: ChunkSet, ids: Int64Array) -> Int64Array:
    """(Q,) the next chunk of the same document, deleted or not; -1 for none."""
    is_same = chunks.document_ids(ids + 1) == chunks.document_ids(ids)
    return np.where(is_same, ids + 1, -1)


def _common_ngrams(texts: list[str], items: ShingleTable) -> Iterator[tuple[int, int, int]]:
    """Every text and item with a shared n-gram, and the end in bytes of the last one in the text."""
    hits = scan_texts(pa.array(texts, pa.large_string()), items).hits
    ends = hits.range_end[hits.range_offsets[1:] - 1]
    yield from zip(hits.document.tolist(), hits.item.tolist(), ends.tolist(), strict=True)


def _ids(items: ShingleTable, numbers: set[int]) -> tuple[str, ...]:
    return tuple(items.id(item) for item in sorted(numbers))


def _publish(storage: Storage, run: str, task: str, array: Int64Array) -> TaskRecord[NoResult]:
    path = path_of("runs", run=run, file=f"exposure/{task}.npy")
    return TaskRecord(
        task, (publish(storage, "runs", path, partial(save_array, array=array)),), counts={"ids": len(array)}
    )
