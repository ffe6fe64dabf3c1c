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

from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.entries import TableEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.neighbours.compared_tasks import publish_compared
from retrodb.stages.neighbours.deleted_in_table import count_lost, is_nothing_deleted, names_deleted, sides_of
from retrodb.stages.neighbours.repair_task import list_bounds
from retrodb.stages.neighbours.table_rows import publish_rows, spans_of
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store.conflict_keys import RESTORE, ConflictKeys
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.compared_sets import ComparedRange, ComparedSets, with_gaps
from retrodb.view.edits import Edit, Edits
from retrodb.view.naming import naming_path
from retrodb.view.neighbour_table import NeighbourTable, live_first
from retrodb.view.view import View

STAGE_VERSION = 4


@dataclass(frozen=True)
class FoldPayload:
    """A range of rows of a table, or other files of it: one of compared sets, or those of edits."""

    snapshot: PlannedSnapshot
    table: str
    span: ChunkRange | None
    files: tuple[str, ...] = ()  # their paths, where there is no range


@dataclass(frozen=True)
class Folded:
    """What a task found."""

    is_kept: bool = False  # the file of the range has no patches and names nothing deleted


KIND = TaskKind[FoldPayload, Folded]("fold", STAGE_VERSION, Folded)


@dataclass(frozen=True)
class FoldPlan:
    """The folding of one table, as a part of a run and of its commit."""

    table: str
    tasks: tuple[Task[FoldPayload, Folded], ...]  # for `run_fold_task`
    replaced: tuple[tuple[FileRecord, ...], ...]  # by the result of each task
    entry: TableEntry  # of the folded table

    @property
    def conflict_keys(self) -> ConflictKeys:
        """What must not change between plan and commit. The entry that is set conflicts with repairs of the old files."""
        return ConflictKeys(frozenset({f"table/{self.table}", f"edits/{self.table}", RESTORE}), frozenset())

    def add_to(self, transaction: Transaction, records: Sequence[TaskRecord[Folded]]) -> None:
        """Add the folded files and the entry to a change, in place of the old files."""
        transaction.add_files(records)
        by_task = zip(self.replaced, records, strict=True)
        paths = {file.path for files, record in by_task if not record.result.is_kept for file in files}
        transaction.drop_paths(sorted(paths))  # a file may have rows of two ranges
        transaction.set_entry(self.table, self.entry)


def plan_fold(context: Context, view: View, table: str) -> FoldPlan | None:
    """The folding of a table; None when it has no patches, and nothing was deleted since it was folded.

    Where something is deleted and records do not say what, planning tasks look into what the rows were compared with.

    Raises:
        MissingStep: when there is no such table.
    """
    of_table = NeighbourTable(view, table)
    entry, is_all_live = of_table.entry, is_nothing_deleted(of_table)
    lost = {} if is_all_live else count_lost(context, of_table)
    may_name_deleted = not is_all_live and (bool(lost) or entry.may_name_deleted)
    payload, replaced = FoldPayload(PlannedSnapshot.of(view), table, None), dict[FoldPayload, tuple[FileRecord, ...]]()
    naming = {record.path: record for record in view.manifest.files("naming", table)}
    for span in with_gaps(spans_of(view, of_table.query_set), of_table.spans()):
        files = of_table.files_of(*span)
        if files and (may_name_deleted or not _is_one_file(files, span)):
            names = (naming[path] for file in files if (path := naming_path(file.path)) in naming)
            replaced[replace(payload, span=span)] = (*files, *names)
    others: list[tuple[FileRecord, ...]] = [
        (record,) for record in view.manifest.files("joined", table) if record.path in lost
    ]
    if not is_all_live and len(_live_edits(of_table)) < len(of_table.edits.all):
        others.append(tuple(view.manifest.files("edits", table)))
    for files in others:
        replaced[replace(payload, files=tuple(record.path for record in files))] = files
    if not replaced:
        return None
    return FoldPlan(
        table=table,
        tasks=tuple(KIND.task(each, weight=each.span.num_chunks if each.span else 0) for each in replaced),
        replaced=tuple(replaced.values()),
        entry=replace(
            entry,
            lost_chunks=entry.lost_chunks + sum(ids.num_chunks for ids in lost.values()),
            may_name_deleted=entry.may_name_deleted and is_all_live,
        ),
    )


def run_fold_task(storage: Storage, task: Task[FoldPayload, Folded], clock: str) -> TaskRecord[Folded]:
    """Fold one range of rows, unless its file can stay as it is, or write another file of the table without what is deleted."""
    del clock
    payload = task.payload
    table = NeighbourTable(planned_view(storage, payload.snapshot), payload.table)
    if payload.span is None:
        return TaskRecord(task.id, tuple(_publish_live(storage, table, task)), result=Folded())
    return _fold_rows(storage, table, task.id, payload.span)


def _fold_rows(storage: Storage, table: NeighbourTable, task: str, span: ChunkRange) -> TaskRecord[Folded]:
    if _is_one_file(table.files_of(*span), span) and not names_deleted(table, span):
        return TaskRecord(task, result=Folded(is_kept=True))
    rows = table.rows_in(*span)
    if not len(rows):
        return TaskRecord(task, result=Folded())
    ids, distances = table.stored(rows)
    bound, _ = list_bounds(ids, distances)
    ids, distances = live_first(table.view, ids, distances, table.width)
    distances = np.where(ids >= 0, distances, bound[:, None])
    files = publish_rows(storage, table.name, task, span, rows, ids, distances)
    return TaskRecord(task, files, result=Folded())


def _is_one_file(files: Sequence[FileRecord], span: ChunkRange) -> bool:
    """Whether the rows of a range are in one file, which has no other rows."""
    return [(file.first_chunk, file.span.end) for file in files] == [(span.first_chunk, span.end)]


def _publish_live(storage: Storage, table: NeighbourTable, task: Task[FoldPayload, Folded]) -> Iterator[FileRecord]:
    """Publish a file of compared sets, or all edits, without what is deleted; nothing where nothing is left."""
    records = [
        record for record in table.view.manifest.files("joined", table.name) if record.path in task.payload.files
    ]
    if records:
        if live := list(_live_ranges(table, records)):
            yield publish_compared(storage, table.name, task.id, live)
    elif edits := _live_edits(table):
        path = path_of("edits", name=table.name, task=task.id)
        yield publish(storage, "edits", path, partial(write_table, table=Edits(edits).to_table()), name=table.name)


def _live_ranges(table: NeighbourTable, records: Sequence[FileRecord]) -> Iterator[ComparedRange]:
    """What files say that rows were compared with and is live, range by range."""
    compared = ComparedSets(table.view.files.open(record) for record in records)
    for side, chunks in sides_of(table).items():
        for span in compared.ranges(side):
            if live := compared.rows(side, *span) & chunks.live_rows(*span):
                yield ComparedRange.of(side, span, live)


def _live_edits(table: NeighbourTable) -> list[Edit]:
    chunks, queries = table.view.chunks, table.view.query_set(table.query_set)
    return [edit for edit in table.edits.all if _is_about_live(edit, chunks, queries)]


def _is_about_live(edit: Edit, chunks: ChunkSet, queries: ChunkSet) -> bool:
    return bool(chunks.is_live(np.array([edit.chunk]))[0] and queries.is_live(np.array([edit.row]))[0])
