"""Compaction: drop deleted rows, and join small adjacent ranges. Chunk ids never change, so no answer changes.

There are three kinds of commits, each with the conflict keys of what it alone reads: one for the shards with their vectors,
scores and query sets; one for the index parts of every space; one for every neighbour table. Each is planned on the newest
snapshot. When another commit changed its inputs in the meantime, it is planned again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge
from typing import TypeVar

from retrodb.engine.task import TaskRecord
from retrodb.errors import ConflictError
from retrodb.format.entries import AttributeEntry, Entry, IndexEntry, QueriesEntry, SpaceEntry, TableEntry, entry_key
from retrodb.format.records import ShardRecord
from retrodb.maintain.compact.plan import (
    CompactedRange,
    CompactPlan,
    CompactResult,
    compact_result,
    compacted_range,
    plan_compact,
)
from retrodb.maintain.compact.ranges import Rewrite, RowsToDrop, untouched_tombstones
from retrodb.maintain.compact.rewrite import RewrittenRange, rewrite_task, run_rewrite
from retrodb.stages.context import Context
from retrodb.stages.index.merge import files_of, merge_bytes, merge_task, run_merge_task, span_of
from retrodb.stages.neighbours.fold import run_fold_task
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.chunk_ids import NewShard
from retrodb.view.tombstones import tombstone_order
from retrodb.view.view import SELF, View, tombstones_name

STAGE_VERSION = 1
MIN_DELETED = 0.1  # so that at most ten rows are rewritten for each row that is dropped
_ATTEMPTS = 5


def run_compact(
    context: Context,
    *,
    min_deleted: float = MIN_DELETED,
    rows_to_drop: RowsToDrop | None = None,
    dry_run: bool = False,
) -> CompactResult:
    """Drop deleted rows.

    Args:
        min_deleted: rewrite a file once this fraction of its rows is deleted.
        rows_to_drop: rewrite only what holds one of these rows, however few they are.

    Raises:
        UsageError: the fraction is not between 0 and 1.
        ConflictError: other commits keep changing what is read.
    """
    plan = plan_compact(context.view(), min_deleted, rows_to_drop)
    return plan.result(context) if dry_run else execute_compact(context, plan)


def execute_compact(context: Context, plan: CompactPlan) -> CompactResult:
    """Execute a plan, one commit after the other; every commit after the first is planned on the newest snapshot.

    Raises:
        ConflictError: other commits keep changing what is read.
    """
    ranges = _until_committed(context, plan, _rewrite_ranges)
    num_parts = sum(
        _until_committed(context, replace(plan, view=context.view()), partial(_rewrite_parts, space=space))
        for space in context.view().snapshot.names(IndexEntry)
    )
    tables = [
        table
        for table in context.view().snapshot.names(TableEntry)
        if _until_committed(context, replace(plan, view=context.view()), partial(_fold_table, table=table))
    ]
    view = context.view()
    return compact_result(view, ranges, num_parts, tables, freed_bytes=_live_bytes(plan.view) - _live_bytes(view))


T = TypeVar("T")


def _until_committed(context: Context, plan: CompactPlan, execute: Callable[[Context, CompactPlan], T]) -> T:
    """Execute a part of a plan; when another commit changed what it read, plan again."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return execute(context, plan)
        except ConflictError:
            plan = replace(plan, view=context.view())
    return execute(context, plan)


def _live_bytes(view: View) -> int:
    return sum(size for _, size in view.manifest.size_by_kind().values())


@dataclass(frozen=True)
class _RangesRun:
    """Identity of a run that rewrites ranges."""

    version: int
    tasks: tuple[str, ...]
    tombstones: tuple[str, ...]  # paths of the files that it replaces


