"""Exposure: which rows of a training run met a test set, in their own text or through their neighbours.

A row's *own* text matches where a shared n-gram touches its chunk, be it across the chunk's border. Its *neighbours* match
where an n-gram lies in the neighbour's chunk, its *continuations* where one touches what follows that chunk. What counts is
the table as it was written, because that is what a trainer was given; a match is *live* when today's table has it still.

Legend: Q rows of the table, k neighbours of a row.
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
from retrodb.stages.context import Context
from retrodb.stages.dedup.testset import open_table, registered
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.document_blocks import document_blocks
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

_BLOCK = 1 << 12  # neighbours whose texts are held together


@dataclass(frozen=True)
class ExposedRow:
    """A row of a query set that met a test set."""

    row: int  # of the query set
    sample: int  # its place in the table, from 0
    doc_id: str  # of its document
    is_seen: bool  # among the consumed samples
    is_live: bool  # it would meet the test set in today's table too
    own: tuple[str, ...]  # items that share an n-gram with its own text
    neighbours: tuple[str, ...]  # items that share one with a neighbour
    continuations: tuple[str, ...]  # items that share one with a neighbour's continuation
    chunks: tuple[int, ...]  # ids of the neighbours of which, or of whose continuation, that is so


@dataclass(frozen=True)
class ExposureResult:
    """How much of a table met a test set."""

    table: str
    testset: str
    rows: int  # of the table
    consumed_samples: int  # the first rows of the table, in the order of their numbers
    exposed_seen: int  # exposed rows among them
    exposed_unseen: int  # exposed rows that come later
    exposed_unseen_live: int  # of these, the ones that today's table would still expose
    exposed: tuple[ExposedRow, ...]  # by row


@dataclass
class _Items:
    """Items of the test set that one neighbour brings, by where they are."""

    chunk: set[int] = field(default_factory=set)
    continuation: set[int] = field(default_factory=set)


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
        consumed_samples: the training run has consumed that many rows of the table, in the order of their numbers.

    Raises:
        UsageError: when the test set is not registered.
        MissingStep: when there is no such table.
    """
    if consumed_samples < 0:
        raise UsageError(f"{consumed_samples} consumed samples", remedy="Give 0 or more.")
    view = context.view(as_of)
    items = open_table(view, registered(view, testset))
    neighbours = NeighbourTable(view, table)
    rows, written = neighbours.written()
    now = neighbours.read(rows)[0]
    queries = view.query_set(neighbours.query_set)
    brought = _brought(view, _then(context, neighbours), np.union1d(written, now), items)
    own = _own(queries, items)
    met = np.isin(rows, list(own)) | np.isin(np.hstack([written, now]), list(brought)).any(axis=1)
    is_live = queries.is_live(rows[met]).tolist()
    exposed = []
    for sample, document, may_live in zip(
        np.flatnonzero(met).tolist(), queries.documents(rows[met]), is_live, strict=True
    ):
        row, today = int(rows[sample]), set(now[sample].tolist())
        chunks = sorted({*written[sample].tolist(), *today} & brought.keys())
        live = [chunk for chunk in chunks if chunk in today and _is_live(view, chunk, brought[chunk])]
        exposed.append(
            ExposedRow(
                row=row,
                sample=sample,
                doc_id=document["doc_id"] if document else "",
                is_seen=sample < consumed_samples,
                is_live=may_live and (bool(live) or row in own),
                own=_names(items, own.get(row, set())),
                neighbours=_names(items, set().union(*(brought[chunk].chunk for chunk in chunks))),
                continuations=_names(items, set().union(*(brought[chunk].continuation for chunk in chunks))),
                chunks=tuple(chunks),
            )
        )
    return ExposureResult(
        table=neighbours.name,
        testset=testset,
        rows=len(rows),
        consumed_samples=min(consumed_samples, len(rows)),
        exposed_seen=sum(each.is_seen for each in exposed),
        exposed_unseen=sum(not each.is_seen for each in exposed),
        exposed_unseen_live=sum(each.is_live and not each.is_seen for each in exposed),
        exposed=tuple(exposed),
    )


def _then(context: Context, table: NeighbourTable) -> ChunkSet | None:
    """The chunks as they were when the table was made; None when that snapshot has expired."""
    try:
        return context.view(table.entry.snapshot).chunks
    except UsageError:
        return None


def _own(chunks: ChunkSet, items: ShingleTable) -> dict[int, set[int]]:
    """The items that each row of a query set shares an n-gram with, in its document's text."""
    found: dict[int, set[int]] = defaultdict(set)
    for record in chunks.ranges:
        file = chunks.file("chunks", record.first_chunk, record.num_chunks)
        for block in document_blocks(chunks.files.open(file), chunks.layout(record), file.row_set.present):
            hits = scan_texts(block.documents(), items).hits
            for hit, document in enumerate(hits.document.tolist()):
                first, end = block.bounds[document], block.bounds[document + 1]
                spans = slice(hits.range_offsets[hit], hits.range_offsets[hit + 1])
                offsets = block.offsets(int(first), int(end))
                touched = touched_chunks(hits.range_start[spans], hits.range_end[spans], offsets)
                for row in (record.first_chunk + block.rows[first + touched]).tolist():
                    found[row].add(int(hits.item[hit]))
    return found


def _brought(view: View, then: ChunkSet | None, ids: Int64Array, items: ShingleTable) -> dict[int, _Items]:
    """What each neighbour that shares an n-gram with an item, or whose continuation does, brings."""
    found: dict[int, _Items] = defaultdict(_Items)
    ids = ids[ids >= 0]
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        following = then.continuation(block) if then is not None else _next_chunk(view.chunks, block)
        texts, more = (view.chunks.texts(each, deleted_too=True) for each in (block, following))
        for place, item, _ in _matches(texts, items):
            found[int(block[place])].chunk.add(item)
        both = [text + continuation for text, continuation in zip(texts, more, strict=True)]
        for place, item, end in _matches(both, items):
            if end > len(texts[place].encode()):
                found[int(block[place])].continuation.add(item)
    return found


def _next_chunk(chunks: ChunkSet, ids: Int64Array) -> Int64Array:
    """(Q,) the next chunk of the same document, deleted or not; -1 for none."""
    is_same = chunks.document_ids(ids + 1) == chunks.document_ids(ids)
    return np.where(is_same, ids + 1, -1)


def _matches(texts: list[str], items: ShingleTable) -> Iterator[tuple[int, int, int]]:
    """Every text and item that share an n-gram, and the last byte's end of what they share."""
    hits = scan_texts(pa.array(texts, pa.large_string()), items).hits
    ends = hits.range_end[hits.range_offsets[1:] - 1]
    yield from zip(hits.document.tolist(), hits.item.tolist(), ends.tolist(), strict=True)


def _is_live(view: View, chunk: int, brought: _Items) -> bool:
    """Whether a live neighbour still brings something."""
    return bool(brought.chunk) or view.chunks.continuation(np.array([chunk]))[0] >= 0


def _names(items: ShingleTable, found: set[int]) -> tuple[str, ...]:
    return tuple(items.id(item) for item in sorted(found))
