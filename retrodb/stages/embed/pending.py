"""Rows that have no vector in a space yet.

Most shards are known to lack nothing without a look at their chunks: their counts say so. A range of a query set has no counts.
Either one file of vectors has all its rows, or it was looked at before, and nothing that decides the answer has changed since:
its documents, its tombstones and the rows of its vectors. The cache folder of this machine keeps a digest of these. Tasks look at
the other ranges. The plan has the number and the digest of the rows of a file, and a task that needs the rows finds them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.engine.groups import groups_of
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.entries import QueriesEntry, TestsetEntry
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.planning_tasks import run_planning_tasks
from retrodb.store.cached_lines import cached_lines
from retrodb.store.digest import identity
from retrodb.store.row_files import rows_digest
from retrodb.store.storage import Storage
from retrodb.view.shard_counts import complete_shards
from retrodb.view.view import SELF, View

_GROUP_CHUNKS = 1 << 22  # that are looked at together: about two seconds
_MIN_SHARD_CHUNKS = 1 << 13  # what a shard counts at least, so that a group has at most 512 shards
_CACHE = "embedded"


@dataclass(frozen=True)
class PendingRows:
    """The rows of one file of chunks that have no vector: their number and digest say which, see `rows_of`."""

    query_set: str  # SELF for the database's own chunks
    chunks: FileRecord
    hashes: FileRecord  # of the texts
    rows: str | None  # digest of their bitmap; None: every row of the file's range
    num_rows: int


@dataclass(frozen=True)
class ChunksOfSet:
    """A range of the chunks of a query set."""

    query_set: str
    span: ChunkRange


@dataclass(frozen=True)
class PendingPayload:
    """Look at some ranges of chunks."""

    snapshot: PlannedSnapshot
    space: str
    ranges: tuple[ChunksOfSet, ...]


@dataclass(frozen=True)
class FoundRows:
    """The rows without a vector of a range."""

    rows: str | None  # digest of their bitmap; None: every row
    num_rows: int


@dataclass(frozen=True)
class RowsOfRanges:
    """What was found in some ranges, in the order of the payload."""

    ranges: tuple[FoundRows, ...]


PENDING = TaskKind[PendingPayload, RowsOfRanges]("embed-pending", 2, RowsOfRanges)


def find_pending_rows(context: Context, view: View, space: str) -> tuple[PendingRows, ...]:
    """All live, screened key chunks, and all key chunks of query sets, that have no vector in a space."""
    complete, to_look_at = cached_lines(_CACHE), []
    is_complete = complete_shards(view, space)
    without_gaps = {view.shards.record(number).span for number in np.flatnonzero(is_complete).tolist()}
    for query_set in (SELF, *view.snapshot.names(QueriesEntry)):
        covered = view.query_vectors(query_set, space)
        for record in view.query_set(query_set).ranges:
            if query_set == SELF and record.span in without_gaps:
                continue
            vectors = covered.overlapping(*record.span)
            if not any(_has_all_rows(file, record.span) for file in vectors):
                state = complete_state(view, query_set, record, vectors)
                if state not in complete:
                    to_look_at.append((ChunksOfSet(query_set, record.span), state))
    found = _look_at(context, view, space, [of_set for of_set, _ in to_look_at])
    pending, unscreened = [], _unscreened(view)
    for (of_set, _), of_range in zip(to_look_at, found, strict=True):
        if of_range.num_rows:
            chunks = view.query_set(of_set.query_set)
            chunks_file, hashes_file = (chunks.file(kind, *of_set.span) for kind in ("chunks", "hashes"))
            pending.append(PendingRows(of_set.query_set, chunks_file, hashes_file, of_range.rows, of_range.num_rows))
    complete.add(
        state
        for (of_set, state), of_range in zip(to_look_at, found, strict=True)
        if not of_range.num_rows and of_set not in unscreened
    )
    return tuple(pending)


def keep_complete(view: View, pending: Sequence[PendingRows], space: str, new_files: Sequence[FileRecord]) -> None:
    """Remember that ranges lack no vector once the new files of vectors are there, one for each of the pending ranges."""
    unscreened, states = _unscreened(view), []
    for part, file in zip(pending, new_files, strict=True):
        span = part.chunks.span
        if ChunksOfSet(part.query_set, span) not in unscreened:
            vectors = [*view.query_vectors(part.query_set, space).overlapping(*span), file]
            documents = view.query_set(part.query_set).file("documents", *span)
            states.append(complete_state(view, part.query_set, documents, vectors))
    cached_lines(_CACHE).add(states)


def complete_state(view: View, query_set: str, documents: FileRecord, vectors: Sequence[FileRecord]) -> str:
    """A digest of all that decides which screened rows of a range have no vector.

    It leaves out which rows are screened. So it may be remembered only of a range that was screened against every test set:
    a later test set takes rows away, and adds none.
    """
    settings = view.settings
    tombstones = view.query_set(query_set).tombstones.overlapping(*documents.span)
    return identity(
        [settings.chunk_tokens, settings.min_key_tokens],
        [documents.digest.sha256.hex(), *documents.span, documents.rows],
        [[t.first_chunk, t.num_chunks, t.reason, t.active, t.rows.hex()] for t in tombstones],
        sorted([*file.span, file.rows or ""] for file in vectors),
    )


def _has_all_rows(file: FileRecord, span: ChunkRange) -> bool:
    return file.rows is None and file.span.first_chunk <= span.first_chunk and span.end <= file.span.end


def _unscreened(view: View) -> set[ChunksOfSet]:
    """The shards that some test set was not compared with."""
    shards = {shard for name in view.snapshot.names(TestsetEntry) for shard in view.unscreened_shards(name)}
    return {ChunksOfSet(SELF, view.shards.record(shard).span) for shard in shards}


def _look_at(context: Context, view: View, space: str, ranges: Sequence[ChunksOfSet]) -> list[FoundRows]:
    """The rows of each range that have no vector."""
    tasks = [
        PENDING.task(PendingPayload(PlannedSnapshot.of(view), space, group), weight=sum(map(_weight, group)))
        for group in groups_of(ranges, _weight, _GROUP_CHUNKS)
    ]
    results = run_planning_tasks(context, "embed-pending", tasks, run_pending, unit="chunks")
    return [found for result in results for found in result.ranges]


def run_pending(storage: Storage, task: Task[PendingPayload, RowsOfRanges], clock: str) -> TaskRecord[RowsOfRanges]:
    """Find the rows of some ranges that have no vector."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    rows = (_pending(view, payload.space, of_set) for of_set in payload.ranges)
    return TaskRecord(task.id, result=RowsOfRanges(tuple(FoundRows(rows_digest(found), len(found)) for found in rows)))


