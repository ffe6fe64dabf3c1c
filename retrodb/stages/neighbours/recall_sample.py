"""A sample of the rows of a table with their exact neighbours: tasks predict and measure the recall of the table on it.

The exact neighbours are found by an exact scan in a run of their own, which the plan of a table and its execution share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from retrodb.ann.recall_curve import recall_at_k
from retrodb.ann.routing import ROUTED_BYTES
from retrodb.engine.run import Run, passing_run, run_exists, shared_run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import IndexEntry, SpaceEntry
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.index.drift_task import sizes_of_lists
from retrodb.stages.index.live_parts import parts_of
from retrodb.stages.index.operating_point import MAX_LISTS, SAMPLE_ROWS, OperatingPoint, point_reaching, routed_point
from retrodb.stages.neighbours.compared_tasks import TableInputs
from retrodb.stages.neighbours.filled_lists import codebook_of_rows, filled_list_sizes
from retrodb.stages.neighbours.table_inputs import exclusion_of
from retrodb.stages.neighbours.table_rows import query_rows, spans_of
from retrodb.stages.neighbours.truth_tasks import (
    ScannedSide,
    ScanQueries,
    find_truth,
    publish_queries,
    publish_run_array,
    stored_truth,
)
from retrodb.stages.planned_view import planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

_SAMPLE_SPANS = (
    16  # ranges that the sample is drawn from: bitmaps of at most a million rows, and as many files of a table
)
_RUN = "neighbours-truth"


@dataclass(frozen=True)
class SamplePlace:
    """Draw the sample of a table."""

    run: str  # id of the run that stores it
    inputs: TableInputs


@dataclass(frozen=True)
class RecallSampleFiles:
    """Files of a run with a sample."""

    rows: FileRecord  # (S,) ids, ascending
    queries: ScanQueries


@dataclass(frozen=True)
class SampleTruth:
    """Files of a run with a sample and its exact neighbours."""

    sample: RecallSampleFiles
    neighbours: FileRecord  # see `stored_truth`


@dataclass(frozen=True)
class PointPayload:
    """Choose how many lists each row of a table reads."""

    inputs: TableInputs
    truth: SampleTruth
    list_sizes: FileRecord | None  # (L,) int64: vectors in each list, for a table that is restricted or routes its rows


@dataclass(frozen=True)
class RecallPayload:
    """Files of a new table, whose recall is measured."""

    inputs: TableInputs
    truth: SampleTruth
    files: tuple[FileRecord, ...]  # of the ranges that the sample is drawn from


@dataclass(frozen=True)
class MeasuredRecall:
    """The recall of a new table."""

    recall: float  # recall@k on the sample


SAMPLE = TaskKind[SamplePlace, RecallSampleFiles]("neighbours-sample", 1, RecallSampleFiles)
POINT = TaskKind[PointPayload, OperatingPoint]("neighbours-point", 4, OperatingPoint)
RECALL = TaskKind[RecallPayload, MeasuredRecall]("neighbours-recall", 2, MeasuredRecall)


def measured_point(context: Context, view: View, inputs: TableInputs) -> OperatingPoint:
    """How many lists each row of a table has to read for the wanted recall, measured on the sample.

    The run stays, so that the recall of the finished table is measured with the same truth: `measured_recall` ends it, and
    where no table is made, `forget_truth`.
    """
    with shared_run(context.storage, _RUN, inputs, context.clock) as run:
        sizes = _list_sizes(context, run, view, inputs)
        task = POINT.task(PointPayload(inputs, _truth(context, run, view, inputs), sizes))
        held = _ranking_bytes(view, inputs.space, is_routed=sizes is not None)
        [record] = context.engine.run(run, [task], run_point_task, context.progress, extra_bytes=held, unit="samples")
    return record.result


def measured_recall(transaction: Transaction, inputs: TableInputs, records: Sequence[TaskRecord[NoResult]]) -> float:
    """The recall@k of a new table on the sample.

    Args:
        records: of the tasks that made the table; each of its ranges has one file, or none where it has no rows.
    """
    context = transaction.context
    with passing_run(context.storage, _RUN, inputs, context.clock) as run:
        truth = _truth(context, run, transaction.view, inputs)
        spans = spans_of(transaction.view, inputs.queries)
        sampled = {spans[number].first_chunk for number in sampled_spans(len(spans))}
        of_table = (file for record in records for file in record.files if file.kind == "neighbours")
        files = tuple(file for file in of_table if file.first_chunk in sampled)
        task = RECALL.task(RecallPayload(inputs, truth, files))
        [record] = transaction.run_tasks([task], run_recall_task, unit="samples")
    return record.result.recall


def forget_truth(context: Context, inputs: TableInputs) -> None:
    """Delete the exact neighbours that a plan has left: the table is not made."""
    if run_exists(context.storage, _RUN, inputs):
        with passing_run(context.storage, _RUN, inputs, context.clock):
            pass


def _truth(context: Context, run: Run, view: View, inputs: TableInputs) -> SampleTruth:
    """The sample of a table and its exact neighbours, as far as they are not yet in the run."""
    task = SAMPLE.task(SamplePlace(run.id, inputs))
    [record] = context.engine.run(run, [task], run_sample_rows, context.progress, unit="samples")
    params, sample = inputs.params, record.result
    side = ScannedSide(inputs.snapshot, inputs.space, params.where, params.sample, params.seed)
    return SampleTruth(sample, find_truth(context, run, view, side, sample.queries, params.k))


def sizes_of_filled_lists(context: Context, view: View, inputs: TableInputs) -> FileRecord:
    """The file of the sample's run with the chunks that a restricted table has in each list, (L,) int64."""
    with shared_run(context.storage, _RUN, inputs, context.clock) as run:
        return filled_list_sizes(context, run, view, inputs)


