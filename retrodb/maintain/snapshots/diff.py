"""What changed between two snapshots: the documents and chunks that were added and removed, by source and reason.

A chunk id never changes its meaning, so snapshots are compared by which ids are live in them. No text is read.

Legend: N rows of a range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.format.records import ChunkRange
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import SUPERSEDED
from retrodb.view.tombstones import disjoint_ranges
from retrodb.view.view import View

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


def run_diff(context: Context, a: int, b: int, *, documents: bool = False) -> DiffResult:
    """Compare snapshot `a` with the later snapshot `b`.

    Args:
        documents: list each document.

    Raises:
        UsageError: one of them does not exist or expired, or they are in the wrong order.
    """
    if a > b:
        raise UsageError(f"snapshot {a} is later than {b}", remedy=f"Give the earlier one first: 'diff DB {b} {a}'.")
    earlier, later = context.view(a), context.view(b)
    reasons = _Reasons(context, earlier, later)
    num_chunks: Counter[tuple[str, str, str]] = Counter()
    num_documents: Counter[tuple[str, str, str]] = Counter()
    listed: list[DiffDocument] = []
    changes = _changed_documents(earlier, later, reasons)
    for changed in _changed_rows(earlier, later, reasons):
        pairs = zip(changed.sources, changed.reasons, strict=True)
        num_chunks.update((source, changed.change, reason) for source, reason in pairs)
        for document in changed.whole_documents():
            shown = document
            if (document.source, document.doc_id) in changes and document.reason in (NEW, SUPERSEDED):
                shown = replace(document, change=CHANGED, reason=NEW_VERSION)
                num_chunks[document.source, document.change, document.reason] -= document.num_chunks
                if document.change == REMOVED:  # the old version; the new one counts
                    continue
                num_chunks[shown.source, shown.change, shown.reason] += shown.num_chunks
            num_documents[shown.source, shown.change, shown.reason] += 1
            if documents:
                listed.append(shown)
    rows = tuple(DiffRow(*key, num_documents[key], num_chunks[key]) for key in sorted(num_chunks) if num_chunks[key])
    listed.sort(key=lambda document: (document.source, document.doc_id, document.first_chunk))
    return DiffResult(a, b, rows, tuple(listed))


def _changed_documents(earlier: View, later: View, reasons: _Reasons) -> set[tuple[str, str]]:
    """Source and id of the documents of which a new version replaced a removed one."""
    removed = {
        (document.source, document.doc_id)
        for changed in _changed_rows(earlier, later, reasons)
        if changed.change == REMOVED and SUPERSEDED in changed.reasons
        for document in changed.whole_documents()
        if document.reason == SUPERSEDED
    }
    if not removed:
        return set()
    added = {
        (document.source, document.doc_id)
        for changed in _changed_rows(earlier, later, reasons)
        if changed.change == ADDED
        for document in changed.whole_documents()
        if document.reason == NEW
    }
    return removed & added


@dataclass(frozen=True)
class _ChangedRows:
    """Rows of one range that are live in one of the two snapshots only."""

    change: str
    view: View  # in which they are live
    span: ChunkRange
    rows: Int64Array  # ascending
    reasons: list[str]  # of each row
    is_live_in_other_N: BoolArray

    @cached_property
    def document_ids(self) -> Int64Array:
        """The id of the first chunk of each row's document."""
        return self.view.chunks.document_ids(self.span.first_chunk + self.rows)

    @cached_property
    def sources(self) -> list[str]:
        """The source of each row."""
        shards, _ = self.view.shards.locate(self.document_ids)
        return [self.view.shards.source[shard] for shard in shards.tolist()]

    def whole_documents(self) -> Iterator[DiffDocument]:
        """The documents of which the other snapshot has no live chunk."""
        document_ids, sources = self.document_ids, self.sources
        starts = np.flatnonzero(np.diff(document_ids, prepend=-1))
        lengths = np.diff(np.append(starts, len(document_ids))).tolist()
        documents = self.view.chunks.documents((self.span.first_chunk + self.rows)[starts])
        for start, length, document in zip(starts.tolist(), lengths, documents, strict=True):
            first_row = int(document_ids[start]) - self.span.first_chunk
            if document is None or self.is_live_in_other_N[first_row : first_row + document["num_chunks"]].any():
                continue  # only some of its chunks changed
            yield DiffDocument(
                source=sources[start],
                doc_id=document["doc_id"],
                change=self.change,
                reason=self.reasons[start],
                first_chunk=int(document_ids[start]),
                num_chunks=length,
            )


def _changed_rows(earlier: View, later: View, reasons: _Reasons) -> Iterator[_ChangedRows]:
    for span in _document_ranges(earlier, later):
        was_live, is_live = earlier.chunks.live_mask(*span), later.chunks.live_mask(*span)
        added, removed = np.flatnonzero(is_live & ~was_live), np.flatnonzero(was_live & ~is_live)
        if len(added):
            yield _ChangedRows(ADDED, later, span, added, reasons.of_added(span.first_chunk + added), was_live)
        if len(removed):
            yield _ChangedRows(REMOVED, earlier, span, removed, reasons.of_removed(span, removed), is_live)


def _document_ranges(earlier: View, later: View) -> list[ChunkRange]:
    """Ranges that hold whole documents in both snapshots."""
    spans = [record.span for view in (earlier, later) for record in view.chunks.ranges]
    starts, ends = np.array([(span.first_chunk, span.end) for span in spans], dtype=np.int64).reshape(-1, 2).T
    return [ChunkRange(start, end - start) for start, end in disjoint_ranges(starts, ends)]


class _Reasons:
    """Why chunks were added and removed between two snapshots."""

    def __init__(self, context: Context, earlier: View, later: View) -> None:
        self._context, self._earlier, self._later = context, earlier, later

    def of_added(self, ids: Int64Array) -> list[str]:
        """The reason of each added chunk."""
        return [NEW if chunk >= self._earlier.snapshot.next_chunk else BACK for chunk in ids.tolist()]

    def of_removed(self, span: ChunkRange, rows: Int64Array) -> list[str]:
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
        return [str(reason) for reason in reasons]

    def _readable(self, number: int) -> View | None:
        try:
            return self._context.view(number)
        except UsageError:  # expired
            return None


def _set_reasons(reasons: AnyArray, is_open: BoolArray, masks: dict[str, BoolArray], rows: Int64Array) -> BoolArray:
    """Write the reasons of the open rows that some mask covers; returns the rows that stay open."""
    still_open = is_open.copy()
    for reason in sorted(masks):
        for index in np.flatnonzero(is_open & masks[reason][rows]).tolist():
            reasons[index] = reason if still_open[index] else f"{reasons[index]}, {reason}"
            still_open[index] = False
    return still_open
