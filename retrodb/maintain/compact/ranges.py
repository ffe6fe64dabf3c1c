"""The ranges of ids to rewrite, with their new files and the tombstones that remain.

A document whose chunks are all deleted is dropped. When a decision keeps the document out (a leak, a filter), its key stays in
the ids file, and the tombstone stays on its first row, so the same document stays out when it is ingested again. A document of
which some chunks are deleted keeps its row numbers; the rows of the deleted chunks are then in no file.

Legend: N rows of a range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.entries import AttributeEntry, SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.maintain.compact.policy import ShardState, choose_compactions
from retrodb.maintain.compact.rewrite import RewrittenFile
from retrodb.stages.ingest.change import REMOVED, SUPERSEDED
from retrodb.stages.ingest.shard import SHARD_KINDS
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.coverage import Coverage
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import SELF, View

PURGED = "purged"
"""Reason of rows that a purge deleted."""

_REASONS_WITHOUT_KEY = (SUPERSEDED, REMOVED, PURGED)
"""Reasons for which no key has to stay: the source replaced or removed the document, or its key is in `purged/`."""

_ONLY_ROWS_TO_DROP = 2.0  # a fraction of deleted rows that no shard reaches


@dataclass(frozen=True)
class Rewrite:
    """One range of ids that is rewritten."""

    query_set: str
    source: str
    span: ChunkRange
    num_shards: int  # that become one
    keep_N: BoolArray  # rows that stay
    documents_N: BoolArray  # first rows of the documents that stay
    keys_N: BoolArray  # first rows of the documents whose keys stay
    num_dropped_chunks: int
    num_dropped_documents: int
    files: tuple[RewrittenFile, ...]
    replaced: tuple[str, ...]  # paths of the old files


@dataclass(frozen=True)
class RowsToDrop:
    """Ids of rows that have to be dropped, however few they are."""

    ids: dict[str, Int64Array]  # query set -> ids, ascending

    def mask(self, query_set: str, span: ChunkRange) -> BoolArray:
        """(N,) bool: which rows of a range have to be dropped."""
        mask = np.zeros(span.num_chunks, dtype=bool)
        ids = self.ids.get(query_set, np.empty(0, np.int64))
        mask[ids[(ids >= span.first_chunk) & (ids < span.end)] - span.first_chunk] = True
        return mask


def plan_rewrites(
    view: View, query_set: str, min_deleted: float, rows_to_drop: RowsToDrop | None = None
) -> list[Rewrite]:
    """The ranges to rewrite.

    Args:
        min_deleted: rewrite a shard once this fraction of its rows is deleted.
        rows_to_drop: rewrite only the shards that hold one of these rows, and join none.
    """
    chunks = view.query_set(query_set)
    states = [_shard_state(view, query_set, record, rows_to_drop) for record in chunks.ranges]
    if rows_to_drop is None:
        runs = choose_compactions(states, min_deleted)
    else:
        runs = choose_compactions(states, _ONLY_ROWS_TO_DROP, max_chunks=0)
    return [_plan_rewrite(view, query_set, [states[index] for index in run]) for run in runs]


def _shard_state(view: View, query_set: str, record: FileRecord, rows_to_drop: RowsToDrop | None) -> ShardState:
    chunks, span = view.query_set(query_set), record.span
    present = chunks.present_mask(*span)
    num_deleted = int((present & ~chunks.live_mask(*span)).sum())
    state = ShardState(_source(view, query_set, record), *span, int(present.sum()), num_deleted)
    if rows_to_drop is None:
        return state
    has_rows = bool((rows_to_drop.mask(query_set, span) & (present | _document_starts(chunks, span))).any())
    for other in _other_files(view, query_set):
        if (
            other.content == "array"
        ):  # vectors that were added later may hold rows that the shard does not have any more
            has_rows = has_rows or bool((~present & other.coverage.covered_mask(*span)).any())
    return replace(state, has_rows_to_drop=has_rows)


def _source(view: View, query_set: str, record: FileRecord) -> str:
    """The source of a range: only ranges of one source are joined."""
    if query_set == SELF:
        [shard], _ = view.shards.locate(np.array([record.first_chunk]))
        return str(view.shards.source[shard])
    sources = view.query_set(query_set).documents_table(record).column("source")
    return str(sources[0].as_py()) if len(sources) else ""


@dataclass(frozen=True)
class _OtherFiles:
    """Files of one kind and name that cover a query set in addition to the files of its shards."""

    content: str  # as in `RewrittenFile`
    coverage: Coverage
    kind: str
    name: str
    path: str  # of a new one


def _other_files(view: View, query_set: str) -> Iterator[_OtherFiles]:
    spaces = view.snapshot.names(SpaceEntry)
    if query_set != SELF:
        for space in spaces:
            path = path_of("queries", name=query_set, task="{task}", file=f"vectors.{space}.npy")
            yield _OtherFiles("array", view.query_vectors(query_set, space), "queries", query_set, path)
        return
    bands = sorted({record.name for record in view.manifest.files("bands")})
    attributes = view.snapshot.names(AttributeEntry)
    kinds = (("array", "vectors", spaces), ("table", "attributes", attributes), ("bands", "bands", bands))
    for content, kind, names in kinds:
        for name in names:
            path = path_of(kind, name=name, task="{task}")
            yield _OtherFiles(content, view.coverage(kind, name), kind, name, path)


def _plan_rewrite(view: View, query_set: str, shards: Sequence[ShardState]) -> Rewrite:
    chunks, first = view.query_set(query_set), shards[0].first_chunk
    span = ChunkRange(first, shards[-1].first_chunk + shards[-1].num_chunks - first)
    keep = chunks.live_mask(*span)
    documents, num_documents = _kept_documents(chunks, span, keep)
    keys = documents | _kept_out(chunks, span)
    files, replaced = _shard_files(chunks, query_set, span, keep, documents, keys)
    for other in _other_files(view, query_set):
        inputs = [record for record in other.coverage.overlapping(*span) if _is_inside(record.span, span)]
        replaced += [record.path for record in inputs]
        if file := _other_file(other, inputs, len(shards), span, keep, documents):
            files.append(file)
    return Rewrite(
        query_set=query_set,
        source=shards[0].source,
        span=span,
        num_shards=len(shards),
        keep_N=keep,
        documents_N=documents,
        keys_N=keys,
        num_dropped_chunks=sum(shard.num_rows for shard in shards) - int(keep.sum()),
        num_dropped_documents=num_documents - int(documents.sum()),
        files=tuple(files),
        replaced=tuple(replaced),
    )


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
    return kept_out & ~removed & _document_starts(chunks, span)


def _document_starts(chunks: ChunkSet, span: ChunkRange) -> BoolArray:
    """(N,) bool: first rows of documents, including those of which only the key is left."""
    starts = np.zeros(span.num_chunks, dtype=bool)
    for record in chunks.overlapping("ids", *span):
        starts[chunks.map(record)["row"] + record.first_chunk - span.first_chunk] = True
    return starts


def _shard_files(
    chunks: ChunkSet, query_set: str, span: ChunkRange, keep: BoolArray, documents: BoolArray, keys: BoolArray
) -> tuple[list[RewrittenFile], list[str]]:
    """The five files that every range has, and the paths of those that they replace."""
    files, replaced = [], []
    for kind in SHARD_KINDS:
        inputs = chunks.overlapping(kind, *span)
        replaced += [record.path for record in inputs]
        if query_set == SELF:
            record_kind, name, path = kind, "", path_of(kind, task="{task}")
        else:
            file = f"{kind}.{inputs[0].path.rpartition('.')[2]}"
            record_kind, name = "queries", query_set
            path = path_of("queries", name=query_set, task="{task}", file=file)
        selected = {"documents": documents, "ids": keys}.get(kind)
        files.append(
            RewrittenFile(
                content=kind if kind in ("documents", "ids", "chunks") else "array",
                kind=record_kind,
                name=name,
                path=path,
                rows=RowSet.from_mask(keep),
                inputs=tuple(inputs),
                documents=None if selected is None else RowSet.from_mask(selected),
            )
        )
    return files, replaced


def _other_file(
    other: _OtherFiles,
    inputs: Sequence[FileRecord],
    num_shards: int,
    span: ChunkRange,
    keep: BoolArray,
    documents: BoolArray,
) -> RewrittenFile | None:
    """The file that replaces the inputs; None when no row is left."""
    new_file = partial(RewrittenFile, other.content, other.kind, other.name, other.path)
    if other.content == "bands":
        if len(inputs) != num_shards:  # the bands of some shards are not those of the whole range
            return None
        return new_file(RowSet.all(span.num_chunks), tuple(inputs), RowSet.from_mask(documents))
    rows = (documents if other.content == "table" else keep) & Coverage(inputs).covered_mask(*span)
    return new_file(RowSet.from_mask(rows), tuple(inputs)) if rows.any() else None


def _is_inside(inner: ChunkRange, outer: ChunkRange) -> bool:
    return outer.first_chunk <= inner.first_chunk and inner.end <= outer.end


def remaining_tombstones(view: View, query_set: str, rewrites: Sequence[Rewrite]) -> list[Tombstone]:
    """The tombstones that are needed after the rewrites: rows that are in no file need none.

    The tombstones on the first rows of documents whose keys stay are kept: they keep the document out.
    """
    chunks = view.query_set(query_set)
    remaining: list[Tombstone] = []
    rewritten = {rewrite.span: rewrite.keep_N | (rewrite.keys_N & ~rewrite.documents_N) for rewrite in rewrites}
    replaced = {path for rewrite in rewrites for path in rewrite.replaced}
    untouched = {record.span: None for record in chunks.ranges if record.path not in replaced}
    for span, is_needed in sorted({**untouched, **rewritten}.items(), key=lambda item: item[0]):
        for reason, mask in sorted(chunks.tombstones.deleted_by_reason(*span).items()):
            rows = np.flatnonzero(mask if is_needed is None else mask & is_needed)
            if len(rows):
                remaining.append(tombstone(*span, reason, rows))
    return remaining
