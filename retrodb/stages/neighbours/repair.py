"""Stage repair: bring neighbour tables up to date by patches, for a share of what computing them costs.

What a row stores is complete up to its *bound* (D, I): of the chunks that it was compared with, and may meet, its list holds
every one whose (distance, id) is not above the bound. D is the last distance of the list, I the last id that stands
beside it (-1 where none does); a list that ends in infinity knows everything. From this follows what a repair does:

- chunks that are gone leave the list, and the bound stays;
- chunks that are new since (added, undeleted, screened, indexed) enter where they are below the bound: beyond it there
  may be old ones that are nearer. So only new chunks are compared with old rows;
- a row left with fewer than k neighbours below a finite bound is computed anew, and so is a row that is new;
- where the vectors, the query rows, the clusters or the inverted lists are others, the whole table is computed anew.

With an exact index the first k are then those of a rebuild, ids and distances. With inverted lists a new chunk meets the
rows of the lists that it probes itself, which finds as many as the rows' own probes would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exact import Block, exact_topk
from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.rerank import LivePart
from retrodb.ann.reverse_join import BLOCK_QUERIES, NewRows, reverse_join
from retrodb.config import DEFAULT_MEMORY_BYTES, NeighboursParams
from retrodb.engine.run import add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array
from retrodb.format.entries import SpaceEntry, TableEntry
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.neighbours.block_join import JoinHardware, lists_of_rows
from retrodb.stages.neighbours.command import (
    chosen_device,
    database_side,
    exclusion_of,
    nearest,
    refuse_missing,
    run_neighbours,
    state_of,
)
from retrodb.stages.neighbours.table_rows import (
    allowed_ids,
    planned_view,
    publish_joined,
    publish_rows,
    query_ids,
    spans_of,
    table_dependencies,
)
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.storage import Storage
from retrodb.view.compared_sets import ComparedSets, ids_of, within
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from retrodb.ann.topk import TopK

STAGE_VERSION = 1
_MEETS_A_ROW = 4  # new chunks whose lists are found in the time that a row takes; an exact search needs no lists


@dataclass(frozen=True)
class TableRepairResult:
    """What a repair of one table did."""

    snapshot: int
    table: str
    rows: int  # of the table
    new_rows: int  # that it did not have, or that nothing can be kept of
    new_chunks: int  # that its rows had not been compared with
    lost_chunks: int  # that its rows had been compared with, and that are gone
    computed: int  # rows computed anew: new ones, and those that deletions starved
    improved: int  # rows that new chunks entered
    short: int  # rows with fewer than k neighbours: the database has no more for them
    dry_run: bool = False


def run_repair_neighbours(
    context: Context,
    *,
    table: str | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    device: str = "auto",
    dry_run: bool = False,
) -> list[TableRepairResult]:
    """Repair one table, or all: one commit for each that has something to repair. A dry run compares nothing.

    Args:
        memory_bytes, device: what the join of recomputed rows may use, as in `run_neighbours`.

    Raises:
        MissingStep: when there is no such table, or chunks are not embedded or indexed.
        UsageError: for too little memory, or a device that is not there.
    """
    hardware = JoinHardware(context.num_workers, memory_bytes, device)
    names = [table] if table else context.view().snapshot.names(TableEntry)
    return [_repair(context, name, hardware, dry_run) for name in names]


def _repair(context: Context, table: str, hardware: JoinHardware, dry_run: bool) -> TableRepairResult:
    sides = RepairState.of(context.view(), table)
    view, entry = sides.view, sides.table.entry
    refuse_missing(view, entry.queries, entry.space)
    basis = table_dependencies(view, entry.queries, entry.space, sides.params)
    if entry.dependencies is None or not basis.is_reusable(entry.dependencies):
        return _computed_anew(context, sides, hardware, dry_run)
    new, lost = sides.now.database - sides.then.database, sides.then.database - sides.now.database
    new_rows = sides.now.queries - sides.then.queries
    num_known = len(sides.now.queries) - len(new_rows)
    if entry.nprobe and num_known * _MEETS_A_ROW < len(new):
        return _computed_anew(context, sides, hardware, dry_run)
    num_lost = len(lost) + entry.lost_chunks
    lost_rows = sides.then.queries - sides.now.queries
    counts = {"rows": len(sides.now.queries), "computed": 0, "improved": 0, "short": entry.num_short}
    result = TableRepairResult(
        snapshot=view.snapshot.number,
        table=table,
        new_rows=len(new_rows),
        new_chunks=len(new),
        lost_chunks=num_lost,
        **counts,
        dry_run=dry_run,
    )
    if dry_run or not (new or num_lost or new_rows or lost_rows):
        return result
    plan = {"version": STAGE_VERSION, "table": table, "previous": entry, "state": state_of(view)}
    run = open_run(context.storage, "repair", plan, context.clock)
    tasks = [_task(view, table, *span) for span in spans_of(view, entry.queries)]
    # Only now, because it loads PyTorch, and most repairs have nothing to do.
    hardware = replace(hardware, device=chosen_device(hardware.device))
    function = partial(run_repair_task, hardware=hardware)
    # One process, as for a whole table: what the tasks have in common is read, and the new chunks assigned to lists, once.
    records = context.engine.with_processes(1).run(run, tasks, function, context.progress)
    counts |= {"rows": 0, "short": 0} | add_counts(records)
    renewed = replace(
        entry,
        num_rows=counts["rows"],
        num_short=counts["short"],
        dependencies=basis,
        state=state_of(view),
        snapshot=view.snapshot.number,
        lost_chunks=0,
    )
    change = Change(
        transaction=run.id,
        command="repair",
        arguments={"table": table},
        clock=run.clock,
        conflict_keys=conflict_keys.neighbours(table, entry.space),
        files=[
            *(file for record in records for file in record.files),
            publish_joined(context.storage, table, run.id, sides.now),
        ],
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in view.manifest.files("joined", table)],
        entries={f"table/{table}": renewed},
        counts=counts,
    )
    snapshot = commit(context.storage, view.snapshot, change)
    return replace(
        result,
        snapshot=snapshot.number,
        rows=counts["rows"],
        computed=counts["computed"],
        improved=counts["improved"],
        short=counts["short"],
    )


def _computed_anew(context: Context, sides: RepairState, hardware: JoinHardware, dry_run: bool) -> TableRepairResult:
    """A table of which nothing can be kept (other vectors, query rows, clusters, or inverted lists), or too little."""
    table, entry = sides.table, sides.table.entry
    made = run_neighbours(
        context,
        sides.params,
        queries=table.query_set,
        space=entry.space,
        table=table.name,
        memory_bytes=hardware.memory_bytes,
        device=hardware.device,
        dry_run=dry_run,
    )
    return TableRepairResult(
        snapshot=made.snapshot,
        table=table.name,
        rows=made.rows,
        new_rows=made.rows,
        new_chunks=len(sides.now.database),
        lost_chunks=0,
        computed=0 if dry_run else made.rows,
        improved=0,
        short=made.short,
        dry_run=dry_run,
    )


@dataclass(frozen=True)
class RepairState:
    """A table, what its rows were compared with, and what there is now."""

    view: View
    table: NeighbourTable
    params: NeighboursParams
    parts: list[LivePart]
    then: ComparedSets
    now: ComparedSets

    @staticmethod
    def of(view: View, name: str) -> RepairState:
        table = NeighbourTable(view, name)
        queries, space = table.query_set, table.entry.space
        params = table.entry.params
        parts = database_side(view, space, params)
        rows = (query_ids(view, queries, space, *span) for span in spans_of(view, queries))
        return RepairState(
            view, table, params, parts, ComparedSets.read(view, name), ComparedSets.of(allowed_ids(parts), rows)
        )

    @cached_property
    def new_chunks(self) -> Block:
        """The chunks that the rows were not compared with."""
        new, found = ids_of(self.now.database - self.then.database), []
        for part in self.parts:
            is_new = np.isin(part.ids_N, new, assume_unique=True)
            places = np.flatnonzero(is_new if part.allowed_N is None else is_new & part.allowed_N)
            keys = {kind: key[places] for kind, key in part.keys.items()}
            found.append(Block(part.ids_N[places], part.fetch(places), None, keys))
        ids = np.concatenate([np.empty(0, np.int64), *(block.ids_N for block in found)])
        vectors = np.concatenate([block.vectors_ND for block in found]) if found else np.empty((0, 0), np.float32)
        kinds = self.params.exclude
        return Block(
            ids, vectors, None, {k: np.concatenate([block.keys[k] for block in found]) for k in kinds if found}
        )

    @cached_property
    def codebook(self) -> Codebook:
        """Of the space, opened once."""
        return open_codebook(self.view, self.table.entry.space)

    @cached_property
    def new_by_list(self) -> NewRows:
        """The same by the lists that they probe."""
        entry, new = self.table.entry, self.new_chunks
        probes = lists_of_rows(self.view, entry.space, SELF, new.ids_N, self.parts, self.codebook, entry.nprobe, 1)
        return NewRows.of(new, probes, self.codebook.num_lists)


@lru_cache(maxsize=1)
def _planned_sides(storage: Storage, number: int, transaction: str, table: str) -> RepairState:
    return RepairState.of(planned_view(storage, number, transaction), table)


def _task(view: View, table: str, first: int, count: int) -> Task[Any, Any]:
    snapshot = view.snapshot
    payload = {"snapshot": snapshot.number, "transaction": snapshot.transaction, "table": table}
    return make_task("repair", STAGE_VERSION, {**payload, "first": first, "count": count}, [], count)


_ONE_THREAD = JoinHardware()


def run_repair_task(
    storage: Storage, task: Task[Any, Any], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[Any]:
    """Patch one range of query rows; a range in which nothing changes leaves no file."""
    del clock
    payload = task.payload
    sides = _planned_sides(storage, payload["snapshot"], payload["transaction"], payload["table"])
    span = payload["first"], payload["count"]
    rows, known = within(sides.now.queries, *span), within(sides.then.queries, *span)
    is_known = np.isin(rows, known, assume_unique=True)
    ids, distances = sides.table.stored(rows)
    changed, improved = np.zeros((2, len(rows)), dtype=bool)
    old = np.flatnonzero(is_known)
    if len(old):
        merged = _merged(sides, rows[old], ids[old], distances[old], hardware.threads)
        ids[old], distances[old], improved[old], changed[old] = merged
    starved = is_known & (_num_found(ids) < sides.table.k) & np.isfinite(distances[:, -1])
    anew = ~is_known | starved
    if anew.any():
        entry = sides.table.entry
        found = nearest(
            sides.view, entry.queries, entry.space, entry.nprobe, sides.params, sides.parts, rows[anew], hardware
        )
        ids[anew], distances[anew] = found
    write = anew | improved | changed
    files = []
    if write.any():
        patch = rows[write], ids[write], distances[write]
        files.append(publish_rows(storage, payload["table"], task.id, span, *patch))
    counts = {
        "rows": len(rows),
        "computed": int(anew.sum()),
        "improved": int((improved & ~anew).sum()),
        "short": int((_num_found(ids) < sides.table.k).sum()),
    }
    return TaskRecord(task.id, tuple(files), {}, counts)


def _num_found(ids: Int64Array) -> Int64Array:
    counts: Int64Array = np.count_nonzero(ids >= 0, axis=1)
    return counts


def _merged(
    sides: RepairState, rows: Int64Array, ids: Int64Array, distances: Float32Array, threads: int
) -> tuple[Int64Array, Float32Array, BoolArray, BoolArray]:
    """Lists (Q, w) of known rows without what is gone and with what is new up to their bounds.

    Returns:
        ids, distances, the rows that something new entered, and those that named a live chunk that they may not meet now.
    """
    bound, last = bounds(ids, distances)
    is_kept = _is_allowed(sides.parts, ids)
    was_named = sides.view.chunks.is_live(ids.ravel()).reshape(ids.shape)
    kept = np.where(is_kept, ids, -1), np.where(is_kept, distances, np.float32(np.inf))
    entered = _entering(sides, rows, bound, last, sides.table.width, threads)
    is_again = (entered[0][:, :, None] == kept[0][:, None, :]).any(axis=2)  # undeleted, and still in the list
    entered[0][is_again] = -1
    ids, distances = merge_topk([kept, entered], sides.table.width)
    has_entered = np.any(entered[0] >= 0, axis=1)
    is_named_still = np.any(was_named & ~is_kept, axis=1)
    return ids, np.where(ids >= 0, distances, bound[:, None]), has_entered, is_named_still


def bounds(ids: Int64Array, distances: Float32Array) -> tuple[Float32Array, Int64Array]:
    """(D, I) of each list (Q, w): up to where it is complete."""
    bound = distances[:, -1].copy()
    return bound, np.where(distances == bound[:, None], ids, -1).max(axis=1)


def _is_allowed(parts: list[LivePart], ids: Int64Array) -> BoolArray:
    """Which of the ids (Q, w) may be found today."""
    allowed = np.zeros(ids.shape, dtype=bool)
    for own in allowed_ids(parts):
        if len(own):
            place = np.minimum(np.searchsorted(own, ids), len(own) - 1)
            allowed |= own[place] == ids
    return allowed


def _entering(
    sides: RepairState, rows: Int64Array, bound: Float32Array, last: Int64Array, width: int, threads: int
) -> TopK:
    """The nearest new chunks of each row that are below its bound, (Q, w) each; -1 and inf fill up."""
    ids, distances = np.repeat(last[:, None], width, axis=1), np.repeat(bound[:, None], width, axis=1)
    if len(sides.new_chunks.ids_N):
        view, queries, entry = sides.view, sides.table.query_set, sides.table.entry
        metric = view.snapshot.existing(SpaceEntry, entry.space).metric
        exclusion = exclusion_of(view, queries, sides.params, rows)
        homes = lists_of_rows(
            view, entry.space, queries, rows, sides.parts, sides.codebook, min(entry.nprobe, 1), threads
        )
        order = np.argsort(homes[:, 0], kind="stable") if homes.size else np.arange(len(rows))
        for start in range(0, len(rows), BLOCK_QUERIES):
            block = order[start : start + BLOCK_QUERIES]
            vectors, own = view.vectors(entry.space, rows[block], queries), exclusion.rows(block)
            best = ids[block], distances[block]
            if homes.size:
                reverse_join(vectors, homes[block, 0], sides.new_by_list, metric, own, best, threads)
            else:
                exact_topk(vectors, [sides.new_chunks], width, metric, own, threads, best)
            ids[block], distances[block] = best
    is_bound = (ids == last[:, None]) & (distances == bound[:, None])
    ids[is_bound], distances[is_bound] = -1, np.inf
    return ids, distances
