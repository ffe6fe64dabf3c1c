"""What changed between two snapshots: the documents and chunks that were added and removed, by source and reason.

A chunk id never changes its meaning, so snapshots are compared by which ids are live in them. No text is read.

Ranges whose files and deletions are the same in both snapshots are not looked at. Of a new shard, the counts in the manifest
suffice. The other ranges are read one after another; what is kept of them are counts, and the 128-bit
keys of documents with a new version.

Legend: N rows of a range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.format.document_keys import IdArray
from retrodb.format.records import ChunkRange, CountsRecord
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import SUPERSEDED
from retrodb.view.purged import KEY_DTYPE, is_among
from retrodb.view.tombstones import disjoint_ranges
from retrodb.view.view import SELF, View

ADDED, REMOVED, CHANGED = "added", "removed", "changed"
NEW, BACK, GONE, COMPACTED, NEW_VERSION = "new", "back", "not there", "compacted", "new version"
"""Reasons in addition to those of tombstones: the id is new; the chunk was deleted and is live again; a restore removed it;
compaction dropped its row together with the tombstone."""


@dataclass(frozen=True)
class DiffRow:
    """What changed for one reason in one source."""

    source: str
    change: str  # "added", "removed" or "changed"
    reason: str  # of tombstones; several are joined by ", "
    num_documents: int  # whole documents
    num_chunks: int  # of changed documents: the chunks of their new versions


@dataclass(frozen=True)
class DiffDocument:
    """One document that was added, removed or changed."""

    source: str
    doc_id: str
    change: str
    reason: str
    first_chunk: int
    num_chunks: int  # live chunks of it that were added or removed; of a changed document, the added ones


@dataclass(frozen=True)
class DiffResult:
    """All that changed from one snapshot to a later one."""

    earlier_snapshot: int
    later_snapshot: int
    rows: tuple[DiffRow, ...]
    documents: tuple[DiffDocument, ...]  # by source and id; empty unless asked for


def run_diff(context: Context, a: int | str, b: int | str, *, documents: bool = False) -> DiffResult:
    """Compare snapshot `a` with the later snapshot `b`.

    Args:
        a, b: their numbers, or names of pins.
        documents: list each document.

    Raises:
        UsageError: one of them does not exist or expired, or they are in the wrong order.
    """
    earlier, later = context.view(a), context.view(b)
    if earlier.snapshot.number > later.snapshot.number:
        raise UsageError(f"snapshot {a} is later than {b}", remedy=f"Give the earlier one first: 'diff DB {b} {a}'.")
    totals = _Totals(documents)
    comparison = _Comparison(earlier, later, _Reasons(context, earlier, later))
    new_versions = comparison.keys_of_new_versions()
    for span in comparison.ranges:
        source = None if documents or len(new_versions) else comparison.source_of_new(span)
        if source is not None:
            reason = NEW if span.first_chunk >= earlier.snapshot.next_chunk else BACK
            totals.add_shard(source, reason, later.manifest.live_counts(span.first_chunk))
            continue
        for changed in comparison.changed_rows(span):
            totals.add(changed, new_versions)
    return totals.result(earlier.snapshot.number, later.snapshot.number)


class _Totals:
    """Counts of everything that changed, and the changed documents if they are asked for."""

    def __init__(self, lists_documents: bool) -> None:
        self._lists_documents = lists_documents
        self._num_chunks: Counter[tuple[str, str, str]] = Counter()
        self._num_documents: Counter[tuple[str, str, str]] = Counter()
        self._listed: list[DiffDocument] = []

    def add_shard(self, source: str, reason: str, live: CountsRecord) -> None:
        """Add what is live of a shard of which the earlier snapshot has nothing."""
        self._num_chunks[source, ADDED, reason] += live.num_chunks
        self._num_documents[source, ADDED, reason] += live.num_documents

    def add(self, changed: _ChangedRows, new_versions: IdArray) -> None:
        """Add the changed rows of a range. A document with a new version counts once, as changed."""
        for source, reason, count in changed.count(np.arange(len(changed.rows)), 1):
            self._num_chunks[source, changed.change, reason] += count
        whole = changed.whole_documents
        is_new_version = is_among(changed.keys(whole), new_versions) if len(new_versions) else _none_of(whole)
        is_new_version &= changed.reasons.are_among(whole.rows, (NEW, SUPERSEDED))
        for source, reason, count in changed.count(whole.rows[is_new_version], whole.num_rows[is_new_version]):
            self._num_chunks[source, changed.change, reason] -= count
            if changed.change == ADDED:
                self._num_chunks[source, CHANGED, NEW_VERSION] += count
        for source, reason, count in changed.count(whole.rows[~is_new_version], 1):
            self._num_documents[source, changed.change, reason] += count
        if changed.change == ADDED:
            for source, _, count in changed.count(whole.rows[is_new_version], 1):
                self._num_documents[source, CHANGED, NEW_VERSION] += count
        if self._lists_documents:
            self._listed += changed.list_documents(is_new_version)

    def result(self, a: int, b: int) -> DiffResult:
        """All that was added."""
        counts = self._num_chunks
        rows = tuple(DiffRow(*key, self._num_documents[key], counts[key]) for key in sorted(counts) if counts[key])
        self._listed.sort(key=lambda document: (document.source, document.doc_id, document.first_chunk))
        return DiffResult(a, b, rows, tuple(self._listed))


@dataclass(frozen=True)
class _WholeDocuments:
    """Documents (M,) of which the other snapshot has no live chunk."""

    rows: Int64Array  # position of the first changed row of each among the changed rows
    num_rows: Int64Array  # live rows
    first_chunks: Int64Array  # ids of their first chunks, ascending


def _none_of(documents: _WholeDocuments) -> BoolArray:
    return np.zeros(len(documents.rows), dtype=bool)


@dataclass(frozen=True)
class _ReasonOfRows:
    """The reason of every changed row (n,)."""

    names: tuple[str, ...]
    codes: Int64Array  # (n,) numbers of the names

    def are_among(self, positions: Int64Array, names: Iterable[str]) -> BoolArray:
        """(m,) bool: which of some rows have one of the reasons."""
        codes = [code for code, name in enumerate(self.names) if name in set(names)]
        return np.isin(self.codes[positions], codes)


@dataclass(frozen=True)
class _ChangedRows:
    """Rows of one range that are live in one of the two snapshots only."""

    change: str
    view: View  # in which they are live
    span: ChunkRange
    rows: Int64Array  # (n,) ascending
    reasons: _ReasonOfRows
    is_live_in_other_N: BoolArray

    @cached_property
    def _document_ids(self) -> Int64Array:
        """(n,) the id of the first chunk of each row's document."""
        return self.view.chunks.document_ids(self.span.first_chunk + self.rows)

    @cached_property
    def _shards(self) -> Int64Array:
        """(n,) the number of each row's shard."""
        return self.view.shards.locate(self._document_ids)[0]

    def count(self, positions: Int64Array, weights: Int64Array | int) -> Iterator[tuple[str, str, int]]:
        """The weights (m,) of some of the rows, added up by source and reason."""
        pairs = self._shards[positions] * len(self.reasons.names) + self.reasons.codes[positions]
        values, index = np.unique(pairs, return_inverse=True)
        sums = np.bincount(index, np.broadcast_to(weights, len(pairs)), len(values)).astype(np.int64)
        for value, total in zip(values.tolist(), sums.tolist(), strict=True):
            shard, code = divmod(value, len(self.reasons.names))
            yield self.view.shards.source[shard], self.reasons.names[code], total

    @cached_property
    def whole_documents(self) -> _WholeDocuments:
        """The documents of which the other snapshot has no live chunk, not only some chunks."""
        starts = np.flatnonzero(np.diff(self._document_ids, prepend=-1))
        num_rows, first_chunks = np.diff(np.append(starts, len(self.rows))), self._document_ids[starts]
        num_live = np.concatenate(([0], np.cumsum(self.is_live_in_other_N)))  # of the rows before each row
        first_rows = first_chunks - self.span.first_chunk
        is_whole = num_live[first_rows + self._lengths(first_chunks)] == num_live[first_rows]
        return _WholeDocuments(starts[is_whole], num_rows[is_whole], first_chunks[is_whole])

    def _lengths(self, first_chunks: Int64Array) -> Int64Array:
        """(m,) rows of the documents that begin at these ids."""
        lengths = np.zeros(len(first_chunks), dtype=np.int64)
        for record in self.view.chunks.overlapping("documents", *self.span):
            layout = self.view.chunks.layout(record)
            index = layout.document_of(first_chunks - record.first_chunk)
            lengths[index >= 0] = layout.num_chunks[index[index >= 0]]
        return lengths

    def keys(self, documents: _WholeDocuments) -> IdArray:
        """(M,) KEY_DTYPE: the keys of documents."""
        keys = np.zeros(len(documents.rows), KEY_DTYPE)
        for record in self.view.chunks.overlapping("ids", *self.span):
            entries = self.view.files.whole_array(record)
            if not len(entries):
                continue
            ids = entries["row"] + record.first_chunk
            order = np.argsort(ids, kind="stable")
            position = np.minimum(np.searchsorted(ids, documents.first_chunks, sorter=order), len(ids) - 1)
            is_here = ids[order[position]] == documents.first_chunks
            for field in ("key_hi", "key_lo"):
                keys[field][is_here] = entries[field][order[position[is_here]]]
        return keys

    def list_documents(self, is_new_version: BoolArray) -> Iterator[DiffDocument]:
        """The whole documents by name; of those with a new version (M,), the new ones."""
        whole, names = self.whole_documents, self.reasons.names
        rows = self.view.chunks.documents(whole.first_chunks)
        for number, document in enumerate(rows):
            if document is None or (is_new_version[number] and self.change == REMOVED):
                continue
            position = int(whole.rows[number])
            is_new = bool(is_new_version[number])
            yield DiffDocument(
                source=self.view.shards.source[int(self._shards[position])],
                doc_id=document["doc_id"],
                change=CHANGED if is_new else self.change,
                reason=NEW_VERSION if is_new else names[int(self.reasons.codes[position])],
                first_chunk=int(whole.first_chunks[number]),
                num_chunks=int(whole.num_rows[number]),
            )


