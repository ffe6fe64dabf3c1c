"""The exact neighbours of a few hundred queries among all chunks, in tasks: none of them reads more than some ranges of chunks.

A file of the run has the queries, and every task leaves the nearest chunks of its ranges in another. They are merged by
(distance, id), so how ranges are grouped changes no byte of the result. Exclusion keys are looked up for the chunks of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from retrodb.ann.exact import BLOCK_QUERIES, BLOCK_ROWS, Block, exact_topk
from retrodb.ann.exclusion import Exclusion, Intervals
from retrodb.ann.truth import Truth
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import AnyArray, Int64Array, save_array
from retrodb.format.entries import SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import rows_in
from retrodb.memory import MIB
from retrodb.stages.context import Context
from retrodb.stages.index.live_parts import coverage_of, database_keys, parts_of
from retrodb.stages.index.operating_point import home_lists
from retrodb.stages.neighbours.restriction import Restriction
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import SELF, View

_TASK_CHUNKS = 1 << 22  # that a task compares: 4,194,304 * 384 dimensions * 2 bytes (float16) = 3.2 GB, mapped
_MIN_RANGE_CHUNKS = 1 << 13  # what a range counts at least, so that a task reads at most 512 of them


@dataclass(frozen=True)
class ScannedSide:
    """What queries are compared with: the live, screened chunks of index parts, as far as their documents are chosen."""

    snapshot: PlannedSnapshot
    space: str
    where: str | None = None  # these three are as in `Restriction`
    sample: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class ScanQueries:
    """Files of a run with queries."""

    vectors: FileRecord  # (Q, D)
    exclusion: FileRecord  # what each must not find, see `publish_queries`
    kinds: tuple[str, ...]  # of its keys
    hidden: FileRecord  # (M,) the first chunks of documents that none of them finds, ascending


@dataclass(frozen=True)
class TruthPayload:
    """Compare queries with the chunks of some ranges."""

    run: str  # id of the run that stores the result
    side: ScannedSide
    queries: ScanQueries
    k: int
    ranges: tuple[ChunkRange, ...]  # of documents files, ascending


@dataclass(frozen=True)
class MergedTruths:
    """Merge the results of several tasks."""

    run: str
    results: tuple[FileRecord, ...]


SCAN = TaskKind[TruthPayload, NoResult]("exact-scan", 1, NoResult)
MERGE = TaskKind[MergedTruths, NoResult]("exact-merge", 1, NoResult)


def publish_queries(
    storage: Storage, run: str, name: str, vectors: AnyArray, exclusion: Exclusion, hidden: Int64Array | None = None
) -> ScanQueries:
    """Write queries (Q, D) into files of a run.

    The file of the exclusion is one int64 array: the offsets of the keys of all kinds, those of the intervals, the intervals, and
    then the keys.

    Args:
        name: begins the names of the files.
    """
    hidden = np.empty(0, dtype=np.int64) if hidden is None else hidden
    bounds = exclusion.intervals.bounds_I2.ravel()
    keys = np.concatenate([exclusion.offsets_JQ1.ravel(), exclusion.intervals.offsets, bounds, exclusion.keys_M])
    files = [
        publish_run_array(storage, run, f"{name}-{part}", array)
        for part, array in (("vectors", vectors), ("excluded", keys), ("hidden", hidden))
    ]
    return ScanQueries(files[0], files[1], exclusion.kinds, files[2])


def publish_run_array(storage: Storage, run: str, name: str, array: AnyArray) -> FileRecord:
    """Write an array into a file of a run."""
    path = path_of("runs", run=run, file=f"truth/{name}.npy")
    return publish(storage, "runs", path, partial(save_array, array=array))


def find_truth(context: Context, run: Run, view: View, side: ScannedSide, queries: ScanQueries, k: int) -> FileRecord:
    """The file of a run with the k nearest chunks of every query, see `stored_truth`. What earlier tasks of the run found stays.

    Args:
        view: of the snapshot of the side.
    """
    ranges = [record.span for record in view.chunks.ranges]
    groups = list(groups_of(ranges, lambda span: max(span.num_chunks, _MIN_RANGE_CHUNKS), _TASK_CHUNKS)) or [()]
    tasks = [
        SCAN.task(TruthPayload(run.id, side, queries, k, group), weight=sum(span.num_chunks for span in group))
        for group in groups
    ]
    held = _task_bytes(view, side, queries, k, ranges)
    function = partial(run_truth_scan, threads=context.threads_for(tasks, held))
    records = context.engine.run(run, tasks, function, context.progress, extra_bytes=held, unit="chunks")
    if len(records) > 1:
        task = MERGE.task(MergedTruths(run.id, tuple(record.files[0] for record in records)), weight=len(records))
        records = context.engine.run(run, [task], run_truth_merge, context.progress, unit="files")
    return records[0].files[0]


def stored_truth(files: VerifiedFiles, record: FileRecord) -> Truth:
    """The result of a scan."""
    return Truth.of_stored(files.whole_array(record))


def _task_bytes(view: View, side: ScannedSide, queries: ScanQueries, k: int, ranges: Sequence[ChunkRange]) -> int:
    """What a task holds that depends on the queries, the dimension, or the kind of the space.

    A block of vectors as float16 and three times as float32; the queries twice, and their estimated distances to a block;
    ids, distances and lists, three times while lists are looked up. Where no vectors are kept, positions of the rows of parts.
    With a restriction, DuckDB and the documents of a range.
    """
    dim = view.snapshot.existing(SpaceEntry, side.space).dimension
    num_queries = queries.vectors.digest.size_bytes // (2 * dim)  # or half as many, as float32
    is_restricted = side.where is not None or side.sample < 1
    condition = 80 * MIB + 150 * max((span.num_chunks for span in ranges), default=0) if is_restricted else 0
    blocks = BLOCK_ROWS * (dim * (2 + 3 * 4) + 2 * 4 * min(num_queries, BLOCK_QUERIES))
    positions = 0 if view.keeps_vectors(side.space) else 8 * sum(part.num_rows for part in parts_of(view, side.space))
    return blocks + num_queries * (2 * 4 * dim + 3 * 16 * k) + positions + condition


def run_truth_scan(
    storage: Storage, task: Task[TruthPayload, NoResult], clock: str, *, threads: int = 1
) -> TaskRecord[NoResult]:
    """Compare queries with the chunks of some ranges. The number of threads changes no byte of the result."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    view = planned_view(storage, payload.side.snapshot)
    space, queries = payload.side.space, files.whole_array(payload.queries.vectors)
    exclusion = _read_exclusion(files, payload.queries, len(queries))
    chunks = _ComparedChunks(view, payload.side, files.whole_array(payload.queries.hidden))
    blocks = (chunks.block(ids, exclusion.kinds) for ids in chunks.blocks_of_ids(payload.ranges))
    metric = view.snapshot.existing(SpaceEntry, space).metric
    ids, distances = exact_topk(queries, blocks, payload.k, metric, exclusion, threads)
    truth = Truth(ids, distances, home_lists(view, space, ids))
    return TaskRecord(task.id, (publish_run_array(storage, payload.run, task.id, truth.stored()),))


