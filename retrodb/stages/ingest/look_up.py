"""Looking the records of an input up in the documents that the source already has, one ids file after the other.

An ids file is sorted by key, so a few new keys read a few of its pages. Other files of a shard are read only where a document
with a new key exists. With `mirror` the whole ids file is compared, because a document may be missing in the input. Tasks do
all this: each compares some files, and says which rows of them are to be deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.engine.groups import groups_of
from retrodb.engine.run import Run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array, save_array
from retrodb.format.entries import QueriesEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import is_in, serialize_rows
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import REMOVED, SUPERSEDED
from retrodb.stages.ingest.read_tasks import engine_for
from retrodb.stages.ingest.upsert import (
    HELD_OUT,
    SUPERSEDES,
    Comparison,
    StaleDocuments,
    compare,
    last_of_each_position,
)
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import SELF, View

_GROUP_BYTES = 64 << 20  # of the ids files that are compared at once: a second of hashing if none was verified before
_MIN_FILE_BYTES = 128 << 10  # what a file counts at least, so that a group has at most 512 files


@dataclass(frozen=True)
class LookUpPayload:
    """Compare an input with the documents of some ids files."""

    run: str  # id of the run that stores the comparison
    snapshot: PlannedSnapshot  # that says which documents are current
    source: str
    query_set: str  # SELF, or the held-out documents
    files: tuple[FileRecord, ...]  # ids files, in the order of their commits
    candidates: FileRecord  # (C,) entries
    mirror: bool


@dataclass(frozen=True)
class LookedUp:
    """What the documents of the ids files of a task mean for the input, and the input for them."""

    outcomes: FileRecord  # (n, 2) as in `Comparison.outcomes`, by ascending position
    stale: tuple[StaleDocuments, ...]


LOOK_UP = TaskKind[LookUpPayload, LookedUp]("look-up", 2, LookedUp)


def look_up(
    context: Context, view: View, run: Run, source: str, candidates: FileRecord, query_set: str, *, mirror: bool
) -> list[LookedUp]:
    """Compare an input with the documents of a source, in tasks; gives their results by the order of the commits.

    Args:
        candidates: (C,) as `upsert.first_of_each_id` gives them.
        query_set: SELF for the database's own documents, or `HELD_OUT_SET`.
        mirror: whether documents that the input does not have are missing.
    """
    snapshot = PlannedSnapshot.of(view)
    tasks = [
        LOOK_UP.task(
            LookUpPayload(run.id, snapshot, source, query_set, files, candidates, mirror),
            weight=sum(map(_weight, files)),
        )
        for files in groups_of(_ids_files(view, source, query_set), _weight, _GROUP_BYTES)
    ]
    records = engine_for(context, tasks).run(run, tasks, run_look_up, context.progress, unit="B") if tasks else []
    return [record.result for record in records]


def run_look_up(storage: Storage, task: Task[LookUpPayload, LookedUp], clock: str) -> TaskRecord[LookedUp]:
    """Compare an input with the documents of some ids files, of which one at a time is mapped."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    chunks, candidates = view.query_set(payload.query_set), view.files.whole_array(payload.candidates)
    outcomes, stale = [np.empty((0, 2), np.int64)], list[StaleDocuments]()
    for record in payload.files:
        comparison = compare(
            candidates,
            view.files.array(record),
            record.first_chunk,
            partial(_is_current, chunks, record),
            changed=SUPERSEDES if payload.query_set == SELF else HELD_OUT,
            mirror=payload.mirror and (payload.query_set == SELF or _source_of(chunks, record) == payload.source),
        )
        outcomes.append(comparison.outcomes)
        stale += _stale(chunks, record, comparison)
    path = path_of("runs", run=payload.run, file=f"spool/{task.id}.outcomes.npy")
    file = publish(storage, "runs", path, partial(save_array, array=last_of_each_position(np.concatenate(outcomes))))
    return TaskRecord(task.id, (file,), LookedUp(file, tuple(stale)))


def _stale(chunks: ChunkSet, record: FileRecord, comparison: Comparison) -> Iterator[StaleDocuments]:
    """The documents of an ids file to delete, whole; of a document that compaction dropped, its first row."""
    for reason, ids in ((SUPERSEDED, comparison.superseded), (REMOVED, comparison.missing)):
        if len(ids):
            first_rows = np.unique(ids) - record.first_chunk
            layout = chunks.layout(chunks.file("documents", *record.span))
            exists = layout.document_of(first_rows) >= 0
            rows = np.union1d(layout.rows_of(first_rows[exists]), first_rows[~exists])
            yield StaleDocuments(record.span, reason, len(ids), serialize_rows(rows))


def _ids_files(view: View, source: str, query_set: str) -> list[FileRecord]:
    """The ids files of a source in the order of their commits; held-out ones of all sources, because no record says whose."""
    if query_set == SELF:
        shards = view.shards
        starts = {int(shards.first_chunk[index]) for index, name in enumerate(shards.source) if name == source}
        return [record for record in view.manifest.files("ids") if record.first_chunk in starts]
    if view.snapshot.entry(QueriesEntry, query_set) is None:
        return []
    return [record for record in view.manifest.files("queries", query_set) if record.path.endswith("/ids.npy")]


def _weight(record: FileRecord) -> int:
    return max(record.digest.size_bytes, _MIN_FILE_BYTES)


def _source_of(held_out: ChunkSet, record: FileRecord) -> str:
    """The source of a file of held-out documents: one task writes the documents of one source only."""
    documents = held_out.file("documents", *record.span)
    sources = held_out.documents_table(documents).column("source")
    return str(sources[0].as_py()) if len(sources) else ""  # compaction may have dropped all of them


def _is_current(chunks: ChunkSet, record: FileRecord, first_rows: Int64Array) -> BoolArray:
    """(n,) bool: neither superseded nor removed. A document that compaction dropped counts while a decision keeps it out."""
    deleted = chunks.tombstones.rows_by_reason(*record.span)
    is_current = chunks.layout(chunks.file("documents", *record.span)).document_of(first_rows) >= 0
    for reason in deleted.keys() - {SUPERSEDED, REMOVED}:
        is_current |= is_in(deleted[reason], first_rows, record.num_chunks)
    for reason in deleted.keys() & {SUPERSEDED, REMOVED}:
        is_current &= ~is_in(deleted[reason], first_rows, record.num_chunks)
    return np.asarray(is_current)
