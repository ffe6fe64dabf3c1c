"""Stage merge: neighbouring index parts of a space become one, list by list, under the codebook that they share.

A database that grows by small shards collects parts, and a search reads a list in every one of them. `retrodb index` merges
them by a size-tiered policy: a row is rewritten at most once per tier, and parts of the highest tier never change, so adding
a shard costs the same on a large database as on a small one. Ids never change: a merged part covers the range from its
first to its last row, with a bitmap of the rows that it has. Compaction uses the same task to drop deleted rows:

    task = merge_task(space, parts, keep)  # keep: rows of `span_of(parts)`
    [record] = transaction.run_tasks([task], run_merge_task)  # its files are the new part's; none when no row is kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retrodb.ann.merge_parts import merge_parts
from retrodb.ann.merge_policy import choose_merges
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import PartFiles, is_faiss_file, open_files, parts_of
from retrodb.stages.index.publish_part import publish_part_files
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.view import View

STAGE_VERSION = 2


@dataclass(frozen=True)
class MergePayload:
    """The parts of one merge."""

    space: str
    parts: tuple[PartFiles, ...]  # a row that several parts hold is taken from the first of them
    span: ChunkRange  # of all parts together
    keep: RowSet | None  # rows of the span to keep; None keeps all


KIND = TaskKind[MergePayload, NoResult]("merge", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class MergeResult:
    """What a merge of index parts did."""

    snapshot: int
    num_merged_parts: int  # parts that were replaced by fewer
    num_parts: int  # parts of the space after the merge
    dry_run: bool = False


@dataclass(frozen=True)
class MergePlan:
    """Which parts of a space are merged."""

    view: View
    space: str
    groups: tuple[tuple[PartFiles, ...], ...]  # each becomes one part; parts by ascending first chunk
    result: MergeResult  # that a dry run prints


def run_merge(context: Context, space: str, memory_bytes: int, *, dry_run: bool = False) -> MergeResult:
    """Merge the parts that the policy chooses, in one commit. Commits nothing when there is nothing to merge."""
    plan = plan_merge(context.view(), space, memory_bytes)
    return plan.result if dry_run else execute_merge(context, plan)


def plan_merge(view: View, space: str, memory_bytes: int) -> MergePlan:
    """Choose the groups of neighbouring parts to merge.

    Args:
        memory_bytes: memory limit of a merge, which loads the FAISS files of all its parts. Larger groups are not merged.
    """
    parts = parts_of(view, space)
    chosen = [[parts[position] for position in group] for group in choose_merges([part.num_rows for part in parts])]
    groups = [group for group in chosen if _faiss_bytes(group) <= memory_bytes]
    num_merged = sum(map(len, groups))
    result = MergeResult(view.snapshot.number, num_merged, len(parts) - num_merged + len(groups), dry_run=True)
    return MergePlan(view, space, tuple(map(tuple, groups)), result)


def execute_merge(context: Context, plan: MergePlan) -> MergeResult:
    """Merge each group of a plan and commit the new parts in place of the old ones.

    Raises:
        ConflictError: when the index of the space, or one of these parts, changed since the plan.
    """
    if not plan.groups:
        return replace(plan.result, dry_run=False)
    replaced = files_of([part for group in plan.groups for part in group])
    tasks = [merge_task(plan.space, group) for group in plan.groups]
    transaction = Transaction.open(
        context,
        plan.view,
        "merge",
        conflict_keys.merge(plan.space, map(span_of, plan.groups)),
        plan={"version": STAGE_VERSION, "space": plan.space, "tasks": [task.id for task in tasks]},
        arguments={"space": plan.space},
    )
    extra_bytes = 2 * max(map(_faiss_bytes, plan.groups))  # the parts, and the part that they become
    transaction.add_files(transaction.run_tasks(tasks, run_merge_task, extra_bytes=extra_bytes))
    transaction.drop_files(replaced)
    transaction.counts = {"merged": plan.result.num_merged_parts}
    return replace(plan.result, snapshot=transaction.commit().number, dry_run=False)


def _faiss_bytes(parts: Sequence[PartFiles]) -> int:
    """The size of the FAISS files of parts: a merge loads them all, its other arrays are mapped."""
    return sum(record.digest.size_bytes for record in files_of(parts) if is_faiss_file(record))


def span_of(parts: Sequence[PartFiles]) -> ChunkRange:
    """The range of ids that parts cover together."""
    first = min(part.span.first_chunk for part in parts)
    return ChunkRange(first, max(part.span.end for part in parts) - first)


def files_of(parts: Sequence[PartFiles]) -> list[FileRecord]:
    """The files of parts."""
    return [record for part in parts for record in part.records]


def merge_task(space: str, parts: Sequence[PartFiles], keep: RowSet | None = None) -> Task[MergePayload, NoResult]:
    """The task that merges parts of one codebook.

    Args:
        parts: a row that several parts hold is taken from the first of them.
        keep: rows to keep of the range that `span_of` gives; None keeps all.
    """
    payload = MergePayload(
        space=space,
        parts=tuple(parts),
        span=span_of(parts),
        keep=keep,
    )
    return KIND.task(payload, (), sum(part.num_rows for part in parts))


def run_merge_task(storage: Storage, task: Task[MergePayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Write the merged part. Publishes no file when no row is kept.

    Raises:
        MissingFileError, DamagedFileError: when a file of a part is not what its record says.
    """
    del clock
    payload, verified = task.payload, VerifiedFiles(storage)
    rows_of_parts, merged = _merged_rows(payload, verified)
    if not len(merged):
        return TaskRecord(task.id, counts={"vectors": 0})
    positions: list[Int64Array] = [np.where(rows >= 0, merged.rank(rows), -1) for rows in rows_of_parts]
    parts = [open_files(verified, part) for part in payload.parts]
    build = partial(merge_parts, parts, positions)
    files = publish_part_files(storage, payload.space, task.id, build, payload.span.first_chunk, merged)
    return TaskRecord(task.id, files, counts={"vectors": len(merged)})


def _merged_rows(payload: MergePayload, files: VerifiedFiles) -> tuple[list[Int64Array], RowSet]:
    """For each part the row of the whole range that each of its rows becomes, -1 for dropped rows; and all kept rows."""
    first, num_chunks = payload.span
    taken: Int64Array = np.empty(0, dtype=np.int64)  # rows of the range, ascending
    rows_of_parts = []
    for part in payload.parts:
        rows = part.span.first_chunk - first + part.row_set(files).present
        is_kept: BoolArray = ~np.isin(rows, taken, assume_unique=True)
        if payload.keep is not None:
            is_kept &= payload.keep.rank(rows) >= 0
        rows_of_parts.append(np.where(is_kept, rows, -1))
        taken = np.union1d(taken, rows[is_kept])
    return rows_of_parts, RowSet.from_present(taken, num_chunks)