def rows_of(storage: Storage, snapshot: PlannedSnapshot, space: str, part: PendingRows) -> RowSet:
    """The pending rows of a file of chunks, found again in a task.

    Args:
        snapshot: that was planned on. Payloads do not have it, but the digest: after another commit their tasks continue.
    """
    if part.rows is None:
        return RowSet.all(part.chunks.num_chunks)
    rows = _pending(planned_view(storage, snapshot), space, ChunksOfSet(part.query_set, part.chunks.span))
    assert rows_digest(rows) == part.rows, "the planner found these rows in the same way"
    return rows


def _weight(of_set: ChunksOfSet) -> int:
    return max(of_set.span.num_chunks, _MIN_SHARD_CHUNKS)


def _pending(view: View, space: str, of_set: ChunksOfSet) -> RowSet:
    chunks, covered = view.query_set(of_set.query_set), view.query_vectors(of_set.query_set, space)
    keys = view.embeddable_mask(*of_set.span) if of_set.query_set == SELF else chunks.key_mask(*of_set.span)
    return RowSet.from_mask(keys & ~covered.covered_mask(*of_set.span))


def own_parts(pending: Sequence[PendingRows]) -> list[PendingRows]:
    """The pending chunks of the database itself, without rows of query sets."""
    return [part for part in pending if part.query_set == SELF]
