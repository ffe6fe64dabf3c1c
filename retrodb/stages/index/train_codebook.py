"""Training of a codebook by tasks: this process plans them from sizes, and holds no vector of the sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from retrodb.ann.codebook import FLAT, num_lists_of
from retrodb.ann.grouped_training import (
    MAX_GROUP,
    MAX_POINTS_PER_LIST,
    POINTS_PER_GROUP,
    REFINEMENTS,
    divide_lists,
)
from retrodb.ann.training import CODE_SAMPLE, groups_to_train, new_codebook, note_of_small_sample
from retrodb.config import IndexParams
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Engine
from retrodb.engine.task import NoResult, P, R, Task, TaskRecord
from retrodb.engine.task_memory import memory_of
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import IndexEntry
from retrodb.format.records import FileRecord
from retrodb.memory import require_memory
from retrodb.stages.index.codebook_file import publish_codebook
from retrodb.stages.index.training_files import ListFiles, SampleFiles, SplitFiles, publish_training_list
from retrodb.stages.index.training_tasks import (
    CLUSTER,
    CODEBOOK,
    GROUPS,
    SPLIT,
    TRAIN,
    ClusterPayload,
    CodebookPayload,
    SizesOfGroups,
    SplitPayload,
    TrainedCodebook,
    TrainingParams,
    TrainPayload,
    run_cluster_task,
    run_codebook_task,
    run_groups_task,
    run_split_task,
    run_train_task,
)
from retrodb.stages.transaction import Transaction
from retrodb.store.storage import Storage

PIECE_ROWS = 1 << 17  # that a split task sorts: 131,072 * 384 dimensions * 4 bytes (float32) = 200 MB
ROWS_OF_ONE_PROCESS = 1 << 18  # with fewer vectors, processes take longer to start than they save next to threads
_LEAST_ROWS = 1 << 15  # of a task
_TASKS = 64  # so many, if the rows suffice, have about equal work for each of several processes
_MOST_TASKS = 512  # that train groups


@dataclass(frozen=True)
class TrainingSize:
    """What a training reads and makes."""

    factory: str
    rows: int  # of the sample
    dimension: int

    @property
    def step_bytes(self) -> int:
        """What the largest task holds in addition to `TASK_MEMORY`: vectors as float16 and float32, twice, and the lists."""
        lists = num_lists_of(self.factory)
        if not (groups := groups_to_train(self.factory)):
            return self._rows_bytes(max(MAX_POINTS_PER_LIST * lists, CODE_SAMPLE)) + self._lists_bytes
        of_a_group = MAX_GROUP * -(-2 * self.rows // groups)
        return self._rows_bytes(max(CODE_SAMPLE, PIECE_ROWS, POINTS_PER_GROUP * groups, of_a_group)) + self._lists_bytes

    def check(self, memory_bytes: int, extra_bytes: int = 0) -> None:
        """Raises NotEnoughMemory when a task does not fit into the limit.

        Args:
            extra_bytes: what the process holds in addition, such as the weights of a model.
        """
        least = memory_of(TRAIN.stage).of_task(0, self.step_bytes + extra_bytes)
        require_memory(f"training {self.factory} on {self.rows:,} vectors", least, memory_bytes)

    def _rows_bytes(self, most: int) -> int:
        return min(self.rows, most) * self.dimension * (2 + 4 + 4)

    @property
    def _lists_bytes(self) -> int:
        """The centroids: as they are, in the index, in its bytes, and numbered again."""
        return 4 * 4 * num_lists_of(self.factory) * self.dimension if groups_to_train(self.factory) else 0


@dataclass(frozen=True)
class TrainingResult:
    """A trained codebook, which the transaction adds, and what its entry says of it."""

    digest: str
    num_lists: int
    note: str  # how it deviates from the factory
    assignment_recall: float | None

    def entry(self, params: IndexParams, factory: str) -> IndexEntry:
        """The entry `index/<space>` of the codebook.

        Args:
            factory: that was asked for. The codebook is Flat where its sample was too small for it.
        """
        used = FLAT if self.num_lists == 1 and num_lists_of(factory) > 1 else factory
        return IndexEntry(
            self.digest, used, self.num_lists, self.note, params, assignment_recall=self.assignment_recall
        )


def train_codebook(
    transaction: Transaction, engine: Engine, params: TrainingParams, sample: SampleFiles, dimension: int
) -> TrainingResult:
    """Train a codebook on a sample in files, and add its file to the change.

    A sample too small for the factory gives `Flat`, and says so in the result's `note`.

    Args:
        engine: that runs the steps one after the other, and best shares its processes between them.

    Raises:
        ConfigError: FAISS does not know the factory.
        NotEnoughMemory: a task does not fit into the limit.
    """
    num_rows = sum(sample.rows)
    note = note_of_small_sample(num_rows, params.factory)
    if note or params.factory == FLAT:
        codebook = replace(new_codebook(FLAT, dimension, params.metric), note=note)
        publish_codebook(transaction, params.space, codebook)
        return TrainingResult(codebook.digest, codebook.num_lists, note, None)
    training = _Training(transaction, engine, params, sample, TrainingSize(params.factory, num_rows, dimension))
    record = training.of_many_lists() if groups_to_train(params.factory) else training.of_few_lists()
    transaction.add_files([record])
    return TrainingResult(record.result.digest, record.result.num_lists, "", record.result.assignment_recall)


class _Step(Protocol[P, R]):
    """Runs a task of a training with some threads."""

    def __call__(self, storage: Storage, task: Task[P, R], clock: str, *, threads: int = 1) -> TaskRecord[R]: ...


@dataclass(frozen=True)
class _Training:
    """The steps of a training."""

    transaction: Transaction
    engine: Engine
    params: TrainingParams
    sample: SampleFiles
    size: TrainingSize

    def of_few_lists(self) -> TaskRecord[TrainedCodebook]:
        """One task that reads the sample."""
        task = TRAIN.task(TrainPayload(self.params, self._listed("sample", self.sample)), weight=self.size.rows)
        return self._run([task], run_train_task)[0]

    def of_many_lists(self) -> TaskRecord[TrainedCodebook]:
        """Groups, lists of each group, refinements, and the codebook."""
        sample = self._listed("sample", self.sample)
        first = GROUPS.task(TrainPayload(self.params, sample), weight=self.size.rows)
        rotation, groups = self._run([first], run_groups_task)[0].files
        lists: tuple[int, ...] = ()
        listed: FileRecord | None = None
        for number in range(1 + REFINEMENTS):
            splits = self._run(list(self._split_tasks(rotation, groups, listed)), run_split_task)
            sizes_G: Int64Array = np.array([record.result.sizes for record in splits], dtype=np.int64).sum(axis=0)
            points_G = sizes_G
            if not lists:
                divided = divide_lists(sizes_G, num_lists_of(self.params.factory))
                lists, points_G = tuple(divided.lists_G.tolist()), divided.points_G
            split = self._listed(f"split-{number}", _split_files(splits))
            tasks = list(self._cluster_tasks(rotation, split, lists, points_G, number))
            listed = self._listed(f"lists-{number}", _list_files(lists, self._run(tasks, run_cluster_task)))
        assert listed is not None
        last = CODEBOOK.task(CodebookPayload(self.params, sample, rotation, groups, listed), weight=self.size.rows)
        return self._run([last], run_codebook_task)[0]

    def _split_tasks(
        self, rotation: FileRecord, groups: FileRecord, lists: FileRecord | None
    ) -> Iterator[Task[SplitPayload, SizesOfGroups]]:
        for file, rows in zip(self.sample.files, self.sample.rows, strict=True):
            piece = min(PIECE_ROWS, rows_of_task(self.size.rows))
            for start in range(0, rows, piece):
                stop = min(start + piece, rows)
                payload = SplitPayload(self.params, file, start, stop, rotation, groups, lists)
                yield SPLIT.task(payload, weight=stop - start)

    def _cluster_tasks(
        self, rotation: FileRecord, split: FileRecord, lists: tuple[int, ...], points_G: Int64Array, number: int
    ) -> Iterator[Task[ClusterPayload, NoResult]]:
        points, first_list = points_G.tolist(), 0
        for group in groups_of(range(len(lists)), points.__getitem__, rows_of_task(sum(points))):
            of_lists = lists[group[0] : group[-1] + 1]
            of_points = tuple(points[group[0] : group[-1] + 1])
            trained_on, is_last = of_points if number == 0 else (), number == REFINEMENTS
            payload = ClusterPayload(self.params, rotation, split, group[0], first_list, of_lists, trained_on, is_last)
            yield CLUSTER.task(payload, weight=sum(of_points))
            first_list += sum(of_lists)

    def _listed(self, name: str, files: object) -> FileRecord:
        return publish_training_list(self.transaction.run.storage, self.params.run, name, files)

    def _run(self, tasks: Sequence[Task[P, R]], function: _Step[P, R]) -> list[TaskRecord[R]]:
        extra_bytes = self.size.step_bytes
        threads = self.transaction.context.threads_for(tasks, extra_bytes, self.engine)
        return self.transaction.run_tasks(
            tasks, partial(function, threads=threads), engine=self.engine, extra_bytes=extra_bytes, unit="vectors"
        )


def rows_of_task(rows: int) -> int:
    """Vectors of a task, of so many of a step: neither so many that processes wait for the last task, nor so many tasks."""
    return max(_LEAST_ROWS, min(PIECE_ROWS, rows // _TASKS), rows // _MOST_TASKS)


def _list_files(lists: tuple[int, ...], records: Sequence[TaskRecord[NoResult]]) -> ListFiles:
    centroids, *groups = zip(*(record.files for record in records), strict=True)
    return ListFiles(lists, centroids, groups[0] if groups else ())


def _split_files(records: Sequence[TaskRecord[SizesOfGroups]]) -> SplitFiles:
    vectors, offsets, *lists = zip(*(record.files for record in records), strict=True)
    return SplitFiles(vectors, offsets, lists[0] if lists else ())