class _Comparison:
    """Two snapshots, compared by ranges of ids that hold whole documents in both."""

    def __init__(self, earlier: View, later: View, reasons: _Reasons) -> None:
        self._earlier, self._later, self._reasons = earlier, later, reasons

    @cached_property
    def ranges(self) -> list[ChunkRange]:
        """The ranges that differ."""
        spans = [record.span for view in (self._earlier, self._later) for record in view.chunks.ranges]
        starts, ends = np.array([(span.first_chunk, span.end) for span in spans], dtype=np.int64).reshape(-1, 2).T
        ranges = (ChunkRange(start, end - start) for start, end in disjoint_ranges(starts, ends))
        return [span for span in ranges if not self._is_same(span)]

    @cached_property
    def _has_same_tombstones(self) -> bool:
        earlier, later = (view.tombstone_files(SELF) for view in (self._earlier, self._later))
        return [record.path for record in earlier] == [record.path for record in later]

    def _is_same(self, span: ChunkRange) -> bool:
        """Whether both snapshots have the same files and deleted rows in a range. No file of a shard is opened."""
        earlier, later = (view.chunks.overlapping("documents", *span) for view in (self._earlier, self._later))
        if [record.path for record in earlier] != [record.path for record in later]:
            return False
        if self._has_same_tombstones:
            return True
        was_deleted, is_deleted = (
            view.chunks.tombstones.rows_by_reason(*span) for view in (self._earlier, self._later)
        )
        return was_deleted == is_deleted

    def source_of_new(self, span: ChunkRange) -> str | None:
        """The source of the shard that a range is, when the earlier snapshot has nothing there."""
        records = self._later.chunks.overlapping("documents", *span)
        if self._earlier.chunks.overlapping("documents", *span) or [record.span for record in records] != [span]:
            return None
        [shard] = self._later.shards.locate(np.array([span.first_chunk]))[0].tolist()
        source: str = self._later.shards.source[shard]
        return source

    def keys_of_new_versions(self) -> IdArray:
        """(V,) KEY_DTYPE, sorted: the documents of which a new version replaced a removed one."""
        removed = self._keys(REMOVED, SUPERSEDED)
        return self._keys(ADDED, NEW, among=removed) if len(removed) else removed

    def _keys(self, change: str, reason: str, among: IdArray | None = None) -> IdArray:
        """The keys of the documents that changed in one way, for one reason; of all, or of those among some sorted keys."""
        view = self._earlier if change == REMOVED else self._later
        parts = [np.empty(0, KEY_DTYPE)]
        for span in self.ranges:
            if not view.chunks.overlapping("documents", *span):
                continue
            for changed in self.changed_rows(span):
                if changed.change == change and reason in changed.reasons.names:
                    keys = changed.keys(changed.whole_documents)
                    keys = keys[changed.reasons.are_among(changed.whole_documents.rows, (reason,))]
                    parts.append(keys if among is None else keys[is_among(keys, among)])
        return np.unique(np.concatenate(parts))

    def changed_rows(self, span: ChunkRange) -> Iterator[_ChangedRows]:
        """The rows of a range that were added, and those that were removed."""
        was_live, is_live = self._earlier.chunks.live_mask(*span), self._later.chunks.live_mask(*span)
        added, removed = np.flatnonzero(is_live & ~was_live), np.flatnonzero(was_live & ~is_live)
        if len(added):
            reasons = self._reasons.of_added(span.first_chunk + added)
            yield _ChangedRows(ADDED, self._later, span, added, reasons, was_live)
        if len(removed):
            reasons = self._reasons.of_removed(span, removed)
            yield _ChangedRows(REMOVED, self._earlier, span, removed, reasons, is_live)


