"""Stage merge: index parts of a space become one, list by list, under the codebook that they share.

A database that grows by small shards would gather parts, and a search reads a list in every one of them. `retrodb index`
merges them by a size-tiered policy: a row is written again at most once a tier, and parts of the highest tier stay as they
are, so adding a shard costs the same on a large database as on a small one. Ids never move: a merged part covers the range
from its first to its last row, with a bitmap of the rows that it has. Compaction drops rows on the way:

    task = merge_task(space, parts, keep)      # parts of `live_parts.parts_of`; keep: (count,) bool over `span_of(parts)`
    record = run_merge_task(storage, task, clock)   # a task function: its files are the new part's, none when no row is left
    drops = drops_of(parts)                    # DropRecords of the files that it replaces
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from retrodb.ann.merge_parts import merge_parts
from retrodb.ann.merge_policy import choose_merges
from retrodb.ann.part import open_part
from retrodb.engine.run import open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.part_files import INDEX_FILE
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import PartFiles, parts_of
from retrodb.stages.index.part_task import publish_part_files
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.storage import Storage
from retrodb.view.view import View

STAGE_VERSION = 1


@dataclass(frozen=True)
class MergeResult:
    """What a round of merging did."""

    snapshot: int
    merged: int  # parts that became fewer
    parts: int  # of the space now


def run_merges(context: Context, space: str, memory_bytes: int, *, dry_run: bool = False) -> MergeResult:
    """Merge what the policy chooses, in one commit; nothing to merge is no commit."""
    view = context.view()
    chosen = plan_merges(view, space, memory_bytes)
    merged = sum(map(len, chosen))
    left = len(parts_of(view, space)) - merged + len(chosen)
    if dry_run or not chosen:
        return MergeResult(view.snapshot.number, merged, left)
    tasks = [merge_task(space, parts) for parts in chosen]
    for parts in chosen:
        for record in (record for part in parts for record in part.records):
            view.files.open(record)
    plan = {"version": STAGE_VERSION, "space": space, "tasks": [task.id for task in tasks]}
    run = open_run(context.storage, "merge", plan, context.clock)
    records = context.engine.run(run, tasks, run_merge_task, context.progress)
    change = Change(
        transaction=run.id,
        command="merge",
        arguments={"space": space},
        clock=run.clock,
        conflict_keys=conflict_keys.merge(space),
        files=[file for record in records for file in record.files],
        drops=[drop for parts in chosen for drop in drops_of(parts)],
        counts={"merged": merged},
    )
    return MergeResult(commit(context.storage, view.snapshot, change).number, merged, left)


def plan_merges(view: View, space: str, memory_bytes: int) -> list[list[PartFiles]]:
    """The runs of neighbouring parts to merge, each by ascending first chunk.

    Args:
        memory_bytes: a merge holds the search codes of its parts at once; runs that have more are left alone.
    """
    parts = parts_of(view, space)
    runs = [[parts[place] for place in places] for places in choose_merges([part.span.num_rows for part in parts])]
    return [run for run in runs if _codes_bytes(run) <= memory_bytes and span_of(run)[1] <= MAX_RANGE]


MAX_RANGE = 1 << 32
"""Ids that one file's range may span: its row bitmap has 32-bit rows."""


def _codes_bytes(parts: Sequence[PartFiles]) -> int:
    files = [record for part in parts for record in part.records if record.path.endswith(f"/{INDEX_FILE}")]
    return sum(record.digest.size_bytes for record in files)


def span_of(parts: Sequence[PartFiles]) -> tuple[int, int]:
    """First id and length of the range that parts cover together."""
    first = min(part.span.first_chunk for part in parts)
    return first, max(part.span.first_chunk + part.span.num_chunks for part in parts) - first


def merge_task(space: str, parts: Sequence[PartFiles], keep: BoolArray | None = None) -> Task[Any, Any]:
    """The task that merges parts of one codebook.

    Args:
        parts: whose files were verified; a row that several hold is taken from the first of them.
        keep: (count,) bool over the range that `span_of` gives: rows to keep; None keeps all.
    """
    first, count = span_of(parts)
    kept = None if keep is None else RowSet.from_mask(keep).bitmap
    payload = {
        "space": space,
        "parts": [[part.folder, *_rows_payload(part)] for part in parts],
        "first_chunk": first,
        "num_chunks": count,
        "keep": None if kept is None else kept.hex(),
    }
    inputs = [record.digest.sha256.hex() for part in parts for record in part.records]
    return make_task("merge", STAGE_VERSION, payload, inputs, sum(part.span.num_rows for part in parts))


def _rows_payload(part: PartFiles) -> tuple[int, int, str | None]:
    rows = part.span.rows
    return part.span.first_chunk, part.span.num_chunks, None if rows is None else rows.hex()


def drops_of(parts: Sequence[PartFiles]) -> list[DropRecord]:
    """What takes the parts out of the manifest."""
    return [DropRecord(OP_DROP_FILE, record.path) for part in parts for record in part.records]


def run_merge_task(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Write the merged part; no files when no row is kept."""
    del clock
    payload = task.payload
    first, count = payload["first_chunk"], payload["num_chunks"]
    kept = np.ones(count, dtype=bool) if payload["keep"] is None else _row_set(count, payload["keep"]).mask
    held = np.zeros(count, dtype=bool)
    rows_of = []  # of each part: which row of the range each of its rows is, -1 for those that go
    for _, start, length, bitmap in payload["parts"]:
        rows = start - first + _row_set(length, bitmap).present
        rows = np.where(kept[rows] & ~held[rows], rows, -1)
        held[rows[rows >= 0]] = True
        rows_of.append(rows)
    if not held.any():
        return TaskRecord(task.id, (), {}, {"vectors": 0})
    merged = RowSet.from_mask(held)
    places: list[Int64Array] = [np.where(rows >= 0, merged.rank(rows), -1) for rows in rows_of]
    parts = [open_part(storage.local(f"{folder}/{INDEX_FILE}").parent) for folder, *_ in payload["parts"]]
    build = partial(merge_parts, parts, places)
    files = publish_part_files(storage, payload["space"], task.id, build, first, merged)
    return TaskRecord(task.id, files, {}, {"vectors": len(merged)})


def _row_set(num_rows: int, bitmap: str | None) -> RowSet:
    return RowSet(num_rows, None if bitmap is None else bytes.fromhex(bitmap))
