"""The tasks that measure drift: how long the lists of old parts are, and how well a codebook fits new parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.ann.drift import CANARY_K, residual, truth_in_part
from retrodb.ann.truth import Truth
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.part_files import FILLED_FILE, OFFSETS_FILE
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.index.codebook_file import codebook_of_tasks
from retrodb.stages.index.live_parts import PartFiles, open_files
from retrodb.stages.transaction import Transaction
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles

_SIZES_BYTES = 64 << 20  # of the offsets that a task adds up
_MIN_FILE_BYTES = 128 << 10  # what a file counts at least, so that a task reads at most 512 files
_MEASURED_ROWS = 1 << 17  # whose codes a task reads, or more where the process reads a codebook of more lists first
_MIN_PART_ROWS = 1 << 13

StoredTruth = tuple[tuple[tuple[int, int, float], ...], ...]
"""For each canary (chunk, list, distance) of its known neighbours; distances have the fewest digits that round-trip."""


@dataclass(frozen=True)
class ListSizesPayload:
    """Add up the lists of some parts."""

    run: str  # id of the run that stores the sizes
    num_lists: int  # of the codebook, which is that of all parts
    parts: tuple[tuple[FileRecord, FileRecord], ...]  # of each: the lists that are not empty, and where they begin


@dataclass(frozen=True)
class NewPartsPayload:
    """Measure some new parts."""

    run: str
    codebook: str  # path
    parts: tuple[PartFiles, ...]
    canaries: tuple[int, ...]  # chunks
    vectors: FileRecord | None  # of the canaries, (C, D) float16; None without canaries


@dataclass(frozen=True)
class PartsDrift:
    """How well a codebook fits some parts."""

    residuals: tuple[float, ...]  # of each part
    nearest: StoredTruth  # of the canaries in these parts


@dataclass(frozen=True)
class CanariesPayload:
    """Measure the recall of the canaries."""

    codebook: str  # path
    vectors: FileRecord  # of the canaries, (C, D) float16
    nearest: StoredTruth  # of the canaries in all parts
    nprobe: int  # lists that a search reads


@dataclass(frozen=True)
class CanaryRecall:
    """The fraction of the canaries' neighbours in the lists that a search reads."""

    recall: float | None  # None: no canary has a neighbour


LIST_SIZES = TaskKind[ListSizesPayload, NoResult]("index-lists", 2, NoResult)
NEW_PARTS = TaskKind[NewPartsPayload, PartsDrift]("index-drift", 2, PartsDrift)
CANARIES = TaskKind[CanariesPayload, CanaryRecall]("index-canaries", 1, CanaryRecall)


def sizes_of_lists(
    context: Context, run: Run, parts: Sequence[PartFiles], num_lists: int, engine: Engine | None = None
) -> Int64Array:
    """(L,) int64: vectors in each list of the codebook, over all parts.

    Args:
        engine: another one than the context's.
    """
    files = [(_file_of(part, FILLED_FILE), _file_of(part, OFFSETS_FILE)) for part in parts]
    groups = groups_of(files, lambda pair: max(pair[1].digest.size_bytes, _MIN_FILE_BYTES), _SIZES_BYTES)
    tasks = [LIST_SIZES.task(ListSizesPayload(run.id, num_lists, group), weight=len(group)) for group in groups]
    sizes = np.zeros(num_lists, dtype=np.int64)
    for record in (engine or context.engine).run(run, tasks, run_list_sizes, context.progress, unit="parts"):
        sizes += map_array(run.storage.local(record.files[0].path))
    return sizes


def _file_of(part: PartFiles, name: str) -> FileRecord:
    [record] = [record for record in part.records if record.path.endswith(f"/{name}")]
    return record


