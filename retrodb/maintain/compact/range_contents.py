"""What stays of a range of ids that is rewritten, and the files that it gets. Everything here looks at one range.

A document whose chunks are all deleted is dropped. When a decision keeps the document out (a leak, a filter), its key stays in
the ids file, and the tombstone stays on its first row, so the same document stays out when it is ingested again. A document of
which some chunks are deleted keeps its row numbers; the rows of the deleted chunks are then in no file.

Legend: N rows of a range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.format.arrays import BoolArray
from retrodb.format.entries import AttributeEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet, rows_in
from retrodb.stages.ingest.change import REMOVED, SUPERSEDED
from retrodb.stages.ingest.shard import SHARD_KINDS
from retrodb.store.verify import VerifiedFiles
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import SELF, View

PURGED = "purged"
"""Reason of rows that a purge deleted."""

_REASONS_WITHOUT_KEY = (SUPERSEDED, REMOVED, PURGED)
"""Reasons for which no key has to stay: the source replaced or removed the document, or its key is in `purged/`."""


@dataclass(frozen=True)
class KeptRows:
    """What stays of a range."""

    rows_N: BoolArray  # rows that stay
    documents_N: BoolArray  # first rows of the documents that stay
    keys_N: BoolArray  # first rows of the documents whose keys stay
    num_dropped_documents: int

    def remaining_tombstones(self, chunks: ChunkSet, span: ChunkRange) -> Iterator[Tombstone]:
        """The tombstones that are needed afterwards: rows that are in no file need none.

        Those on the first rows of documents of which only the key stays are kept: they keep the document out.
        """
        return tombstones_of(chunks, span, self.rows_N | (self.keys_N & ~self.documents_N))


@dataclass(frozen=True)
class RewrittenFile:
    """A file to write from rows of others."""

    content: str  # how its rows are copied: a key of the writers in `rewrite.py`
    kind: str  # of its manifest record
    name: str  # of its manifest record
    path: str  # with {task} for the id of the task
    rows: RowSet  # rows of the range that it will hold
    inputs: tuple[FileRecord, ...]  # by ascending first chunk
    documents: RowSet | None = None  # first rows of the documents to keep, where its rows are of documents


@dataclass(frozen=True)
class OtherFiles:
    """Files of one kind and name that cover a query set in addition to the files of its shards."""

    content: str  # as in `RewrittenFile`
    coverage: Coverage
    kind: str
    name: str
    path: str  # of a new one

    def inside(self, span: ChunkRange) -> list[FileRecord]:
        """The files whose range lies in another."""
        records = self.coverage.overlapping(*span)
        return [r for r in records if span.first_chunk <= r.first_chunk and r.span.end <= span.end]


def kept_rows(chunks: ChunkSet, span: ChunkRange) -> KeptRows:
    """What stays of a range. Reads the layouts of its documents."""
    keep = chunks.live_mask(*span)
    documents, num_documents = _kept_documents(chunks, span, keep)
    keys = documents | _kept_out(chunks, span)
    return KeptRows(keep, documents, keys, num_documents - int(documents.sum()))


def rewritten_files(view: View, query_set: str, span: ChunkRange, kept: KeptRows) -> list[RewrittenFile]:
    """The new files of a range."""
    chunks = view.query_set(query_set)
    num_shards = len(chunks.overlapping("documents", *span))
    files = [_shard_file(chunks, query_set, span, kind, kept) for kind in SHARD_KINDS]
    others = (_other_file(other, num_shards, span, kept, view.files) for other in other_files(view, query_set))
    return [*files, *(file for file in others if file is not None)]


def tombstones_of(chunks: ChunkSet, span: ChunkRange, is_needed: BoolArray | None = None) -> Iterator[Tombstone]:
    """The tombstones of a range, one for each reason; None for `is_needed` (N,) takes all rows."""
    for reason, bitmap in sorted(chunks.tombstones.rows_by_reason(*span).items()):
        rows = rows_in(bitmap)
        if is_needed is not None:
            rows = rows[is_needed[rows]]
        if len(rows):
            yield tombstone(*span, reason, rows)


def other_files(view: View, query_set: str) -> Iterator[OtherFiles]:
    """The files of vectors, attributes and bands of a query set."""
    spaces = view.snapshot.names(SpaceEntry)
    if query_set != SELF:
        for space in spaces:
            path = path_of("queries", name=query_set, task="{task}", file=f"vectors.{space}.npy")
            yield OtherFiles("array", view.query_vectors(query_set, space), "queries", query_set, path)
        return
    bands = sorted({record.name for record in view.manifest.files("bands")})
    attributes = view.snapshot.names(AttributeEntry)
    kinds = (("array", "vectors", spaces), ("table", "attributes", attributes), ("bands", "bands", bands))
    for content, kind, names in kinds:
        for name in names:
            path = path_of(kind, name=name, task="{task}")
            yield OtherFiles(content, view.coverage(kind, name), kind, name, path)


def _kept_documents(chunks: ChunkSet, span: ChunkRange, keep: BoolArray) -> tuple[BoolArray, int]:
    """(N,) bool, the first rows of the documents of which a row stays; and the number of all documents of the range."""
    documents, num_documents = np.zeros(span.num_chunks, dtype=bool), 0
    num_kept = np.concatenate(([0], np.cumsum(keep)))  # of the rows before each row
    for record in chunks.overlapping("documents", *span):
        layout = chunks.layout(record)
        starts = layout.first_row + record.first_chunk - span.first_chunk
        documents[starts[num_kept[starts + layout.num_chunks] > num_kept[starts]]] = True
        num_documents += len(starts)
    return documents, num_documents


def _kept_out(chunks: ChunkSet, span: ChunkRange) -> BoolArray:
    """(N,) bool: first rows of documents that a decision keeps out, unless their source or a purge removed them."""
    kept_out, removed = np.zeros((2, span.num_chunks), dtype=bool)
    for reason, mask in chunks.tombstones.deleted_by_reason(*span).items():
        (removed if reason in _REASONS_WITHOUT_KEY else kept_out)[mask] = True
    return kept_out & ~removed & document_starts(chunks, span)


def document_starts(chunks: ChunkSet, span: ChunkRange) -> BoolArray:
    """(N,) bool: first rows of documents, including those of which only the key is left."""
    starts = np.zeros(span.num_chunks, dtype=bool)
    for record in chunks.overlapping("ids", *span):
        starts[chunks.files.array(record)["row"] + record.first_chunk - span.first_chunk] = True
    return starts


def _shard_file(chunks: ChunkSet, query_set: str, span: ChunkRange, kind: str, kept: KeptRows) -> RewrittenFile:
    """One of the five files that every range has."""
    inputs = chunks.overlapping(kind, *span)
    if query_set == SELF:
        record_kind, name, path = kind, "", path_of(kind, task="{task}")
    else:
        file = f"{kind}.{inputs[0].path.rpartition('.')[2]}"
        record_kind, name = "queries", query_set
        path = path_of("queries", name=query_set, task="{task}", file=file)
    selected = {"documents": kept.documents_N, "ids": kept.keys_N}.get(kind)
    return RewrittenFile(
        content=kind if kind in ("documents", "ids", "chunks") else "array",
        kind=record_kind,
        name=name,
        path=path,
        rows=RowSet.from_mask(kept.rows_N),
        inputs=tuple(inputs),
        documents=None if selected is None else RowSet.from_mask(selected),
    )


def _other_file(
    other: OtherFiles, num_shards: int, span: ChunkRange, kept: KeptRows, files: VerifiedFiles
) -> RewrittenFile | None:
    """The file that replaces others; None when no row is left."""
    inputs = other.inside(span)
    new_file = partial(RewrittenFile, other.content, other.kind, other.name, other.path)
    if other.content == "bands":
        if len(inputs) != num_shards:  # the bands of some shards are not those of the whole range
            return None
        return new_file(RowSet.all(span.num_chunks), tuple(inputs), RowSet.from_mask(kept.documents_N))
    rows = (kept.documents_N if other.content == "table" else kept.rows_N) & Coverage(inputs, files).covered_mask(*span)
    return new_file(RowSet.from_mask(rows), tuple(inputs)) if rows.any() else None