class _Reasons:
    """Why chunks were added and removed between two snapshots."""

    def __init__(self, context: Context, earlier: View, later: View) -> None:
        self._earlier, self._later = earlier, later
        self._readable = lru_cache(maxsize=16)(partial(_readable, context))

    def of_added(self, ids: Int64Array) -> _ReasonOfRows:
        """The reason of each added chunk."""
        return _ReasonOfRows((BACK, NEW), (ids >= self._earlier.snapshot.next_chunk).astype(np.int64))

    def of_removed(self, span: ChunkRange, rows: Int64Array) -> _ReasonOfRows:
        """The reasons of each removed row: from the later snapshot, or from the newest one before it that has them."""
        reasons = np.full(len(rows), COMPACTED, dtype=object)
        shards, _ = self._later.shards.locate(span.first_chunk + rows)
        reasons[shards < 0] = GONE
        is_open = _set_reasons(reasons, shards >= 0, self._later.chunks.tombstones.deleted_by_reason(*span), rows)
        number = self._later.snapshot.number
        while is_open.any() and (number := number - 1) > self._earlier.snapshot.number:
            view = self._readable(number)
            if view is not None:
                is_open = _set_reasons(reasons, is_open, view.chunks.tombstones.deleted_by_reason(*span), rows)
        names = sorted(set(reasons.tolist()))
        codes = np.zeros(len(rows), dtype=np.int64)
        for code, name in enumerate(names):
            codes[reasons == name] = code
        return _ReasonOfRows(tuple(names), codes)


def _readable(context: Context, number: int) -> View | None:
    try:
        return context.view(number)
    except UsageError:  # expired
        return None


def _set_reasons(reasons: AnyArray, is_open: BoolArray, masks: dict[str, BoolArray], rows: Int64Array) -> BoolArray:
    """Write the reasons of the open rows that some mask covers, joined by ", "; returns the rows that stay open."""
    still_open = is_open.copy()
    for reason in sorted(masks):
        is_deleted = is_open & masks[reason][rows]
        reasons[is_deleted & still_open] = reason
        reasons[is_deleted & ~still_open] += f", {reason}"
        still_open &= ~is_deleted
    return still_open
