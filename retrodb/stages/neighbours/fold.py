"""Folding a neighbour table: its base and patches become one new base that names no deleted chunk.

A fold is part of the run and the commit of another command, such as compaction:

    fold = plan_fold(context, view, "self")
    transaction = Transaction.open(context, view, "compact", fold.conflict_keys, plan=...)
    fold.add_to(transaction, transaction.run_tasks(fold.tasks, run_fold_task))

The answers of the table do not change, and neither does the work of a later repair: a deleted neighbour leaves its bound
(see `repair_task`), and a chunk that is undeleted is compared again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.entries import TableEntry
from retrodb.format.kinds import TABLE_KINDS, path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.neighbours.compared_tasks import publish_compared
from retrodb.stages.neighbours.deleted_in_table import LostIds, count_lost, is_nothing_deleted, names_deleted, sides_of
from retrodb.stages.neighbours.repair_task import list_bounds
from retrodb.stages.neighbours.table_rows import publish_rows, spans_of
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store.conflict_keys import RESTORE, ConflictKeys
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.compared_sets import ComparedRange, ComparedSets
from retrodb.view.edits import Edit, Edits
from retrodb.view.neighbour_table import NeighbourTable, live_first
from retrodb.view.view import View

STAGE_VERSION = 3


@dataclass(frozen=True)
class FoldPayload:
    """A range of rows of a table, or everything else that the table stores."""

    snapshot: PlannedSnapshot
    table: str
    span: ChunkRange | None  # None: compared sets and edits


KIND = TaskKind[FoldPayload, NoResult]("fold", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class FoldPlan:
    """The folding of one table, as a part of a run and of its commit."""

    table: str
    tasks: tuple[Task[FoldPayload, NoResult], ...]  # for `run_fold_task`
    replaced: tuple[FileRecord, ...]
    entry: TableEntry  # of the folded table

    @property
    def conflict_keys(self) -> ConflictKeys:
        """What must not change between plan and commit. The entry that is set conflicts with repairs of the old files."""
        return ConflictKeys(frozenset({f"table/{self.table}", f"edits/{self.table}", RESTORE}), frozenset())

    def add_to(self, transaction: Transaction, records: Sequence[TaskRecord[NoResult]]) -> None:
        """Add the folded files and the entry to a change, in place of the old files."""
        transaction.add_files(records)
        transaction.drop_files(self.replaced)
        transaction.set_entry(self.table, self.entry)


def plan_fold(context: Context, view: View, table: str) -> FoldPlan | None:
    """The folding of a table; None when it has no patches and names nothing deleted.

    Where something is deleted and records do not say what, planning tasks look into the table.

    Raises:
        MissingStep: when there is no such table.
    """
    neighbour_table = NeighbourTable(view, table)
    spans = spans_of(view, neighbour_table.query_set)
    has_patches = len(neighbour_table.files) > len(spans)
    if is_nothing_deleted(neighbour_table):
        lost = LostIds(0, 0)
        if not has_patches:
            return None
    else:
        lost = count_lost(context, neighbour_table)
        is_needed = has_patches or lost != LostIds(0, 0)
        if not is_needed and not names_deleted(context, neighbour_table):
            return None
    snapshot = PlannedSnapshot.of(view)
    tasks = [KIND.task(FoldPayload(snapshot, table, span), weight=span.num_chunks) for span in spans]
    entry = neighbour_table.entry
    return FoldPlan(
        table=table,
        tasks=(*tasks, KIND.task(FoldPayload(snapshot, table, None))),
        replaced=tuple(record for kind in TABLE_KINDS for record in view.manifest.files(kind, table)),
        entry=replace(entry, lost_chunks=entry.lost_chunks + lost.num_chunks),
    )


def run_fold_task(storage: Storage, task: Task[FoldPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Fold one range of rows, or the compared sets and edits of the table."""
    del clock
    view, span = planned_view(storage, task.payload.snapshot), task.payload.span
    table = NeighbourTable(view, task.payload.table)
    if span is None:
        return TaskRecord(task.id, tuple(_fold_sets(storage, table, task.id)))
    rows = table.rows_in(*span)
    if not len(rows):
        return TaskRecord(task.id)
    ids, distances = table.stored(rows)
    bound, _ = list_bounds(ids, distances)
    ids, distances = live_first(view, ids, distances, table.width)
    distances = np.where(ids >= 0, distances, bound[:, None])
    return TaskRecord(task.id, publish_rows(storage, table.name, task.id, span, rows, ids, distances))


def _fold_sets(storage: Storage, table: NeighbourTable, task: str) -> list[FileRecord]:
    """Publish the compared sets and the edits of a table, without what is deleted."""
    view, queries = table.view, table.view.query_set(table.query_set)
    files = []
    if view.manifest.files("joined", table.name):
        files.append(publish_compared(storage, table.name, task, _live_ranges(table)))
    edits = [edit for edit in table.edits.all if _is_about_live(edit, view.chunks, queries)]
    if edits:
        write = partial(write_table, table=Edits(edits).to_table())
        files.append(publish(storage, "edits", path_of("edits", name=table.name, task=task), write, name=table.name))
    return files


def _live_ranges(table: NeighbourTable) -> Iterator[ComparedRange]:
    """What the rows were compared with and what is live, range by range."""
    compared = ComparedSets.read(table.view, table.name)
    for side, chunks in sides_of(table).items():
        for span in compared.ranges(side):
            if live := compared.rows(side, *span) & chunks.live_rows(*span):
                yield ComparedRange.of(side, span, live)


def _is_about_live(edit: Edit, chunks: ChunkSet, queries: ChunkSet) -> bool:
    return bool(chunks.is_live(np.array([edit.chunk]))[0] and queries.is_live(np.array([edit.row]))[0])
