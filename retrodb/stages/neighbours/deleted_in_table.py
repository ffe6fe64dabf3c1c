"""What of a neighbour table is deleted: records say it where nothing is deleted, otherwise tasks.

A planning task looks into one file of compared sets, and what is left of it is two numbers. The task that folds a range of rows
looks into its files.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.records import ChunkRange
from retrodb.stages.context import Context
from retrodb.stages.neighbours.compared_states import split_ranges
from retrodb.stages.neighbours.compared_tasks import TableInputs, compared_before
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.planning_tasks import run_planning_tasks
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedSets
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF


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


LOST = TaskKind[LostPayload, LostIds]("fold-lost", 1, LostIds)


def is_nothing_deleted(table: NeighbourTable) -> bool:
    """Whether the records alone show that the table can name nothing deleted; False says nothing."""
    view, queries = table.view, sides_of(table)[QUERIES]
    return view.chunks.is_all_live(0, view.snapshot.next_chunk) and (
        table.query_set == SELF or all(queries.is_all_live(*record.span) for record in table.files)
    )


def count_lost(context: Context, table: NeighbourTable) -> dict[str, LostIds]:
    """By path, the files of compared sets that have deleted ids. A task looks into each file of which a range has changed."""
    view, snapshot = table.view, PlannedSnapshot.of(table.view)
    records = view.manifest.files("joined", table.name)
    compared, states = compared_before(view, table.name), TableInputs.of(table).states(view)
    changed = set[int]()
    for side in (DATABASE, QUERIES):
        unchanged = set(split_ranges(compared, states, side).unchanged)
        changed |= {stored.file for stored in compared.stored(side) if stored not in unchanged}
    paths = [records[number].path for number in sorted(changed)]
    tasks = [LOST.task(LostPayload(snapshot, table.name, path)) for path in paths]
    engine = context.engine_for_chunks(view.chunks.end)
    results = run_planning_tasks(context, "fold-lost", tasks, run_count_lost, unit="files", engine=engine)
    return {path: lost for path, lost in zip(paths, results, strict=True) if lost != LostIds(0, 0)}


def run_count_lost(storage: Storage, task: Task[LostPayload, LostIds], clock: str) -> TaskRecord[LostIds]:
    """Count the deleted ids of one file of compared sets. No range is in two files."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    (record,) = (file for file in view.manifest.files("joined", payload.table) if file.path == payload.path)
    compared = ComparedSets([view.files.open(record)])
    lost = {
        side: sum(len(compared.rows(side, *span) - chunks.live_rows(*span)) for span in compared.ranges(side))
        for side, chunks in sides_of(NeighbourTable(view, payload.table)).items()
    }
    return TaskRecord(task.id, result=LostIds(lost[DATABASE], lost[QUERIES]))


def names_deleted(table: NeighbourTable, span: ChunkRange) -> bool:
    """Whether a row of a range is deleted, or names a deleted chunk: only ids of ranges where something is deleted are read."""
    if not sides_of(table)[QUERIES].is_live(table.all_rows_in(*span)).all():
        return True
    chunks = table.view.chunks

    def may_be_deleted(first: int, last: int) -> bool:
        return not chunks.is_all_live(first, last - first + 1)

    for ids in table.named_chunks(*span, may_be_deleted):
        deleted = ids[~chunks.is_live(ids)]
        # A row may name it only in a file that a later one replaces.
        if len(deleted) and len(table.rows_that_name(deleted, *span)):
            return True
    return False


def sides_of(table: NeighbourTable) -> dict[str, ChunkSet]:
    """The chunks of both sides of a table."""
    return {DATABASE: table.view.chunks, QUERIES: table.view.query_set(table.query_set)}
