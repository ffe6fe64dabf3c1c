"""Vectors that an index run looks at itself, read in tasks: the training sample, and the canaries.

The sample is drawn by file (see `seeded_sample`). A task copies the drawn vectors of some files into one file of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from retrodb.engine.run import Engine
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array, save_array
from retrodb.format.entries import SpaceEntry
from retrodb.format.kinds import path_of
from retrodb.stages.index.live_parts import MissingRows
from retrodb.stages.index.part_task import planned_rows
from retrodb.stages.index.training_files import SampleFiles
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.seeded_sample import DrawnFrom, SamplePayload, drawn_positions, sample_tasks
from retrodb.stages.transaction import Transaction
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles


@dataclass(frozen=True)
class VectorsPayload:
    """Copy the vectors of some chunks."""

    run: str
    snapshot: PlannedSnapshot
    space: str
    ids: tuple[int, ...]  # of the chunks


SAMPLE = TaskKind[SamplePayload[MissingRows], NoResult]("index-sample", 2, NoResult)
VECTORS = TaskKind[VectorsPayload, NoResult]("index-vectors", 1, NoResult)


def training_sample(
    transaction: Transaction, engine: Engine, space: str, missing: Sequence[MissingRows], size: int, seed: int
) -> SampleFiles:
    """Files (n, D) float16: a seeded sample of the vectors of missing rows of a new index, by file and row.

    Args:
        engine: that runs the tasks.
    """
    run = transaction.run
    tasks = sample_tasks(SAMPLE, run.id, space, missing, size, seed)
    function = partial(run_sample_task, snapshot=PlannedSnapshot.of(transaction.view))
    dimension = transaction.view.snapshot.existing(SpaceEntry, space).dimension
    sample_bytes = 2 * 2 * dimension * max(task.weight for task in tasks)  # float16, by file and as one array
    records = transaction.run_tasks(tasks, function, engine=engine, extra_bytes=sample_bytes, unit="vectors")
    files = tuple(file for record in records for file in record.files)
    return SampleFiles(files, tuple(task.weight for task in tasks))


def run_sample_task(
    storage: Storage, task: Task[SamplePayload[MissingRows], NoResult], clock: str, *, snapshot: PlannedSnapshot
) -> TaskRecord[NoResult]:
    """Copy the drawn vectors of some files into one file of the run.

    Args:
        snapshot: as in `run_index_task`.
    """
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    blocks = []
    for file in payload.files:
        record = file.rows.vectors
        rows = drawn_rows(storage, files, snapshot, payload.space, file, payload.seed)
        blocks.append(files.array(record)[files.rows(record).rank(rows)])
    path = path_of("runs", run=payload.run, file=f"sample/{task.id}.npy")
    sample = np.concatenate(blocks)
    return TaskRecord(task.id, (publish(storage, "runs", path, partial(save_array, array=sample)),))


def drawn_rows(
    storage: Storage,
    files: VerifiedFiles,
    snapshot: PlannedSnapshot,
    space: str,
    file: DrawnFrom[MissingRows],
    seed: int,
) -> Int64Array:
    """(size,) int64, ascending: the rows of a file's range that are drawn."""
    missing = file.rows
    rows = planned_rows(storage, files, snapshot, space, missing.vectors, missing.rows, is_new=True)
    return rows.select(drawn_positions(len(rows), file.size, seed, missing.vectors.first_chunk))


def run_vectors_task(storage: Storage, task: Task[VectorsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Copy the vectors of some chunks, zeros for those that have none, into one file of the run."""
    del clock
    payload = task.payload
    ids = np.array(payload.ids, dtype=np.int64)
    vectors = planned_view(storage, payload.snapshot).vectors(payload.space, ids)
    path = path_of("runs", run=payload.run, file=f"sample/{task.id}.npy")
    return TaskRecord(task.id, (publish(storage, "runs", path, partial(save_array, array=vectors)),))
