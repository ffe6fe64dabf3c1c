"""What lies between two snapshots: the documents and chunks that came and went, by source and reason.

A chunk id means the same for ever, so snapshots are compared by which ids are live in them; no text is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.arrays import AnyArray, BoolArray, Int64Array
from retrodb.stages.context import Context
from retrodb.view.tombstones import disjoint_ranges
from retrodb.view.view import View

ADDED, REMOVED = "added", "removed"
NEW, BACK, GONE, UNKNOWN = "new", "back", "not there", "compacted"
"""Reasons besides those of tombstones: an id given since, one that came back, one that a restore took, and one whose
tombstone went with its row."""


@dataclass(frozen=True)
class DiffRow:
    """What changed for one reason in one source."""

    source: str
    change: str  # added or removed
    reason: str  # of tombstones, several joined by ", "
    documents: int  # that came or went whole
    chunks: int


@dataclass(frozen=True)
class DiffDocument:
    """One document that came or went."""

    source: str
    doc_id: str
    change: str
    reason: str
    first_chunk: int
    num_chunks: int  # of these, the live ones that came or went


@dataclass(frozen=True)
class DiffResult:
    """All that changed from one snapshot to another."""

    a: int
    b: int
    rows: tuple[DiffRow, ...]
    documents: tuple[DiffDocument, ...]  # by source and id; empty unless asked for


def run_diff(context: Context, a: int, b: int, *, documents: bool = False) -> DiffResult:
    """What leads from snapshot `a` to snapshot `b`, the later one.

    Args:
        documents: list each document.

    Raises:
        UsageError: when one of them is not there, or expired, or they are in the wrong order.
    """
    if a > b:
        raise UsageError(f"snapshot {a} is later than {b}", remedy=f"Ask for the way forward: 'diff DB {b} {a}'.")
    before, after = context.view(a), context.view(b)
    between = _Reasons(context, before, after)
    chunks: Counter[tuple[str, str, str]] = Counter()
    whole: Counter[tuple[str, str, str]] = Counter()
    listed: list[DiffDocument] = []
    for first, count in _spans(before, after):
        was, is_now = before.chunks.live_mask(first, count), after.chunks.live_mask(first, count)
        for change, mask, view, other in ((ADDED, is_now & ~was, after, was), (REMOVED, was & ~is_now, before, is_now)):
            rows = np.flatnonzero(mask)
            if not len(rows):
                continue
            reasons = between.of_added(first + rows) if change == ADDED else between.of_removed(first, count, rows)
            owners = view.chunks.document_ids(first + rows)
            sources = _sources(view, owners)
            chunks.update((source, change, reason) for source, reason in zip(sources, reasons, strict=True))
            begins = np.flatnonzero(np.diff(owners, prepend=-1))
            lengths = np.diff(np.append(begins, len(owners)))
            for at, length, known in zip(begins, lengths, view.chunks.documents((first + rows)[begins]), strict=True):
                if known is None or other[owners[at] - first : owners[at] - first + known["num_chunks"]].any():
                    continue  # only some of its chunks
                whole[sources[at], change, reasons[at]] += 1
                if documents:
                    place = (int(owners[at]), int(length))
                    listed.append(DiffDocument(sources[at], known["doc_id"], change, reasons[at], *place))
    rows_of = tuple(DiffRow(*key, whole[key], chunks[key]) for key in sorted(chunks))
    listed.sort(key=lambda each: (each.source, each.doc_id, each.first_chunk))
    return DiffResult(a, b, rows_of, tuple(listed))


def _spans(before: View, after: View) -> list[tuple[int, int]]:
    """Ranges (first id, length) that hold whole documents in both snapshots."""
    ranges = [(r.first_chunk, r.first_chunk + r.num_chunks) for v in (before, after) for r in v.chunks.ranges]
    starts, ends = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
    return [(start, end - start) for start, end in disjoint_ranges(starts, ends)]


def _sources(view: View, documents: Int64Array) -> list[str]:
    index, _ = view.shards.locate(documents)
    return [view.shards.source[shard] for shard in index.tolist()]


class _Reasons:
    """Why chunks came and went between two snapshots."""

    def __init__(self, context: Context, before: View, after: View) -> None:
        self._context, self._before, self._after = context, before, after

    def of_added(self, ids: Int64Array) -> list[str]:
        """Given since, or there before and back again."""
        return [NEW if chunk >= self._before.snapshot.next_chunk else BACK for chunk in ids.tolist()]

    def of_removed(self, first: int, count: int, rows: Int64Array) -> list[str]:
        """The tombstones of each row, as the later snapshot has them, or the newest before it that still does."""
        reasons = np.full(len(rows), UNKNOWN, dtype=object)
        index, _ = self._after.shards.locate(first + rows)
        reasons[index < 0] = GONE
        open_rows = _name(reasons, index >= 0, self._after.chunks.tombstones.deleted_by_reason(first, count), rows)
        number = self._after.snapshot.number
        while open_rows.any() and (number := number - 1) > self._before.snapshot.number:
            view = self._readable(number)
            if view is not None:
                open_rows = _name(reasons, open_rows, view.chunks.tombstones.deleted_by_reason(first, count), rows)
        return [str(reason) for reason in reasons]

    def _readable(self, number: int) -> View | None:
        try:
            return self._context.view(number)
        except UsageError:  # expired
            return None


def _name(reasons: AnyArray, wanted: BoolArray, masks: dict[str, BoolArray], rows: Int64Array) -> BoolArray:
    """Write the reasons of the wanted rows that some mask covers; gives those that none does."""
    left = wanted.copy()
    for reason in sorted(masks):
        for place in np.flatnonzero(wanted & masks[reason][rows]).tolist():
            reasons[place] = reason if left[place] else f"{reasons[place]}, {reason}"
            left[place] = False
    return left