def _list_sizes(context: Context, run: Run, view: View, inputs: TableInputs) -> FileRecord | None:
    """A file of a run with the number of vectors in each list, (L,) int64; None where no choice depends on it."""
    if inputs.params.is_restricted:
        return filled_list_sizes(context, run, view, inputs)
    if not inputs.params.route_ranges:
        return None
    num_lists = view.snapshot.existing(IndexEntry, inputs.space).lists
    sizes_L = sizes_of_lists(context, run, parts_of(view, inputs.space), num_lists)
    return publish_run_array(context.storage, run.id, "list-sizes", sizes_L)


def _ranking_bytes(view: View, space: str, *, is_routed: bool) -> int:
    """What the task that ranks lists holds: the codebook three times (as read, as centroids, and as the quantizer has them).

    To learn a routing takes the size of each list (int64), and what a block of routed rows takes.
    """
    lists = view.snapshot.existing(IndexEntry, space).lists
    ranked = 3 * 4 * lists * view.snapshot.existing(SpaceEntry, space).dimension
    return ranked + (8 * lists + ROUTED_BYTES if is_routed else 0)


def sampled_spans(num_spans: int) -> list[int]:
    """The numbers of the ranges that the sample is drawn from, ascending."""
    return sorted(np.random.default_rng(0).permutation(num_spans)[:_SAMPLE_SPANS].tolist())


def run_sample_rows(
    storage: Storage, task: Task[SamplePlace, RecallSampleFiles], clock: str
) -> TaskRecord[RecallSampleFiles]:
    """Draw the sample of a table, and copy its vectors and what its rows must not find into files of the run."""
    del clock
    inputs, run = task.payload.inputs, task.payload.run
    view = planned_view(storage, inputs.snapshot)
    rows = _drawn_rows(view, inputs)
    vectors = view.vectors(inputs.space, rows, inputs.queries)
    exclusion = exclusion_of(view, inputs.queries, inputs.params, rows)
    queries = publish_queries(storage, run, task.id, vectors, exclusion)
    sample = RecallSampleFiles(publish_run_array(storage, run, f"{task.id}-rows", rows), queries)
    return TaskRecord(task.id, (sample.rows, queries.vectors, queries.exclusion, queries.hidden), sample)


def _drawn_rows(view: View, inputs: TableInputs) -> Int64Array:
    """(S,) ids, ascending: seeded rows of some of the spans of the query set."""
    all_spans = spans_of(view, inputs.queries)
    spans = [all_spans[number] for number in sampled_spans(len(all_spans))]
    rows = [query_rows(view, inputs.queries, inputs.space, span) for span in spans]
    ends = np.cumsum([0, *map(len, rows)])
    drawn = np.sort(np.random.default_rng(0).choice(ends[-1], min(ends[-1], SAMPLE_ROWS), replace=False))
    ids = [np.empty(0, dtype=np.int64)]
    for span, of_span, (start, end) in zip(spans, rows, pairwise(ends), strict=True):
        positions = drawn[(drawn >= start) & (drawn < end)] - start
        ids.append(span.first_chunk + np.array([of_span[at] for at in positions.tolist()], dtype=np.int64))
    return np.sort(np.concatenate(ids))


def run_point_task(
    storage: Storage, task: Task[PointPayload, OperatingPoint], clock: str
) -> TaskRecord[OperatingPoint]:
    """How many lists each row of a table has to read for the wanted recall, measured on the sample."""
    del clock
    inputs, truth, files = task.payload.inputs, task.payload.truth, VerifiedFiles(storage)
    list_sizes, params, view = task.payload.list_sizes, inputs.params, planned_view(storage, inputs.snapshot)
    codebook = codebook_of_rows(view, inputs.space, list_sizes if params.is_restricted else None)
    vectors = files.whole_array(truth.sample.queries.vectors)
    lists = codebook.nearest_lists(vectors, min(codebook.num_findable, MAX_LISTS))
    true_lists = stored_truth(files, truth.neighbours).lists_QK
    if params.route_ranges and list_sizes is not None:
        sizes_L = files.whole_array(list_sizes)
        point = routed_point(lists, true_lists, sizes_L, params.route_ranges, params.recall)
    else:
        point = point_reaching(lists, true_lists, codebook.num_lists, params.recall)
    filled = 0 if codebook.findable is None else codebook.num_findable
    return TaskRecord(task.id, result=replace(point, filled_lists=filled))


def run_recall_task(
    storage: Storage, task: Task[RecallPayload, MeasuredRecall], clock: str
) -> TaskRecord[MeasuredRecall]:
    """The recall@k that a new table has on the sample."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    rows, truth = files.whole_array(payload.truth.sample.rows), stored_truth(files, payload.truth.neighbours)
    k = payload.inputs.params.k
    if not (truth.ids_QK >= 0).any():
        return TaskRecord(task.id, result=MeasuredRecall(1.0))
    ids, distances = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
    for hit in Coverage(payload.files, files).lookup(rows):
        table = read_table(files.open(hit.record)).take(hit.positions)
        columns = [table.column(name).combine_chunks().flatten().to_numpy() for name in ("neighbours", "distances")]
        ids[hit.where], distances[hit.where] = (column.reshape(table.num_rows, -1)[:, :k] for column in columns)
    recall = recall_at_k(ids, distances, truth.ids_QK, truth.distances_QK)
    return TaskRecord(task.id, result=MeasuredRecall(round(recall.mean, 4)))