def _rewrite_ranges(context: Context, plan: CompactPlan) -> list[CompactedRange]:
    """Rewrite shards and query sets."""
    if not plan.rewrites:
        return []
    view, tasks = plan.view, [rewrite_task(plan.view, rewrite) for rewrite in plan.rewrites]
    query_sets = sorted({rewrite.query_set for rewrite in plan.rewrites}, key=tombstones_name)
    old_tombstones = [record for query_set in query_sets for record in view.tombstone_files(query_set)]
    paths = sorted(record.path for record in old_tombstones)
    run_plan = _RangesRun(STAGE_VERSION, tuple(task.id for task in tasks), tuple(paths))
    transaction = Transaction.open(context, view, "compact", conflict_keys.compact(), plan=run_plan)
    records = transaction.run_tasks(tasks, run_rewrite)
    transaction.conflict_keys = conflict_keys.compact(*_entries_read(records))
    for query_set in query_sets:
        pairs = zip(plan.rewrites, records, strict=True)
        remaining = [t for rewrite, record in pairs if rewrite.query_set == query_set for t in record.result.tombstones]
        untouched = untouched_tombstones(view, query_set, plan.rewrites)
        ordered = merge(sorted(remaining, key=tombstone_order), untouched, key=tombstone_order)
        transaction.write_tombstones_again(ordered, query_set=query_set)
    transaction.drop_files(sorted(old_tombstones, key=lambda record: record.path))
    for rewrite, record in zip(plan.rewrites, records, strict=True):
        _replace_range(transaction, rewrite, record)
    transaction.counts = {
        "chunks": sum(rewrite.num_dropped_chunks for rewrite in plan.rewrites),
        "documents": sum(record.result.num_dropped_documents for record in records),
    }
    transaction.commit()
    pairs = zip(plan.rewrites, records, strict=True)
    return [compacted_range(rewrite, record.result.num_dropped_documents) for rewrite, record in pairs]


def _replace_range(transaction: Transaction, rewrite: Rewrite, record: TaskRecord[RewrittenRange]) -> None:
    transaction.drop_files(rewrite.replaced)
    if rewrite.query_set != SELF:
        transaction.add_files([record])
        return
    starts = transaction.view.shards.first_chunk
    for first_chunk in starts[(starts >= rewrite.span.first_chunk) & (starts < rewrite.span.end)].tolist():
        transaction.drop_shard(first_chunk)
    num_documents, span = record.result.num_documents, rewrite.span
    shard = ShardRecord(record.task, rewrite.source, span.num_chunks, num_documents, span.first_chunk)
    transaction.shards.append(NewShard(shard, record.files))


_ENTRY_OF_FILES: dict[str, type[Entry]] = {"vectors": SpaceEntry, "attributes": AttributeEntry, "queries": QueriesEntry}


def _entries_read(records: Sequence[TaskRecord[RewrittenRange]]) -> list[str]:
    """The keys of the entries that the new files depend on: when one of them changed, the files may be useless."""
    files = [file for record in records for file in record.files if file.kind in _ENTRY_OF_FILES]
    return sorted({entry_key(_ENTRY_OF_FILES[file.kind], file.name) for file in files})


@dataclass(frozen=True)
class _PartsRun:
    """Identity of a run that rewrites index parts."""

    version: int
    space: str
    tasks: tuple[str, ...]


def _rewrite_parts(context: Context, plan: CompactPlan, *, space: str) -> int:
    """Drop deleted rows from the index parts of a space, and merge those that the index stage would; the number of parts."""
    view, groups = plan.view, plan.part_groups(space)
    num_parts = sum(map(len, groups))
    if not groups:
        return 0
    tasks = [merge_task(space, parts, view) for parts in groups]
    keys = conflict_keys.merge(space, map(span_of, groups))
    keys = replace(keys, reads=keys.reads | {conflict_keys.REVIVALS})
    run_plan = _PartsRun(STAGE_VERSION, space, tuple(task.id for task in tasks))
    transaction = Transaction.open(context, view, "compact", keys, plan=run_plan, arguments={"space": space})
    transaction.add_files(transaction.run_tasks(tasks, run_merge_task, extra_bytes=merge_bytes(view, space)))
    transaction.drop_files(record for parts in groups for record in files_of(parts))
    transaction.counts = {"parts": num_parts}
    transaction.commit()
    return num_parts


@dataclass(frozen=True)
class _FoldRun:
    """Identity of a run that folds a table."""

    version: int
    table: str
    tasks: tuple[str, ...]


def _fold_table(context: Context, plan: CompactPlan, *, table: str) -> bool:
    """Fold a neighbour table; whether there was something to fold."""
    fold = plan.fold(context, table)
    if fold is None:
        return False
    run_plan = _FoldRun(STAGE_VERSION, table, tuple(task.id for task in fold.tasks))
    transaction = Transaction.open(
        context, plan.view, "compact", fold.conflict_keys, plan=run_plan, arguments={"table": table}
    )
    fold.add_to(transaction, transaction.run_tasks(fold.tasks, run_fold_task))
    transaction.commit()
    return True
