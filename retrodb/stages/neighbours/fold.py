"""Folding a neighbour table: its base and patches become one new base that names no deleted chunk.

What takes part in another command's run and commit, such as compaction's, gives tasks and says what their files replace::

    fold = plan_fold(view, "self")
    records = engine.run(run, fold.tasks, run_fold_task, progress)
    Change(files=[f for r in records for f in r.files], drops=fold.drops, entries=fold.entries, conflict_keys=... | fold.reads)

Answers stay what they are, and so does what a later repair has to do: a deleted neighbour leaves its bound behind
(see `repair_neighbours`), and what comes back is compared again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import Entry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.stages.neighbours.repair import bounds
from retrodb.stages.neighbours.table_rows import planned_view, publish_joined, publish_rows, spans_of
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.compared_sets import ComparedSets, ids_of
from retrodb.view.edits import Edit, Edits
from retrodb.view.neighbour_table import NeighbourTable, live_first
from retrodb.view.view import View

STAGE_VERSION = 1


@dataclass(frozen=True)
class Fold:
    """The folding of one table, as a part of a run and of its commit."""

    tasks: tuple[Task[Any, Any], ...]  # for `run_fold_task`
    drops: tuple[DropRecord, ...]  # the files that theirs replace
    entries: Mapping[str, Entry]  # to be set: a repair that was planned on the old files must not be laid over
    reads: frozenset[str]  # marks: what must not change between plan and commit


def plan_fold(view: View, table: str) -> Fold | None:
    """What folding a table takes; None when it has no patches and nothing in it is deleted. Reads the whole table."""
    own = NeighbourTable(view, table)
    spans = spans_of(view, own.query_set)
    if len(own.files) <= len(spans) and not _names_deleted(view, own):
        return None
    snapshot = view.snapshot
    payload = {"snapshot": snapshot.number, "transaction": snapshot.transaction, "table": table}
    tasks = [make_task("fold", STAGE_VERSION, {**payload, "span": list(span)}, [], span[1]) for span in spans]
    known = ids_of(ComparedSets.read(view, table).database)
    lost = own.entry.lost_chunks + len(known) - int(view.chunks.is_live(known).sum())
    old = [record for kind in ("neighbours", "joined", "edits") for record in view.manifest.files(kind, table)]
    return Fold(
        tasks=(*tasks, make_task("fold", STAGE_VERSION, {**payload, "span": None}, [])),
        drops=tuple(DropRecord(OP_DROP_FILE, record.path) for record in old),
        entries={f"table/{table}": replace(own.entry, lost_chunks=lost)},
        reads=frozenset({f"table/{table}", f"edits/{table}"}),
    )


def _names_deleted(view: View, table: NeighbourTable) -> bool:
    rows, queries = table.all_rows(), view.query_set(table.query_set)
    if not queries.is_live(rows).all():
        return True
    edited = [edit.chunk for edit in table.edits.all]
    ids = np.concatenate([np.unique(table.stored(rows)[0]), np.array(edited, dtype=np.int64)])
    joined = ComparedSets.read(view, table.name)
    return not (
        view.chunks.is_live(ids[ids >= 0]).all()
        and view.chunks.is_live(ids_of(joined.database)).all()
        and queries.is_live(ids_of(joined.queries)).all()
    )


def run_fold_task(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Fold one range of rows; or, with no range, what the table keeps beside its rows."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload["snapshot"], payload["transaction"])
    table = NeighbourTable(view, payload["table"])
    if payload["span"] is None:
        return TaskRecord(task.id, tuple(_fold_sets(storage, table, task.id)))
    first, count = payload["span"]
    rows = table.rows()
    rows = rows[(rows >= first) & (rows < first + count)]
    if not len(rows):
        return TaskRecord(task.id)
    ids, distances = table.stored(rows)
    bound, _ = bounds(ids, distances)
    ids, distances = live_first(view, ids, distances, table.width)
    distances = np.where(ids >= 0, distances, bound[:, None])
    return TaskRecord(task.id, (publish_rows(storage, table.name, task.id, (first, count), rows, ids, distances),))


def _fold_sets(storage: Storage, table: NeighbourTable, task: str) -> list[FileRecord]:
    view, queries = table.view, table.view.query_set(table.query_set)
    joined = ComparedSets.read(view, table.name)
    live = ComparedSets.of([_live(view.chunks, ids_of(joined.database))], [_live(queries, ids_of(joined.queries))])
    files = [publish_joined(storage, table.name, task, live)] if view.manifest.files("joined", table.name) else []
    edits = [edit for edit in table.edits.all if _is_about_live(edit, view.chunks, queries)]
    if edits:
        write = partial(write_table, table=Edits(edits).to_table())
        files.append(publish(storage, "edits", path_of("edits", name=table.name, task=task), write, name=table.name))
    return files


def _live(chunks: ChunkSet, ids: Int64Array) -> Int64Array:
    return ids[chunks.is_live(ids)]


def _is_about_live(edit: Edit, chunks: ChunkSet, queries: ChunkSet) -> bool:
    return bool(chunks.is_live(np.array([edit.chunk]))[0] and queries.is_live(np.array([edit.row]))[0])
