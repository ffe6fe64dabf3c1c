"""Compaction: deleted rows are dropped, and small neighbouring ranges are joined. Ids stay, so no answer changes.

Three commits, each with what it alone rests on: the shards with their vectors, scores and query sets; the index parts of every
space; the neighbour tables. When one of them meets a commit that came in between and changed its inputs, it plans again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from retrodb.engine.run import Run, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import ConflictError, UsageError
from retrodb.format.entries import IndexEntry, QueriesEntry, TableEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import OP_DROP_FILE, OP_DROP_SHARD, DropRecord, FileRecord, ShardRecord
from retrodb.maintain.compact.plan import Rewrite, RowsToDrop, plan_rewrites, tombstones_left
from retrodb.maintain.compact.rewrite import repack_payload, run_repack
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import PartFiles, parts_of
from retrodb.stages.index.merge import files_of, merge_task, plan_merge, run_merge_task, span_of
from retrodb.stages.neighbours.fold import plan_fold, run_fold_task
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, NewShard, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.view.tombstones import tombstones_to_table
from retrodb.view.view import View

STAGE_VERSION = 1
MIN_DELETED = 0.1  # share of a file's rows from which on it is written anew: each row is at most once for ten that went
_ATTEMPTS = 5


@dataclass(frozen=True)
class RangeCompaction:
    """One range of ids that was written anew."""

    query_set: str  # "" for the database's own chunks
    source: str
    first_chunk: int
    num_chunks: int
    shards: int  # that became one
    dropped_chunks: int
    dropped_documents: int


@dataclass(frozen=True)
class CompactResult:
    """What a compaction did."""

    snapshot: int
    ranges: tuple[RangeCompaction, ...]
    dropped_chunks: int
    dropped_documents: int
    parts: int  # index parts that became fewer or smaller
    tables: tuple[str, ...]  # neighbour tables whose patches were folded and dead neighbours dropped
    freed_bytes: (
        int | None
    )  # what the snapshot names less than before; collection frees it on the disk; None in a dry run
    dry_run: bool = False


def run_compact(
    context: Context, *, min_deleted: float = MIN_DELETED, must_go: RowsToDrop | None = None, dry_run: bool = False
) -> CompactResult:
    """Drop deleted rows.

    Args:
        min_deleted: share of deleted rows from which on a file is written anew.
        must_go: only what holds one of these rows, however few they are.

    Raises:
        UsageError: for a share that is none.
        ConflictError: when other commits keep changing what is read.
    """
    if not 0 <= min_deleted <= 1:
        raise UsageError(f"a share of {min_deleted}", remedy="Give one between 0 and 1, such as 10%.")
    before = _live_bytes(context.view())
    rewrites = _again(partial(_compact_ranges, context, min_deleted, must_go, dry_run))
    spaces = context.view().snapshot.names(IndexEntry)
    parts = sum(_again(partial(_compact_parts, context, space, min_deleted, must_go, dry_run)) for space in spaces)
    names = context.view().snapshot.names(TableEntry)
    tables = tuple(name for name in names if _again(partial(_fold_table, context, name, dry_run)))
    ranges = tuple(
        RangeCompaction(
            r.query_set, r.source, r.first_chunk, r.num_chunks, r.num_shards, r.dropped_chunks, r.dropped_documents
        )
        for r in rewrites
    )
    view = context.view()
    return CompactResult(
        snapshot=view.snapshot.number,
        ranges=ranges,
        dropped_chunks=sum(each.dropped_chunks for each in ranges),
        dropped_documents=sum(each.dropped_documents for each in ranges),
        parts=parts,
        tables=tables,
        freed_bytes=None if dry_run else before - _live_bytes(view),
        dry_run=dry_run,
    )


T = TypeVar("T")


def _again(attempt: Callable[[], T]) -> T:
    """Plan and commit, and again when what was read changed meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except ConflictError:
            continue
    return attempt()


def _live_bytes(view: View) -> int:
    return sum(size for _, size in view.manifest.size_by_kind().values())


def _compact_ranges(context: Context, min_deleted: float, must_go: RowsToDrop | None, dry_run: bool) -> list[Rewrite]:
    view = context.view()
    names = ["", *view.snapshot.names(QueriesEntry)]
    rewrites = [rewrite for name in names for rewrite in plan_rewrites(view, name, min_deleted, must_go)]
    if dry_run or not rewrites:
        return rewrites
    by_path = {record.path: record for record in view.manifest.all_files()}
    tasks = [_task(view, by_path, rewrite) for rewrite in rewrites]
    stones = {name: view.manifest.files("tombstones", name) for name in {rewrite.query_set for rewrite in rewrites}}
    old_stones = sorted(record.path for records in stones.values() for record in records)
    plan = {"version": STAGE_VERSION, "tasks": [task.id for task in tasks], "tombstones": old_stones}
    run = open_run(context.storage, "compact", plan, context.clock)
    records = context.engine.run(run, tasks, run_repack, context.progress)
    files = _tombstone_files(view, run, rewrites)
    commit(context.storage, view.snapshot, _change(view, run, rewrites, records, files, old_stones))
    return rewrites


def _task(view: View, by_path: dict[str, FileRecord], rewrite: Rewrite) -> Task[Any, Any]:
    inputs = [by_path[each.path] for output in rewrite.outputs for each in output.inputs]
    for record in inputs:
        view.files.open(record)
    payload = repack_payload(rewrite.first_chunk, rewrite.num_chunks, rewrite.outputs)
    digests = [record.digest.sha256.hex() for record in inputs]
    return make_task("compact", STAGE_VERSION, payload, digests, int(rewrite.keep_N.sum()))


