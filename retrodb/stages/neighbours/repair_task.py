"""The task of stage repair: a patch for one range of rows of a neighbour table.

What a row stores is complete up to its *bound* (D, I): the list has every chunk that the row was compared with, that is not
excluded, and whose (distance, id) is not above the bound. D is the last distance of the list. I is the last id with that
distance, -1 where there is none. A list that ends in infinity is complete. One that ends in `CAPPED` has every chunk of the lists
that the row read, as many as a row may: to search again would find the same, so it is not starved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.metric import CAPPED
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
from retrodb.stages.neighbours.table_rows import num_short, publish_rows, query_rows
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
    num_chunks: int  # that rows are compared with after the repair


KIND = TaskKind[RepairPayload, NoResult]("repair", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class _Patch:
    """Known rows that are written again, with new chunks in their lists and without deleted ones."""

    rows_Q: Int64Array  # ascending
    ids_QW: Int64Array
    distances_QW: Float32Array
    is_starved_Q: BoolArray  # fewer than k neighbours below a bound that is a distance: the row is computed again
    counts: Counter[str]  # of all rows that were looked at; `improved`, `short` and `capped` leave out the starved ones


def run_repair_task(
    storage: Storage, task: Task[RepairPayload, NoResult], clock: str, *, hardware: JoinHardware = _ONE_THREAD
) -> TaskRecord[NoResult]:
    """Patch some ranges of query rows, of which only those are read that can change. A range without one gets no file.

    The counts of short and capped rows are of these rows, after the repair and before it (`was_short`, `was_capped`).
    """
    del clock
    spans = task.payload.spans
    span = ChunkRange(spans[0].first_chunk, spans[-1].end - spans[0].first_chunk)
    state = planned_state(storage, task.payload.snapshot, task.payload.table)
    rows_now = query_rows(state.view, state.table.query_set, state.table.entry.space, span)
    known_before = state.known_rows(span)
    patch = _patch(state, _ids(rows_now & known_before, span), span, hardware.threads)
    to_compute = np.union1d(patch.rows_Q[patch.is_starved_Q], _ids(rows_now - known_before, span))
    ids, distances = _recompute(state, to_compute, task.payload.num_chunks, hardware)
    is_kept = ~patch.is_starved_Q
    written = (
        np.concatenate([patch.rows_Q[is_kept], to_compute]),
        np.concatenate([patch.ids_QW[is_kept], ids]),
        np.concatenate([patch.distances_QW[is_kept], distances]),
    )
    gone = _short_before(state, _ids(known_before - rows_now, span))
    counts = _added([patch.counts, num_short((ids, distances), state.table.k), gone])
    counts.update(rows=len(rows_now), computed=len(to_compute))
    return TaskRecord(task.id, tuple(_publish(storage, task, *written)), counts=dict(counts))


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
    blocks = [_patch_block(state, block, new) for block in _blocks(rows)]
    return _Patch(
        rows_Q=np.concatenate([block.rows_Q for block in blocks]),
        ids_QW=np.concatenate([block.ids_QW for block in blocks]),
        distances_QW=np.concatenate([block.distances_QW for block in blocks]),
        is_starved_Q=np.concatenate([block.is_starved_Q for block in blocks]),
        counts=_added(block.counts for block in blocks),
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
    distances = np.where(ids >= 0, distances, bound[:, None])
    is_starved = (np.count_nonzero(ids >= 0, axis=1) < state.table.k) & (bound < CAPPED)
    is_improved = np.any(new_ids >= 0, axis=1)
    to_write = is_starved | is_improved | is_lost.any(axis=1)
    short_now = num_short((ids[~is_starved], distances[~is_starved]), state.table.k)
    short_before = _was_short(state, (stored_ids, stored_distances))
    return _Patch(
        rows_Q=rows[to_write],
        ids_QW=ids[to_write],
        distances_QW=distances[to_write],
        is_starved_Q=is_starved[to_write],
        counts=_added([short_now, short_before, {"improved": int((is_improved & ~is_starved).sum())}]),
    )


def _merged(kept: TopK, new: TopK) -> TopK:
    """The nearest of both, (Q, w) each, as of `merge_topk`. Without new ones no compiled kernel has to be loaded for it."""
    if (new[0] >= 0).any():
        return merge_topk([kept, new], kept[0].shape[1])
    order = np.argsort(kept[0] < 0, axis=1, kind="stable")
    return np.take_along_axis(kept[0], order, axis=1), np.take_along_axis(kept[1], order, axis=1)


def _short_before(state: RepairState, rows: Int64Array) -> Counter[str]:
    """`_was_short` of known rows."""
    return _added(_was_short(state, state.table.stored(block)) for block in _blocks(rows))


def _was_short(state: RepairState, stored: TopK) -> dict[str, int]:
    """How many of some stored lists (Q, w) were short before the repair, and capped, see `num_short`."""
    ids, distances = stored
    before = np.where(state.were_compared(ids), ids, -1), distances
    return {f"was_{name}": count for name, count in num_short(before, state.table.k).items()}


def _added(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Counts by name, added up; those of zero are kept."""
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return total


def _blocks(rows: Int64Array) -> Iterator[Int64Array]:
    """Blocks of rows, at least one."""
    return (rows[start : start + _BLOCK_ROWS] for start in range(0, max(1, len(rows)), _BLOCK_ROWS))


def _ids(rows: BitMap, span: ChunkRange) -> Int64Array:
    return span.first_chunk + np.frombuffer(rows.to_array(), dtype=np.uint32).astype(np.int64)


def _recompute(state: RepairState, rows: Int64Array, num_chunks: int, hardware: JoinHardware) -> TopK:
    """The neighbours of some rows, as a rebuild finds them."""
    if not len(rows):
        return empty_topk(0, state.table.width)
    if hardware.device == "auto":  # to ask for a GPU loads PyTorch, which takes longer than to join few rows
        hardware = replace(hardware, device=chosen_device("auto") if len(rows) >= _MANY_ROWS else "cpu")
    entry, inputs, probes, codebook = state.table.entry, state.now.inputs, state.probes, state.codebook_of_rows
    if entry.nprobe:
        size = JoinSize.of(state.view, entry.space, state.params, (), probes.nprobe, hardware.threads, hardware.device)
        num_ranges = size.num_ranges(hardware.memory_bytes)
        if num_ranges > 1 or len(rows) * probes.nprobe < size.num_lists:  # more rows probe all lists
            return join_few_rows(
                state.view, inputs, rows, codebook, probes, num_chunks, num_ranges, hardware, state.are_allowed
            )
    return nearest_chunks(
        state.view, entry.queries, entry.space, codebook, probes, state.params, state.database, rows, hardware
    )


def list_bounds(ids: Int64Array, distances: Float32Array) -> tuple[Float32Array, Int64Array]:
    """(D, I), (Q,) each: the bound up to which each list (Q, w) is complete."""
    bound = distances[:, -1].copy()
    return bound, np.where(distances == bound[:, None], ids, -1).max(axis=1)
