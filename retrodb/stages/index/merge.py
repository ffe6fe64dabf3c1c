"""Stage merge: neighbouring index parts of a space become one, list by list, under the codebook that they share.

A database that grows by small shards collects parts, and a search reads a list in every one of them. `retrodb index` merges
them by a size-tiered policy: a row is rewritten at most once per tier, and parts of the highest tier never change, so adding
a shard costs the same on a large database as on a small one. Ids never change: a merged part covers the range from its
first to its last row, with a bitmap of the rows that it has. Compaction uses the same task to drop deleted rows:

    task = merge_task(space, parts, view)  # without the rows that are not live in the view
    [record] = transaction.run_tasks([task], run_merge_task)  # its files are the new part's; none when no row is kept
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from pyroaring import BitMap

from retrodb.ann.merge_parts import BLOCK_ROWS, merge_parts
from retrodb.ann.merge_policy import choose_merges
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import SpaceEntry
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet, rows_in
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import PartFiles, open_files, parts_of
from retrodb.stages.index.publish_part import publish_part_files
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import SELF, View

STAGE_VERSION = 5


@dataclass(frozen=True)
class MergePayload:
    """The parts of one merge."""

    space: str
    parts: tuple[PartFiles, ...]  # a row that several parts hold is taken from the first of them
    span: ChunkRange  # of all parts together
    live_in: PlannedSnapshot | None  # only rows that are live in it are kept; None keeps all


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


def run_merge(context: Context, space: str, *, dry_run: bool = False) -> MergeResult:
    """Merge the parts that the policy chooses, in one commit. Commits nothing when there is nothing to merge."""
    plan = plan_merge(context.view(), space)
    return plan.result if dry_run else execute_merge(context, plan)


def plan_merge(view: View, space: str) -> MergePlan:
    """Choose the groups of neighbouring parts to merge."""
    parts = parts_of(view, space)
    groups = [[parts[position] for position in group] for group in choose_merges([part.num_rows for part in parts])]
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
    extra_bytes = merge_bytes(plan.view, plan.space)
    transaction.add_files(transaction.run_tasks(tasks, run_merge_task, extra_bytes=extra_bytes))
    transaction.drop_files(replaced)
    transaction.counts = {"merged": plan.result.num_merged_parts}
    return replace(plan.result, snapshot=transaction.commit().number, dry_run=False)


def merge_bytes(view: View, space: str) -> int:
    """What a merge task holds that depends on the dimension: blocks of codes, and of vectors where these are the search codes."""
    return 4 * (4 + 1) * BLOCK_ROWS * view.snapshot.existing(SpaceEntry, space).dimension


def span_of(parts: Sequence[PartFiles]) -> ChunkRange:
    """The range of ids that parts cover together."""
    first = min(part.span.first_chunk for part in parts)
    return ChunkRange(first, max(part.span.end for part in parts) - first)


def files_of(parts: Sequence[PartFiles]) -> list[FileRecord]:
    """The files of parts."""
    return [record for part in parts for record in part.records]


def merge_task(space: str, parts: Sequence[PartFiles], live_in: View | None = None) -> Task[MergePayload, NoResult]:
    """The task that merges parts of one codebook.

    Args:
        parts: a row that several parts hold is taken from the first of them.
        live_in: only rows that are live in it are kept; None keeps all. The task's id depends on what of the view says that,
            and not on the snapshot's number.
    """
    span, num_rows = span_of(parts), sum(part.num_rows for part in parts)
    payload = MergePayload(space, tuple(parts), span, live_in=None)
    task = KIND.task(payload, (), num_rows)
    if live_in is None:
        return task
    documents = [record.path for record in live_in.chunks.overlapping("documents", *span)]
    task_id = identity(task.id, documents, live_in.deletions(SELF, span))
    return replace(task, id=task_id, payload=replace(payload, live_in=PlannedSnapshot.of(live_in)))


def run_merge_task(storage: Storage, task: Task[MergePayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Write the merged part. Publishes no file when no row is kept.

    Raises:
        MissingFileError, DamagedFileError: when a file of a part is not what its record says.
    """
    del clock
    payload, verified = task.payload, VerifiedFiles(storage)
    chunks = None if payload.live_in is None else planned_view(storage, payload.live_in).chunks
    merged = merged_rows(payload, verified, chunks)
    if not len(merged):
        return TaskRecord(task.id, counts={"vectors": 0})
    parts = [open_files(verified, part) for part in payload.parts]

    def build(folder: Path) -> None:
        merge_parts(parts, _stored_rows(payload, verified, chunks, folder), folder)

    files = publish_part_files(storage, payload.space, task.id, build, payload.span.first_chunk, merged)
    return TaskRecord(task.id, files, counts={"vectors": len(merged)})


def merged_rows(payload: MergePayload, files: VerifiedFiles, chunks: ChunkSet | None = None) -> RowSet:
    """The rows of the span that the merged part has."""
    windows = (np.concatenate([kept for _, kept in window.rows]) for window in _windows(payload, files, chunks))
    return RowSet.from_ascending((np.sort(rows) for rows in windows), payload.span.num_chunks)


def _stored_rows(
    payload: MergePayload, files: VerifiedFiles, chunks: ChunkSet | None, folder: Path
) -> list[Int64Array]:
    """For each part the row of the merged part that each of its rows becomes, -1 for dropped rows: arrays that are mapped."""
    stored = [
        open_memmap(folder / f"merged_rows_{number}.npy", mode="w+", dtype=np.int64, shape=(part.num_rows,))
        for number, part in enumerate(payload.parts)
    ]
    written, num_merged = [0] * len(stored), 0
    for window in _windows(payload, files, chunks):
        merged = np.sort(np.concatenate([kept for _, kept in window.rows]))
        for number, (present, kept) in zip(window.parts, window.rows, strict=True):
            target = slice(written[number], written[number] + len(present))
            rows = num_merged + np.searchsorted(merged, present)
            stored[number][target] = np.where(np.isin(present, kept, assume_unique=True), rows, -1)
            written[number] = target.stop
        num_merged += len(merged)
    return [array.view(np.ndarray) for array in stored]


@dataclass(frozen=True)
class _Window:
    """A range of the span, of which some parts have rows."""

    parts: list[int]  # their numbers
    rows: list[
        tuple[Int64Array, Int64Array]
    ]  # of each its rows there, as rows of the span, and those that are taken from it


def _windows(payload: MergePayload, files: VerifiedFiles, chunks: ChunkSet | None) -> Iterator[_Window]:
    """The rows of the parts, in ranges of the span that follow one another. Ranges without rows are left out."""
    row_sets = [part.row_set(files) for part in payload.parts]
    shifts = [part.span.first_chunk - payload.span.first_chunk for part in payload.parts]
    start = 0
    while True:
        first = {
            number: shift + row
            for number, (shift, rows) in enumerate(zip(shifts, row_sets, strict=True))
            if (row := rows.first_from(start - shift)) is not None
        }
        if not first:
            return
        start = min(first.values())
        numbers = [number for number, row in first.items() if row < start + _WINDOW]
        live = None if chunks is None else chunks.live_rows(payload.span.first_chunk + start, _WINDOW)
        taken, rows = BitMap(), []
        for number in numbers:
            present = row_sets[number].rows_in(shifts[number] - start, _WINDOW)
            kept = present - taken if live is None else (present - taken) & live
            taken |= kept
            rows.append((start + rows_in(present), start + rows_in(kept)))
        yield _Window(numbers, rows)
        start += _WINDOW


_WINDOW = 1 << 20  # ids whose rows are looked at together
