"""What a neighbour table names and is deleted: records say it where nothing is deleted, otherwise planning tasks.

A task looks into one file of compared sets, or into the rows of one range. What is left of it is a few numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.records import ChunkRange
from retrodb.stages.context import Context
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.planning_tasks import run_planning_tasks
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedSets
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class LostPayload:
    """A file of compared sets."""

    snapshot: PlannedSnapshot
    table: str
    path: str


@dataclass(frozen=True)
class LostIds:
    """Ids of both sides that the rows of a table were compared with, and that are deleted."""

    num_chunks: int
    num_rows: int

    def __add__(self, other: LostIds) -> LostIds:
        return LostIds(self.num_chunks + other.num_chunks, self.num_rows + other.num_rows)


@dataclass(frozen=True)
class NamedRowsPayload:
    """A range of rows of a table."""

    snapshot: PlannedSnapshot
    table: str
    span: ChunkRange


@dataclass(frozen=True)
class NamedIds:
    """What the rows of a range name."""

    is_deleted: bool  # a row of the range, or a neighbour of one


LOST = TaskKind[LostPayload, LostIds]("fold-lost", 1, LostIds)
NAMED = TaskKind[NamedRowsPayload, NamedIds]("fold-named", 2, NamedIds)


def is_nothing_deleted(table: NeighbourTable) -> bool:
    """Whether the records alone show that the table can name nothing deleted; False says nothing."""
    view, queries = table.view, sides_of(table)[QUERIES]
    return view.chunks.is_all_live(0, view.snapshot.next_chunk) and (
        table.query_set == SELF or all(queries.is_all_live(*record.span) for record in table.files)
    )


def count_lost(context: Context, table: NeighbourTable) -> LostIds:
    """Count what a table was compared with and is deleted, in a task for each file of compared sets."""
    view, snapshot = table.view, PlannedSnapshot.of(table.view)
    paths = [record.path for record in view.manifest.files("joined", table.name)]
    tasks = [LOST.task(LostPayload(snapshot, table.name, path)) for path in paths]
    engine = context.engine_for_chunks(view.chunks.end)
    results = run_planning_tasks(context, "fold-lost", tasks, run_count_lost, unit="files", engine=engine)
    return sum(results, LostIds(0, 0))


def names_deleted(context: Context, table: NeighbourTable) -> bool:
    """Whether an edit names a deleted chunk, or rows of the table are deleted or name one, found in a task for each range."""
    edited = np.array([edit.chunk for edit in table.edits.all], dtype=np.int64)
    if not table.view.chunks.is_live(edited).all():
        return True
    snapshot = PlannedSnapshot.of(table.view)
    tasks = [NAMED.task(NamedRowsPayload(snapshot, table.name, span), weight=span.num_chunks) for span in table.spans()]
    engine = context.engine_for_chunks(sum(task.weight for task in tasks))
    results = run_planning_tasks(context, "fold-named", tasks, run_find_named, unit="chunks", engine=engine)
    return any(named.is_deleted for named in results)


def run_count_lost(storage: Storage, task: Task[LostPayload, LostIds], clock: str) -> TaskRecord[LostIds]:
    """Count the deleted ids of one file of compared sets. No range is in two files."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    (record,) = (file for file in view.manifest.files("joined", payload.table) if file.path == payload.path)
    compared = ComparedSets([view.files.open(record)])
    lost = {
        side: sum(len(compared.rows(side, *span) - chunks.live_rows(*span)) for span in compared.ranges(side))
        for side, chunks in sides_of(_table(view, payload.table)).items()
    }
    return TaskRecord(task.id, result=LostIds(lost[DATABASE], lost[QUERIES]))


def run_find_named(storage: Storage, task: Task[NamedRowsPayload, NamedIds], clock: str) -> TaskRecord[NamedIds]:
    """Find whether a row of one range is deleted, or names a deleted chunk."""
    del clock
    table = _table(planned_view(storage, task.payload.snapshot), task.payload.table)
    rows = table.all_rows_in(*task.payload.span)
    is_deleted = not sides_of(table)[QUERIES].is_live(rows).all()
    return TaskRecord(task.id, result=NamedIds(bool(is_deleted or _names_deleted(table, task.payload.span))))


def _names_deleted(table: NeighbourTable, span: ChunkRange) -> bool:
    """Whether a row of a range names a deleted chunk: only ids of ranges where something is deleted are read."""
    chunks = table.view.chunks

    def may_be_deleted(first: int, last: int) -> bool:
        return not chunks.is_all_live(first, last - first + 1)

    for ids in table.named_chunks(*span, may_be_deleted):
        deleted = ids[~chunks.is_live(ids)]
        # A row may name it only in a file that a later one replaces.
        if len(deleted) and len(table.rows_that_name(deleted, *span)):
            return True
    return False


@lru_cache(maxsize=1)
def _table(view: View, name: str) -> NeighbourTable:
    """A table, opened once per process."""
    return NeighbourTable(view, name)


def sides_of(table: NeighbourTable) -> dict[str, ChunkSet]:
    """The chunks of both sides of a table."""
    return {DATABASE: table.view.chunks, QUERIES: table.view.query_set(table.query_set)}
