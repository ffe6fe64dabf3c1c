"""A seeded sample of pending chunks with their texts: what the codebook of a space without stored vectors is trained on.

The sample is drawn by file of chunks (see `seeded_sample`). A task copies the drawn texts of some files into one file of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.stages.embed.pending import PendingRows, rows_of
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.stages.seeded_sample import DrawnFrom, SamplePayload, draw_from, drawn_positions, sample_tasks
from retrodb.stages.transaction import Transaction
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.view import View

_FOLDER = "sample-texts"  # of the run


TEXTS = TaskKind[SamplePayload[PendingRows], NoResult]("embed-sample", 2, NoResult)


@dataclass(frozen=True)
class TextSample:
    """The drawn chunks, in files of the run that are read one after the other."""

    files: tuple[Path, ...]  # columns "id" and "text", by ascending id
    num_rows: int

    def ids(self) -> Iterator[Int64Array]:
        """The chunks of each file, ascending."""
        for file in self.files:
            yield read_table(file, ["id"]).column("id").to_numpy()

    def windows(self, num_rows: int) -> Iterator[pa.Array]:
        """The texts in their order, so many at a time, whatever file they are in."""
        texts = pa.chunked_array([], pa.large_string())
        for file in self.files:
            texts = pa.chunked_array([*texts.chunks, *read_table(file).column("text").chunks], pa.large_string())
            while len(texts) >= num_rows:
                yield texts.slice(0, num_rows).combine_chunks()
                texts = texts.slice(num_rows)
        if len(texts):
            yield texts.combine_chunks()


def draw_texts(
    transaction: Transaction, space: str, pending: Sequence[PendingRows], size: int, seed: int
) -> TextSample:
    """Draw from pending chunks of the database."""
    run = transaction.run
    tasks = sample_tasks(TEXTS, run.id, space, pending, size, seed)
    function = partial(run_text_sample, snapshot=PlannedSnapshot.of(transaction.view))
    records = transaction.run_tasks(tasks, function, unit="chunks")
    files = tuple(run.storage.local(file.path) for record in records for file in record.files)
    return TextSample(files, sum(task.weight for task in tasks))


def run_text_sample(
    storage: Storage, task: Task[SamplePayload[PendingRows], NoResult], clock: str, *, snapshot: PlannedSnapshot
) -> TaskRecord[NoResult]:
    """Copy the drawn texts of some files of chunks into one file of the run.

    Args:
        snapshot: as in `rows_of`.
    """
    del clock
    payload, view = task.payload, planned_view(storage, snapshot)
    ids = np.concatenate([_drawn_of(view, payload.space, file, payload.seed) for file in payload.files])
    texts = view.chunks.texts(ids)
    table = pa.table({"id": pa.array(ids), "text": pa.array(texts, pa.large_string())})
    path = path_of("runs", run=payload.run, file=f"{_FOLDER}/{task.id}.parquet")
    return TaskRecord(task.id, (publish(storage, "runs", path, partial(write_table, table=table)),))


def forget_texts(run: Run) -> None:
    """Delete the drawn texts of a run."""
    for path in run.storage.list(path_of("runs", run=run.id, file=_FOLDER)):
        run.storage.delete(path)


def drawn_ids(view: View, space: str, parts: Sequence[PendingRows], size: int, seed: int) -> Int64Array:
    """(S,) int64, ascending: drawn chunks of a few files. Reads the documents of these files."""
    drawn = [_drawn_of(view, space, file, seed) for file in draw_from(parts, size, seed)]
    return np.concatenate([np.empty(0, np.int64), *drawn])


def _drawn_of(view: View, space: str, file: DrawnFrom[PendingRows], seed: int) -> Int64Array:
    part, first_chunk = file.rows, file.rows.chunks.first_chunk
    rows = rows_of(view.storage, PlannedSnapshot.of(view), space, part)
    return first_chunk + rows.select(drawn_positions(part.num_rows, file.size, seed, first_chunk))
