"""The task of stage repair: a patch for one range of rows of a neighbour table.

What a row stores is complete up to its *bound* (D, I): the list has every chunk that the row was compared with, that is not
excluded, and whose (distance, id) is not above the bound. D is the last distance of the list. I is the last id with that
distance, -1 where there is none. A list that ends in infinity is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.routing import probes_of
from retrodb.ann.topk import TopK, empty_topk
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Float32Array, Int64Array
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.neighbours.block_join import JoinHardware, chosen_device
from retrodb.stages.neighbours.few_rows import join_few_rows
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.new_neighbours import NewNeighbours, find_new_neighbours
from retrodb.stages.neighbours.repair_state import RepairState, planned_state
from retrodb.stages.neighbours.table_inputs import nearest_chunks
from retrodb.stages.neighbours.table_rows import publish_rows, query_rows
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    from pyroaring import BitMap

STAGE_VERSION = 5
_ONE_THREAD = JoinHardware()
_MANY_ROWS = 1 << 14
_BLOCK_ROWS = 1 << 16  # whose neighbours are read at once


@dataclass(frozen=True)
class RepairPayload:
    """Ranges of rows of a table, ascending. From the first row to the last there are about as many ids as in a shard."""

    snapshot: PlannedSnapshot
    table: str
    spans: tuple[ChunkRange, ...]


KIND = TaskKind[RepairPayload, NoResult]("repair", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class _Patch:
    """Known rows that are written again, with new chunks in their lists and without deleted ones."""

    rows_Q: Int64Array  # ascending
    ids_QW: Int64Array
    distances_QW: Float32Array
    is_starved_Q: BoolArray  # fewer than k neighbours below a finite bound: the row is computed again
    num_improved: int  # of the others, those that a new chunk entered
    num_short: int  # of all rows that were looked at but the starved ones, those with fewer than k neighbours now
    was_short: int  # of all rows that were looked at, those with fewer than k neighbours before


def run_repair_task(
    storage: Storage, task: Task[RepairPayload, NoResult], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[NoResult]:
    """Patch some ranges of query rows, of which only those are read that can change. A range without one gets no file.

    The counts `short` and `was_short` are of these rows: those with fewer than k neighbours after the repair, and before it.
    """
    del clock
    spans = task.payload.spans
    span = ChunkRange(spans[0].first_chunk, spans[-1].end - spans[0].first_chunk)
    state = planned_state(storage, task.payload.snapshot, task.payload.table)
    rows_now = query_rows(state.view, state.table.query_set, state.table.entry.space, span)
    known_before = state.known_rows(span)
    patch = _patch(state, _ids(rows_now & known_before, span), span, hardware.threads)
    to_compute = np.union1d(patch.rows_Q[patch.is_starved_Q], _ids(rows_now - known_before, span))
    ids, distances = _recompute(state, to_compute, hardware)
    is_kept = ~patch.is_starved_Q
    written = (
        np.concatenate([patch.rows_Q[is_kept], to_compute]),
        np.concatenate([patch.ids_QW[is_kept], ids]),
        np.concatenate([patch.distances_QW[is_kept], distances]),
    )
    counts = {
        "rows": len(rows_now),
        "computed": len(to_compute),
        "improved": patch.num_improved,
        "short": patch.num_short + int((_num_neighbours(ids) < state.table.k).sum()),
        "was_short": patch.was_short + _num_short_before(state, _ids(known_before - rows_now, span)),
    }
    return TaskRecord(task.id, tuple(_publish(storage, task, *written)), counts=counts)


def _publish(
    storage: Storage,
    task: Task[RepairPayload, NoResult],
    rows: Int64Array,
    ids: Int64Array,
    distances: Float32Array,
) -> list[FileRecord]:
    """Publish rows in any order, those of each range in a file of its own."""
    files, order = list[FileRecord](), np.argsort(rows, kind="stable")
    for number, span in enumerate(task.payload.spans):
        low, high = np.searchsorted(rows, [span.first_chunk, span.end], sorter=order)
        if low < high:
            chosen = order[low:high]
            of_span = rows[chosen], ids[chosen], distances[chosen]
            files += publish_rows(storage, task.payload.table, f"{task.id}-{number}", span, *of_span)
    return files


def _patch(state: RepairState, known: Int64Array, span: ChunkRange, threads: int) -> _Patch:
    """Patch the rows of a range that the table has, ascending, as far as a new or a lost chunk can change them."""
    named = _rows_that_lose(state, known, span)
    new = find_new_neighbours(state, known, named, span, threads)
    rows = np.union1d(named, new.rows_Q)
    blocks = [_patch_block(state, rows[start : start + _BLOCK_ROWS], new) for start in range(0, len(rows), _BLOCK_ROWS)]
    blocks = blocks or [_patch_block(state, rows, new)]
    return _Patch(
        rows_Q=np.concatenate([block.rows_Q for block in blocks]),
        ids_QW=np.concatenate([block.ids_QW for block in blocks]),
        distances_QW=np.concatenate([block.distances_QW for block in blocks]),
        is_starved_Q=np.concatenate([block.is_starved_Q for block in blocks]),
        num_improved=sum(block.num_improved for block in blocks),
        num_short=sum(block.num_short for block in blocks),
        was_short=sum(block.was_short for block in blocks),
    )


def _rows_that_lose(state: RepairState, known: Int64Array, span: ChunkRange) -> Int64Array:
    """Of the known rows of a range, ascending, those whose list may have a lost chunk, or one that is new again."""
    if state.table.entry.lost_chunks:
        return known  # a fold left no trace of what the rows lost
    if not len(state.changed_ids):
        return known[:0]
    return np.intersect1d(known, state.table.rows_that_name(state.changed_ids, *span), assume_unique=True)


def _patch_block(state: RepairState, rows: Int64Array, new: NewNeighbours) -> _Patch:
    """Take lost chunks out of the lists of known rows, and put new ones in up to their bounds."""
    stored_ids, stored_distances = state.table.stored(rows)
    bound, last = list_bounds(stored_ids, stored_distances)
    is_kept = state.are_allowed(stored_ids)
    is_lost = (stored_ids >= 0) & ~is_kept
    is_lost[is_lost] = state.view.chunks.is_live(stored_ids[is_lost])  # a reader masks what is deleted
    kept = np.where(is_kept, stored_ids, -1), np.where(is_kept, stored_distances, np.float32(np.inf))
    new_ids, new_distances = new.below(rows, bound, last)
    is_listed = (new_ids[:, :, None] == kept[0][:, None, :]).any(axis=2)  # undeleted, and still in the list
    new_ids[is_listed] = -1
    ids, distances = _merged(kept, (new_ids, new_distances))
    is_short = _num_neighbours(ids) < state.table.k
    is_starved, is_improved = is_short & np.isfinite(bound), np.any(new_ids >= 0, axis=1)
    to_write = is_starved | is_improved | is_lost.any(axis=1)
    return _Patch(
        rows_Q=rows[to_write],
        ids_QW=ids[to_write],
        distances_QW=np.where(ids >= 0, distances, bound[:, None])[to_write],
        is_starved_Q=is_starved[to_write],
        num_improved=int((is_improved & ~is_starved).sum()),
        num_short=int((is_short & ~is_starved).sum()),
        was_short=_num_short(state, stored_ids),
    )


def _merged(kept: TopK, new: TopK) -> TopK:
    """The nearest of both, (Q, w) each, as of `merge_topk`. Without new ones no compiled kernel has to be loaded for it."""
    if (new[0] >= 0).any():
        return merge_topk([kept, new], kept[0].shape[1])
    order = np.argsort(kept[0] < 0, axis=1, kind="stable")
    return np.take_along_axis(kept[0], order, axis=1), np.take_along_axis(kept[1], order, axis=1)


def _num_short_before(state: RepairState, rows: Int64Array) -> int:
    """How many of some rows had fewer than k neighbours before the repair."""
    starts = range(0, len(rows), _BLOCK_ROWS)
    return sum(_num_short(state, state.table.stored(rows[start : start + _BLOCK_ROWS])[0]) for start in starts)


def _num_short(state: RepairState, ids: Int64Array) -> int:
    """How many of the lists (Q, w) had fewer than k neighbours before the repair."""
    return int((np.count_nonzero(state.were_compared(ids), axis=1) < state.table.k).sum())


def _ids(rows: BitMap, span: ChunkRange) -> Int64Array:
    return span.first_chunk + np.frombuffer(rows.to_array(), dtype=np.uint32).astype(np.int64)


def _recompute(state: RepairState, rows: Int64Array, hardware: JoinHardware) -> TopK:
    """The neighbours of some rows, as a rebuild finds them."""
    if not len(rows):
        return empty_topk(0, state.table.width)
    if hardware.device == "auto":  # to ask for a GPU loads PyTorch, which takes longer than to join few rows
        hardware = replace(hardware, device=chosen_device("auto") if len(rows) >= _MANY_ROWS else "cpu")
    entry, inputs = state.table.entry, state.now.inputs
    if entry.nprobe:
        size = JoinSize.of(state.view, entry.space, state.params, (), entry.nprobe, hardware.threads, hardware.device)
        num_ranges = size.num_ranges(hardware.memory_bytes)
        if num_ranges > 1 or len(rows) * entry.nprobe < size.num_lists:  # more rows probe all lists
            return join_few_rows(
                state.view, inputs, rows, state.codebook, probes_of(entry), num_ranges, hardware, state.are_allowed
            )
    return nearest_chunks(
        state.view, entry.queries, entry.space, probes_of(entry), state.params, state.database, rows, hardware
    )


def _num_neighbours(ids: Int64Array) -> Int64Array:
    """(Q,) how many neighbours each list (Q, w) has."""
    counts: Int64Array = np.count_nonzero(ids >= 0, axis=1)
    return counts


def list_bounds(ids: Int64Array, distances: Float32Array) -> tuple[Float32Array, Int64Array]:
    """(D, I), (Q,) each: the bound up to which each list (Q, w) is complete."""
    bound = distances[:, -1].copy()
    return bound, np.where(distances == bound[:, None], ids, -1).max(axis=1)