def measure_parts(
    transaction: Transaction,
    engine: Engine,
    codebook: str,
    num_lists: int,
    extra_bytes: int,
    parts: Sequence[PartFiles],
    canaries: Int64Array,
    vectors: FileRecord | None,
) -> list[PartsDrift]:
    """Measure new parts. Arguments are those of the payload.

    Args:
        num_lists: of the codebook, which each process reads.
        extra_bytes: what a process holds of the codebook.
    """
    most = max(_MEASURED_ROWS, num_lists)
    tasks = [
        NEW_PARTS.task(
            NewPartsPayload(transaction.run.id, codebook, group, tuple(canaries.tolist()), vectors),
            weight=sum(part.num_rows for part in group),
        )
        for group in groups_of(parts, lambda part: max(part.num_rows, _MIN_PART_ROWS), most)
    ]
    records = transaction.run_tasks(tasks, run_new_parts, engine=engine, extra_bytes=extra_bytes, unit="vectors")
    return [record.result for record in records]


def run_list_sizes(storage: Storage, task: Task[ListSizesPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Add up the lists of some parts; its file is (L,) int64."""
    del clock
    files = VerifiedFiles(storage)
    sizes = np.zeros(task.payload.num_lists, dtype=np.int64)
    for filled, offsets in task.payload.parts:
        sizes[files.whole_array(filled)] += np.diff(files.whole_array(offsets))
    path = path_of("runs", run=task.payload.run, file=f"drift/{task.id}.npy")
    return TaskRecord(task.id, (publish(storage, "runs", path, partial(save_array, array=sizes)),))


def run_new_parts(storage: Storage, task: Task[NewPartsPayload, PartsDrift], clock: str) -> TaskRecord[PartsDrift]:
    """Measure some parts: the residual of each, and the nearest neighbours of the canaries in all of them."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    codebook = codebook_of_tasks(storage.url, payload.codebook)
    canaries = np.array(payload.canaries, dtype=np.int64)
    truth, residuals = Truth.empty(len(canaries), CANARY_K), []
    for part_files in payload.parts:
        part = open_files(files, part_files)
        residuals.append(residual(part, codebook))
        if payload.vectors is not None:
            vectors = files.whole_array(payload.vectors).astype(np.float32)
            ids = part_files.span.first_chunk + part_files.row_set(files).present
            truth = truth.merged(truth_in_part(vectors, canaries, part, ids))
    return TaskRecord(task.id, result=PartsDrift(tuple(residuals), dump_truth(truth)))


def run_canaries(storage: Storage, task: Task[CanariesPayload, CanaryRecall], clock: str) -> TaskRecord[CanaryRecall]:
    """Measure the recall of the canaries that have a vector: compaction may have dropped some."""
    del clock
    payload = task.payload
    vectors = VerifiedFiles(storage).whole_array(payload.vectors).astype(np.float32)
    has_vector: BoolArray = np.asarray(vectors.any(axis=1))
    if not has_vector.any():
        return TaskRecord(task.id, result=CanaryRecall(None))
    truth = read_truth(payload.nearest, len(vectors))
    of_these = Truth(truth.ids_QK[has_vector], truth.distances_QK[has_vector], truth.lists_QK[has_vector])
    codebook = codebook_of_tasks(storage.url, payload.codebook)
    return TaskRecord(task.id, result=CanaryRecall(of_these.recall(vectors[has_vector], codebook, payload.nprobe)))


def read_truth(stored: StoredTruth, num_canaries: int) -> Truth:
    """What is known of the canaries, as arrays."""
    truth = Truth.empty(num_canaries, CANARY_K)
    for row, neighbours in enumerate(stored):
        for rank, (chunk, list_, distance) in enumerate(neighbours):
            truth.ids_QK[row, rank], truth.lists_QK[row, rank] = chunk, list_
            truth.distances_QK[row, rank] = distance
    return truth


def dump_truth(truth: Truth) -> StoredTruth:
    """What is known of the canaries, as an entry or a record has it."""
    rows = zip(truth.ids_QK.tolist(), truth.lists_QK.tolist(), truth.distances_QK, strict=True)
    return tuple(
        tuple((id_, list_, float(str(d))) for id_, list_, d in zip(*row, strict=True) if id_ >= 0) for row in rows
    )
