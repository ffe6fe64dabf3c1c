"""The lists in which a restricted table has chunks: its rows read the nearest of these, and no list that has nothing for them.

Few documents are in few lists. Of 2,048 lists of real text 37 have the chunks of 12 documents, and a row that reads 22 of these
finds what it finds in the nearest 1,244 of all. Tasks count the chunks of some shards by list when a table is planned. The lists
are stored with what the rows were compared with; a repair adds those of new chunks. A list that loses its chunks stays until
the table is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import map_array
from retrodb.format.entries import IndexEntry
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import bitmap_of
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.neighbours.block_join import stored_lists
from retrodb.stages.neighbours.compared_tasks import TableInputs, compared_sides, publish_compared
from retrodb.stages.neighbours.repair_state import planned_state
from retrodb.stages.neighbours.truth_tasks import publish_run_array
from retrodb.stages.planned_view import planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.compared_sets import DATABASE, LISTS, ComparedRange
from retrodb.view.view import View

_TASK_CHUNKS = 1 << 26  # of shards whose chunks a task counts; its file has 16 bytes for each list that is not empty
_MIN_SPAN_CHUNKS = 1 << 17  # what a shard counts at least, so that a task has at most 512 of them


@dataclass(frozen=True)
class CountListsPayload:
    """Count the chunks that a table has in some ranges of ids, by list."""

    run: str  # id of the run that stores the counts
    inputs: TableInputs
    spans: tuple[ChunkRange, ...]


@dataclass(frozen=True)
class StoreListsPayload:
    """Store the lists in which a table has chunks."""

    inputs: TableInputs
    list_sizes: FileRecord | None  # of a new table; None: those of the table, and those of its new chunks


COUNT_LISTS = TaskKind[CountListsPayload, NoResult]("table-lists", 1, NoResult)
STORE_LISTS = TaskKind[StoreListsPayload, NoResult]("table-lists-store", 1, NoResult)


def filled_list_sizes(context: Context, run: Run, view: View, inputs: TableInputs) -> FileRecord:
    """A file of a run with the chunks that a table has in each list, (L,) int64."""
    spans = [record.span for record in view.chunks.ranges]
    groups = groups_of(spans, lambda span: max(span.num_chunks, _MIN_SPAN_CHUNKS), _TASK_CHUNKS)
    tasks = [
        COUNT_LISTS.task(CountListsPayload(run.id, inputs, group), weight=sum(span.num_chunks for span in group))
        for group in groups
    ]
    sizes_L = np.zeros(view.snapshot.existing(IndexEntry, inputs.space).lists, dtype=np.int64)
    engine = context.engine_for_chunks(view.chunks.end)
    held = 3 * sizes_L.nbytes  # the counts of all lists, and numbers and counts of those that have chunks
    for record in engine.run(run, tasks, run_count_lists, context.progress, extra_bytes=held, unit="chunks"):
        lists, counts = map_array(run.storage.local(record.files[0].path))
        sizes_L[lists] += counts
    return publish_run_array(context.storage, run.id, "list-sizes", sizes_L)


def run_count_lists(storage: Storage, task: Task[CountListsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Count the chunks of some ranges; the file has the lists that have some, ascending, and how many, (2, M) int64."""
    del clock
    payload = task.payload
    sides = compared_sides(storage, payload.inputs)
    stored = stored_lists(sides.view, payload.inputs.space)
    sizes_L = np.zeros(sides.view.snapshot.existing(IndexEntry, payload.inputs.space).lists, dtype=np.int64)
    for span in payload.spans:
        rows = np.frombuffer(sides.rows(DATABASE, span).to_array(), dtype=np.uint32)
        for hit in stored.lookup(span.first_chunk + rows.astype(np.int64)):
            np.add.at(sizes_L, sides.view.files.array(hit.record)[hit.positions], 1)
    filled = np.flatnonzero(sizes_L)
    counts = np.stack([filled, sizes_L[filled]])
    return TaskRecord(task.id, (publish_run_array(storage, payload.run, task.id, counts),))


def codebook_of_rows(view: View, space: str, list_sizes: FileRecord | None) -> Codebook:
    """The codebook of a space, which finds only lists that have chunks.

    Args:
        list_sizes: see `filled_list_sizes`; None: all lists are found.
    """
    codebook = open_codebook(view, space)
    if list_sizes is None:
        return codebook
    return codebook.within(np.flatnonzero(view.files.whole_array(list_sizes)))


def store_filled_lists(transaction: Transaction, inputs: TableInputs, list_sizes: FileRecord | None = None) -> None:
    """Add the file with the lists of a restricted table to a change. Arguments are those of the payload."""
    task = STORE_LISTS.task(StoreListsPayload(inputs, list_sizes))
    engine = transaction.context.engine.here()
    transaction.add_files(transaction.run_tasks([task], run_store_lists, engine=engine, unit="tables"))


def run_store_lists(storage: Storage, task: Task[StoreListsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Publish the lists in which a table has chunks, as one range of compared sets."""
    del clock
    inputs, list_sizes = task.payload.inputs, task.payload.list_sizes
    if list_sizes is None:
        lists = planned_state(storage, inputs.snapshot, inputs.table).filled_lists
    else:
        lists = np.flatnonzero(VerifiedFiles(storage).whole_array(list_sizes))
    num_lists = planned_view(storage, inputs.snapshot).snapshot.existing(IndexEntry, inputs.space).lists
    stored = ComparedRange.of(LISTS, ChunkRange(0, num_lists), bitmap_of(lists))
    return TaskRecord(task.id, (publish_compared(storage, inputs.table, task.id, [stored]),))