def run_truth_merge(storage: Storage, task: Task[MergedTruths, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Merge the results of several tasks, of which two at a time are in memory."""
    del clock
    files = VerifiedFiles(storage)
    truth = reduce(Truth.merged, (stored_truth(files, record) for record in task.payload.results))
    return TaskRecord(task.id, (publish_run_array(storage, task.payload.run, task.id, truth.stored()),))


def _read_exclusion(files: VerifiedFiles, queries: ScanQueries, num_queries: int) -> Exclusion:
    stored = files.whole_array(queries.exclusion)
    num_kinds = len(queries.kinds)
    offsets, stored = np.split(np.array(stored), [(num_kinds + 1) * (num_queries + 1)])
    offsets = offsets.reshape(num_kinds + 1, num_queries + 1)
    bounds, keys = np.split(stored, [2 * offsets[-1, -1]])
    intervals = Intervals(bounds.reshape(-1, 2), offsets[-1])
    return Exclusion(queries.kinds, num_queries, keys, offsets[:-1], intervals)


class _ComparedChunks:
    """The chunks of a side, one block of them in memory."""

    def __init__(self, view: View, side: ScannedSide, hidden: Int64Array) -> None:
        self._view, self._space, self._hidden = view, side.space, hidden
        self._restriction = Restriction.of(view, side.where, side.sample, side.seed)
        self._vectors = view.query_vectors(SELF, side.space)
        self._parts: Coverage = coverage_of(view, parts_of(view, side.space))

    def blocks_of_ids(self, ranges: Sequence[ChunkRange]) -> Iterator[Int64Array]:
        """The ids in some ranges, ascending; a block has ids of several ranges where these are small."""
        waiting = np.empty(0, dtype=np.int64)
        for span in ranges:
            waiting = np.concatenate([waiting, self._ids_in(span)])
            whole = len(waiting) // BLOCK_ROWS * BLOCK_ROWS
            yield from waiting[:whole].reshape(-1, BLOCK_ROWS)
            waiting = waiting[whole:]
        if len(waiting):
            yield waiting

    def block(self, ids: Int64Array, kinds: Sequence[str]) -> Block:
        """Some chunks with their vectors, and their exclusion keys of some kinds."""
        keys = {kind: database_keys(self._view, kind, ids) for kind in kinds}
        return Block(ids, self._view.vectors(self._space, ids), None, keys)

    def _ids_in(self, span: ChunkRange) -> Int64Array:
        """The ids in the range of a documents file, ascending."""
        rows = self._vectors.covered_rows(*span) & self._parts.covered_rows(*span) & self._view.chunks.live_rows(*span)
        if self._restriction is not None:
            rows &= self._restriction.rows_of(self._view.chunks.file("documents", *span))
        ids = span.first_chunk + rows_in(rows)
        if not self._view.is_all_screened(*span):
            ids = ids[self._view.is_screened(ids)]
        if len(self._hidden):
            ids = ids[~np.isin(self._view.chunks.document_ids(ids), self._hidden)]
        return ids
