"""A sample of the rows of a table with their exact neighbours: a task predicts and measures the recall of the table on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from retrodb.ann.exclusion import Exclusion
from retrodb.ann.recall_curve import recall_at_k
from retrodb.ann.topk import TopK
from retrodb.config import NeighboursParams
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.entries import SpaceEntry
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.stages.index.live_parts import LiveParts, open_codebook
from retrodb.stages.index.operating_point import SAMPLE_ROWS, OperatingPoint, measure
from retrodb.stages.neighbours.block_join import exact_neighbours
from retrodb.stages.neighbours.compared_tasks import TableInputs
from retrodb.stages.neighbours.table_inputs import each_part, exclusion_of
from retrodb.stages.neighbours.table_rows import query_ids, spans_of
from retrodb.stages.planned_view import planned_view
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

_SAMPLE_SPANS = (
    16  # ranges that the sample is drawn from: 16 tasks of a million rows, so reading their masks takes seconds
)


@dataclass(frozen=True)
class RecallPayload:
    """Files of a new table, whose recall is measured."""

    inputs: TableInputs
    files: tuple[FileRecord, ...]  # of the ranges that the sample is drawn from


@dataclass(frozen=True)
class MeasuredRecall:
    """The recall of a new table."""

    recall: float  # recall@k on the sample


POINT = TaskKind[TableInputs, OperatingPoint]("neighbours-point", 1, OperatingPoint)
RECALL = TaskKind[RecallPayload, MeasuredRecall]("neighbours-recall", 1, MeasuredRecall)


def sampled_spans(num_spans: int) -> list[int]:
    """The numbers of the ranges that the sample is drawn from, ascending."""
    return sorted(np.random.default_rng(0).permutation(num_spans)[:_SAMPLE_SPANS].tolist())


def run_point_task(
    storage: Storage, task: Task[TableInputs, OperatingPoint], clock: str, *, threads: int = 1
) -> TaskRecord[OperatingPoint]:
    """How many lists each row of a table has to read for the wanted recall, measured on the sample."""
    del clock
    return TaskRecord(task.id, result=_sample(storage, task.payload, threads).measured_point)


def run_recall_task(
    storage: Storage, task: Task[RecallPayload, MeasuredRecall], clock: str, *, threads: int = 1
) -> TaskRecord[MeasuredRecall]:
    """The recall@k that a new table has on the sample."""
    del clock
    sample = _sample(storage, task.payload.inputs, threads)
    return TaskRecord(task.id, result=MeasuredRecall(sample.recall_of(storage, task.payload.files)))


@lru_cache(maxsize=1)
def _sample(storage: Storage, inputs: TableInputs, threads: int) -> RecallSample:
    """The sample of a table, whose exact neighbours are found once per process."""
    return RecallSample(planned_view(storage, inputs.snapshot), inputs.queries, inputs.space, inputs.params, threads)


class RecallSample:
    """Seeded rows of some of the spans of a query set, and their exact neighbours. Everything is computed on first use."""

    def __init__(self, view: View, queries: str, space: str, params: NeighboursParams, threads: int) -> None:
        self._view, self._queries, self._space, self._params = view, queries, space, params
        self._threads = threads

    @cached_property
    def rows(self) -> Int64Array:
        """(S,) ids, ascending."""
        spans = spans_of(self._view, self._queries)
        rng = np.random.default_rng(0)
        rng.permutation(len(spans))  # as `sampled_spans` draws
        rows = [
            query_ids(self._view, self._queries, self._space, spans[number]) for number in sampled_spans(len(spans))
        ]
        return np.sort(rng.permutation(np.concatenate(rows))[:SAMPLE_ROWS])

    @cached_property
    def vectors(self) -> AnyArray:
        """(S, D) vectors of the rows."""
        return self._view.vectors(self._space, self.rows, self._queries)

    @cached_property
    def exclusion(self) -> Exclusion:
        """What the rows must not have as neighbours."""
        return exclusion_of(self._view, self._queries, self._params, self.rows)

    @cached_property
    def truth(self) -> TopK:
        """The exact neighbours of the rows: ids (S, k) int64 and distances (S, k) float32. One part at a time is in memory."""
        metric = self._view.snapshot.existing(SpaceEntry, self._space).metric
        parts = each_part(self._view, self._space, self._params)
        return exact_neighbours(self.vectors, parts, metric, self.exclusion, self._params.k, self._threads)

    @cached_property
    def measured_point(self) -> OperatingPoint:
        """How many lists the rows need for the wanted recall."""
        codebook, params = open_codebook(self._view, self._space), self._params
        parts = LiveParts(self._view, self._space)
        return measure(codebook, parts, self.vectors, self.exclusion, params.k, params.recall, self.truth[0])

    def recall_of(self, storage: Storage, files: Sequence[FileRecord]) -> float:
        """The recall@k that files of the table have on the rows."""
        k = self._params.k
        if not (self.truth[0] >= 0).any():
            return 1.0
        ids, distances = np.empty((len(self.rows), k), np.int64), np.empty((len(self.rows), k), np.float32)
        for hit in Coverage(files, self._view.files).lookup(self.rows):
            table = read_table(VerifiedFiles(storage).open(hit.record)).take(hit.positions)
            columns = [table.column(name).combine_chunks().flatten().to_numpy() for name in ("neighbours", "distances")]
            ids[hit.where], distances[hit.where] = (column.reshape(table.num_rows, -1)[:, :k] for column in columns)
        return round(recall_at_k(ids, distances, *self.truth).mean, 4)
