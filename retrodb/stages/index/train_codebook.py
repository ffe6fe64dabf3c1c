"""Training of a codebook by tasks: this process plans them from sizes, and holds no vector of the sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from retrodb.ann.codebook import FLAT, Codebook, num_lists_of
from retrodb.ann.grouped_training import (
    MAX_GROUP,
    MAX_POINTS_PER_LIST,
    POINTS_PER_GROUP,
    REFINEMENTS,
    divide_lists,
)
from retrodb.ann.training import CODE_SAMPLE, groups_to_train, new_codebook, note_of_small_sample
from retrodb.engine.groups import groups_of
from retrodb.engine.run import Engine
from retrodb.engine.task import NoResult, P, R, Task, TaskRecord
from retrodb.engine.task_memory import memory_of
from retrodb.format.arrays import Int64Array
from retrodb.format.records import FileRecord
from retrodb.memory import require_memory
from retrodb.stages.index.codebook_file import publish_codebook, stored_codebook
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
_CLUSTER_ROWS = 1 << 17  # of the groups that a task trains, unless that would be more than so many tasks
_MOST_CLUSTER_TASKS = 512
_ROWS_OF_ONE_PROCESS = 1 << 18  # with fewer vectors, to start processes takes longer than the training


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

    codebook: Codebook
    assignment_recall: float | None


def train_codebook(
    transaction: Transaction, params: TrainingParams, sample: SampleFiles, dimension: int
) -> TrainingResult:
    """Train a codebook on a sample in files, and add its file to the change.

    A sample too small for the factory gives `Flat`, and says so in the codebook's `note`.

    Raises:
        ConfigError: FAISS does not know the factory.
        NotEnoughMemory: a task does not fit into the limit.
    """
    num_rows = sum(sample.rows)
    note = note_of_small_sample(num_rows, params.factory)
    codebook = replace(new_codebook(FLAT if note else params.factory, dimension, params.metric), note=note)
    if codebook.ivf is None:
        publish_codebook(transaction, params.space, codebook)
        return TrainingResult(codebook, None)
    del codebook
    size = TrainingSize(params.factory, num_rows, dimension)
    engine = transaction.context.engine
    if num_rows <= _ROWS_OF_ONE_PROCESS:
        engine = engine.with_processes(1)
    with engine.sharing_processes() as shared:
        training = _Training(transaction, shared, params, sample, size)
        record = training.of_many_lists() if groups_to_train(params.factory) else training.of_few_lists()
    transaction.add_files([record])
    codebook = stored_codebook(transaction.run.storage, record.files[0].path)
    return TrainingResult(codebook, record.result.assignment_recall)


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
            tasks = list(self._cluster_tasks(rotation, split, lists, points_G, is_first=number == 0))
            clustered = self._run(tasks, run_cluster_task)
            files = ListFiles(lists, tuple(record.files[0] for record in clustered))
            listed = self._listed(f"lists-{number}", files)
        assert listed is not None
        last = CODEBOOK.task(CodebookPayload(self.params, sample, rotation, groups, listed), weight=self.size.rows)
        return self._run([last], run_codebook_task)[0]

    def _split_tasks(
        self, rotation: FileRecord, groups: FileRecord, lists: FileRecord | None
    ) -> Iterator[Task[SplitPayload, SizesOfGroups]]:
        for file, rows in zip(self.sample.files, self.sample.rows, strict=True):
            for start in range(0, rows, PIECE_ROWS):
                stop = min(start + PIECE_ROWS, rows)
                payload = SplitPayload(self.params, file, start, stop, rotation, groups, lists)
                yield SPLIT.task(payload, weight=stop - start)

    def _cluster_tasks(
        self, rotation: FileRecord, split: FileRecord, lists: tuple[int, ...], points_G: Int64Array, *, is_first: bool
    ) -> Iterator[Task[ClusterPayload, NoResult]]:
        points, first_list = points_G.tolist(), 0
        most = max(_CLUSTER_ROWS, sum(points) // _MOST_CLUSTER_TASKS)
        for group in groups_of(range(len(lists)), points.__getitem__, most):
            of_lists = lists[group[0] : group[-1] + 1]
            of_points = tuple(points[group[0] : group[-1] + 1])
            payload = ClusterPayload(
                self.params, rotation, split, group[0], first_list, of_lists, of_points if is_first else ()
            )
            yield CLUSTER.task(payload, weight=sum(of_points))
            first_list += sum(of_lists)

    def _listed(self, name: str, files: object) -> FileRecord:
        return publish_training_list(self.transaction.run.storage, self.params.run, name, files)

    def _run(self, tasks: Sequence[Task[P, R]], function: _Step[P, R]) -> list[TaskRecord[R]]:
        context, extra_bytes = self.transaction.context, self.size.step_bytes
        threads = (
            context.num_workers if self.size.rows <= _ROWS_OF_ONE_PROCESS else context.threads_for(tasks, extra_bytes)
        )
        return self.transaction.run_tasks(
            tasks, partial(function, threads=threads), engine=self.engine, extra_bytes=extra_bytes, unit="vectors"
        )


def _split_files(records: Sequence[TaskRecord[SizesOfGroups]]) -> SplitFiles:
    vectors, offsets, *lists = zip(*(record.files for record in records), strict=True)
    return SplitFiles(vectors, offsets, lists[0] if lists else ())