def _tombstone_files(view: View, run: Run, rewrites: Sequence[Rewrite]) -> list[FileRecord]:
    files = []
    for name in sorted({rewrite.query_set for rewrite in rewrites}):
        left = tombstones_left(view, name, [rewrite for rewrite in rewrites if rewrite.query_set == name])
        if left:
            path = path_of("tombstones", task=identity(run.id, "tombstones", name))
            write = partial(write_table, table=tombstones_to_table(left))
            files.append(publish(view.storage, "tombstones", path, write, name=name))
    return files


def _change(
    view: View,
    run: Run,
    rewrites: Sequence[Rewrite],
    records: Sequence[TaskRecord[Any]],
    tombstones: list[FileRecord],
    old_tombstones: Sequence[str],
) -> Change:
    shards, files = [], tombstones
    drops = [DropRecord(OP_DROP_FILE, path) for path in old_tombstones]
    for rewrite, record in zip(rewrites, records, strict=True):
        drops += [DropRecord(OP_DROP_FILE, path) for path in rewrite.drops]
        if rewrite.query_set:
            files += record.files
            continue
        inside = (view.shards.first_chunk >= rewrite.first_chunk) & (
            view.shards.first_chunk < rewrite.first_chunk + rewrite.num_chunks
        )
        drops += [DropRecord(OP_DROP_SHARD, first_chunk=first) for first in view.shards.first_chunk[inside].tolist()]
        shard = ShardRecord(
            record.task, rewrite.source, rewrite.num_chunks, int(rewrite.documents_N.sum()), rewrite.first_chunk
        )
        shards.append(NewShard(shard, record.files))
    return Change(
        transaction=run.id,
        command="compact",
        arguments={},
        clock=run.clock,
        conflict_keys=conflict_keys.compact(*_entries_read(records)),
        shards=shards,
        files=files,
        drops=drops,
        counts={
            "chunks": sum(rewrite.dropped_chunks for rewrite in rewrites),
            "documents": sum(rewrite.dropped_documents for rewrite in rewrites),
        },
    )


def _entries_read(records: Sequence[TaskRecord[Any]]) -> list[str]:
    """The entries that the new files hang on: when one of these changed, its files may be of no use any more."""
    kinds = {"vectors": "space", "attributes": "attribute", "queries": "queries"}
    return sorted({f"{kinds[f.kind]}/{f.name}" for record in records for f in record.files if f.kind in kinds})


def _compact_parts(context: Context, space: str, min_deleted: float, must_go: RowsToDrop | None, dry_run: bool) -> int:
    """Filter the index parts of a space, and merge those that the index stage would; gives how many were written anew."""
    view = context.view()
    merges = [] if must_go is not None else plan_merge(view, space, _memory_bytes(view, space)).groups
    merging = {part.folder for parts in merges for part in parts}
    alone = [(part,) for part in parts_of(view, space) if part.folder not in merging]
    chosen = [*merges, *(parts for parts in alone if _is_worn(view, parts[0], min_deleted, must_go))]
    count = sum(map(len, chosen))
    if dry_run or not chosen:
        return count
    for record in (record for parts in chosen for part in parts for record in part.records):
        view.files.open(record)
    tasks = [merge_task(space, parts, view.chunks.live_mask(*span_of(parts))) for parts in chosen]
    plan = {"version": STAGE_VERSION, "space": space, "tasks": [task.id for task in tasks]}
    run = open_run(context.storage, "compact", plan, context.clock)
    records = context.engine.run(run, tasks, run_merge_task, context.progress)
    own = conflict_keys.merge(space)
    change = Change(
        transaction=run.id,
        command="compact",
        arguments={"space": space},
        clock=run.clock,
        conflict_keys=replace(own, reads=own.reads | {conflict_keys.REVIVALS}),
        files=[file for record in records for file in record.files],
        drops=[DropRecord(OP_DROP_FILE, record.path) for parts in chosen for record in files_of(parts)],
        counts={"parts": count},
    )
    commit(context.storage, view.snapshot, change)
    return count


def _memory_bytes(view: View, space: str) -> int:
    return view.snapshot.existing(IndexEntry, space).params.memory_bytes


def _is_worn(view: View, part: PartFiles, min_deleted: float, must_go: RowsToDrop | None) -> bool:
    span, held = part.span, part.row_set.mask
    if must_go is not None:  # also what the shards have lost already
        return bool(((must_go.mask("", *span) | ~view.chunks.present_mask(*span)) & held).any())
    num_deleted = int((held & ~view.chunks.live_mask(*span)).sum())
    return 0 < num_deleted >= min_deleted * int(held.sum())


def _fold_table(context: Context, table: str, dry_run: bool) -> bool:
    """Fold a neighbour table; whether there was something to fold."""
    view = context.view()
    fold = plan_fold(view, table)
    if fold is None or dry_run:
        return fold is not None
    plan = {"version": STAGE_VERSION, "table": table, "tasks": [task.id for task in fold.tasks]}
    arguments = {"table": table}
    transaction = Transaction.open(context, view, "compact", fold.conflict_keys, plan=plan, arguments=arguments)
    fold.add_to(transaction, transaction.run_tasks(fold.tasks, run_fold_task))
    transaction.commit()
    return True
