"""The task of stage repair: a patch for one range of rows of a neighbour table.

What a row stores is complete up to its *bound* (D, I): the list has every chunk that the row was compared with, that is not
excluded, and whose (distance, id) is not above the bound. D is the last distance of the list. I is the last id with that
distance, -1 where there is none. A list that ends in infinity is complete. One that ends in `CAPPED` has every chunk of the lists
that the row read, as many as a row may: to search again would find the same, so it is not starved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retrodb.ann.exact import exact_topk
from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.metric import CAPPED
from retrodb.ann.reverse_join import BLOCK_QUERIES, reverse_join
from retrodb.ann.topk import TopK
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array
from retrodb.format.entries import Metric, SpaceEntry
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.neighbours.block_join import JoinHardware, chosen_device, lists_of_rows
from retrodb.stages.neighbours.few_rows import join_few_rows
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.repair_state import RepairState, planned_state
from retrodb.stages.neighbours.table_inputs import exclusion_of, nearest_chunks
from retrodb.stages.neighbours.table_rows import num_short, publish_rows, query_rows
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    from pyroaring import BitMap

STAGE_VERSION = 5
_ONE_THREAD = JoinHardware()
_MANY_ROWS = 1 << 14


@dataclass(frozen=True)
class RepairPayload:
    """A range of rows of a table."""

    snapshot: PlannedSnapshot
    table: str
    span: ChunkRange
    num_chunks: int  # that rows are compared with after the repair


KIND = TaskKind[RepairPayload, NoResult]("repair", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class _Patch:
    """Lists (Q, w) of known rows, with new chunks in them and without deleted ones."""

    ids: Int64Array
    distances: Float32Array
    is_improved: BoolArray  # (Q,) a new chunk entered the list
    is_changed: BoolArray  # (Q,) the list had a live chunk that is not allowed any more


def run_repair_task(
    storage: Storage, task: Task[RepairPayload, NoResult], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[NoResult]:
    """Patch one range of query rows, of which only those are read that can change. Publishes no file when no row changes.

    The counts of short and capped rows are of these rows, after the repair and before it (`was_short`, `was_capped`).
    """
    del clock
    span = task.payload.span
    state = planned_state(storage, task.payload.snapshot, task.payload.table)
    rows_now = query_rows(state.view, state.table.query_set, state.table.entry.space, span)
    known_before = state.known_rows(span)
    known = rows_to_look_at(state, _ids(rows_now & known_before, span), span)
    rows = np.union1d(known, _ids(rows_now - known_before, span))
    is_known = np.isin(rows, known)
    ids, distances = state.table.stored(rows)
    gone = state.table.stored(_ids(known_before - rows_now, span))
    before = np.concatenate([gone[0], ids[is_known]]), np.concatenate([gone[1], distances[is_known]])
    were_short = num_short((np.where(state.were_compared(before[0]), before[0], -1), before[1]), state.table.k)
    is_changed, is_improved = np.zeros((2, len(rows)), dtype=bool)
    if len(known):
        patch = _patch(state, known, ids[is_known], distances[is_known], hardware.threads)
        ids[is_known], distances[is_known] = patch.ids, patch.distances
        is_improved[is_known], is_changed[is_known] = patch.is_improved, patch.is_changed
    is_starved = is_known & (_num_neighbours(ids) < state.table.k) & (distances[:, -1] < CAPPED)
    to_recompute = ~is_known | is_starved
    if to_recompute.any():
        computed = _recompute(state, rows[to_recompute], task.payload.num_chunks, hardware)
        ids[to_recompute], distances[to_recompute] = computed
    to_write = to_recompute | is_improved | is_changed
    files: list[FileRecord] = []
    if to_write.any():
        written = rows[to_write], ids[to_write], distances[to_write]
        files += publish_rows(storage, task.payload.table, task.id, span, *written)
    counts = {
        "rows": len(rows_now),
        "computed": int(to_recompute.sum()),
        "improved": int((is_improved & ~to_recompute).sum()),
        **num_short((ids, distances), state.table.k),
        **{f"was_{name}": count for name, count in were_short.items()},
    }
    return TaskRecord(task.id, tuple(files), counts=counts)


def rows_to_look_at(state: RepairState, known: Int64Array, span: ChunkRange) -> Int64Array:
    """Of ascending rows of a range that the table has, those that a new or a lost chunk can change."""
    has_new = len(state.new_ids) > 0
    if state.table.entry.lost_chunks or (has_new and not state.finds_rows_by_codes):
        return known  # a fold left no trace of what the rows lost
    chosen = state.near(known, span) if has_new else np.zeros(len(known), dtype=np.bool_)
    if len(state.changed_ids):
        chosen |= np.isin(known, state.table.rows_that_name(state.changed_ids, *span), assume_unique=True)
    return known[chosen]


def _ids(rows: BitMap, span: ChunkRange) -> Int64Array:
    return span.first_chunk + np.frombuffer(rows.to_array(), dtype=np.uint32).astype(np.int64)


def _recompute(state: RepairState, rows: Int64Array, num_chunks: int, hardware: JoinHardware) -> TopK:
    if hardware.device == "auto":  # to ask for a GPU loads PyTorch, which takes longer than to join few rows
        hardware = replace(hardware, device=chosen_device("auto") if len(rows) >= _MANY_ROWS else "cpu")
    entry, inputs, probes, codebook = state.table.entry, state.now.inputs, state.probes, state.codebook_of_rows
    if entry.nprobe:
        size = JoinSize.of(state.view, entry.space, state.params, (), probes.nprobe, hardware.threads, hardware.device)
        if (num_ranges := size.num_ranges(hardware.memory_bytes)) > 1:
            return join_few_rows(state.view, inputs, rows, codebook, probes, num_chunks, num_ranges, hardware)
    return nearest_chunks(
        state.view, entry.queries, entry.space, codebook, probes, state.params, state.database, rows, hardware
    )


def _num_neighbours(ids: Int64Array) -> Int64Array:
    """(Q,) how many neighbours each list (Q, w) has."""
    counts: Int64Array = np.count_nonzero(ids >= 0, axis=1)
    return counts


def _patch(state: RepairState, rows: Int64Array, ids: Int64Array, distances: Float32Array, threads: int) -> _Patch:
    """Take deleted chunks out of the lists (Q, w) of known rows, and put new ones in up to their bounds."""
    bound, last = list_bounds(ids, distances)
    is_kept = state.are_allowed(ids)
    is_live = state.view.chunks.is_live(ids.ravel()).reshape(ids.shape)
    kept = np.where(is_kept, ids, -1), np.where(is_kept, distances, np.float32(np.inf))
    new_ids, new_distances = _nearest_new_chunks(state, rows, bound, last, state.table.width, threads)
    is_listed = (new_ids[:, :, None] == kept[0][:, None, :]).any(axis=2)  # undeleted, and still in the list
    new_ids[is_listed] = -1
    ids, distances = merge_topk([kept, (new_ids, new_distances)], state.table.width)
    return _Patch(
        ids,
        np.where(ids >= 0, distances, bound[:, None]),
        is_improved=np.any(new_ids >= 0, axis=1),
        is_changed=np.any(is_live & ~is_kept, axis=1),
    )


def list_bounds(ids: Int64Array, distances: Float32Array) -> tuple[Float32Array, Int64Array]:
    """(D, I), (Q,) each: the bound up to which each list (Q, w) is complete."""
    bound = distances[:, -1].copy()
    return bound, np.where(distances == bound[:, None], ids, -1).max(axis=1)


def _nearest_new_chunks(
    state: RepairState, rows: Int64Array, bound: Float32Array, last: Int64Array, width: int, threads: int
) -> TopK:
    """The nearest new chunks of each row that are below its bound, (Q, w) each; -1 and infinity where there are fewer."""
    best = np.repeat(last[:, None], width, axis=1), np.repeat(bound[:, None], width, axis=1)
    takes_all = (bound >= CAPPED) | (state.table.entry.nprobe == 0)  # what a row lacks may be in any list
    for join, chosen in ((_compare_new, takes_all), (_join_new, ~takes_all)):
        positions = np.flatnonzero(chosen) if len(state.new_ids) else np.empty(0, dtype=np.int64)
        for start in range(0, len(positions), BLOCK_QUERIES):
            block = positions[start : start + BLOCK_QUERIES]
            of_block = best[0][block], best[1][block]
            join(state, rows[block], of_block, threads)
            best[0][block], best[1][block] = of_block
    ids, distances = best
    is_bound = (ids == last[:, None]) & (distances == bound[:, None])
    ids[is_bound], distances[is_bound] = -1, np.inf
    return ids, distances


def _compare_new(state: RepairState, rows: Int64Array, best: TopK, threads: int) -> None:
    """Merge into the best of rows all new chunks."""
    view, queries, width = state.view, state.table.query_set, best[0].shape[1]
    vectors = view.vectors(state.table.entry.space, rows, queries)
    exclusion = exclusion_of(view, queries, state.params, rows)
    exact_topk(vectors, [state.new_chunks], width, _metric(state), exclusion, threads, best)


def _join_new(state: RepairState, rows: Int64Array, best: TopK, threads: int) -> None:
    """Merge into the best of rows the new chunks in the lists that they read, rows with the same first list together."""
    view, queries, entry = state.view, state.table.query_set, state.table.entry
    lists = lists_of_rows(view, entry.space, queries, rows, state.codebook_of_rows, state.probes, threads)
    exclusion = exclusion_of(view, queries, state.params, rows)
    order = np.argsort(lists[:, 0], kind="stable")
    of_rows = best[0][order], best[1][order]
    vectors = view.vectors(entry.space, rows[order], queries)
    reverse_join(vectors, lists[order], state.new_by_home, _metric(state), exclusion.rows(order), of_rows, threads)
    best[0][order], best[1][order] = of_rows


def _metric(state: RepairState) -> Metric:
    return state.view.snapshot.existing(SpaceEntry, state.table.entry.space).metric
