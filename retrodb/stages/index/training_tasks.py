"""The tasks of a training. Few lists are one task. Of many lists, each step of `ann/grouped_training.py` is a group of tasks.

=============  ====================================================================================================
task           gives
=============  ====================================================================================================
index-train    a whole codebook, of few lists
index-groups   the rotation, and groups from a small sample
index-split    the vectors of a piece of the sample, sorted by group
index-cluster  the lists of some groups: trained on their vectors, or refined; the last time in leaf order
index-codebook the codebook, from the lists of all groups
=============  ====================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from retrodb.ann.assignment_recall import with_enough_groups
from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.ann.grouped_training import (
    POINTS_PER_GROUP,
    GroupedCentroids,
    evenly_spread,
    finish_group,
    refine_lists,
    refining_lists,
    train_groups,
    train_lists,
)
from retrodb.ann.kmeans import nearest_centroid
from retrodb.ann.metric import check_vectors
from retrodb.ann.training import (
    CODE_SAMPLE,
    finish_codebook,
    groups_to_train,
    new_codebook,
    train,
    train_rotation,
)
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Float32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.index.training_files import (
    ListFiles,
    SampleFiles,
    SplitFiles,
    SplitSample,
    StoredSample,
    publish_training_array,
    read_training_list,
    training_path,
)
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles


@dataclass(frozen=True)
class TrainingParams:
    """What is trained."""

    run: str  # id of the run that stores the files
    space: str
    factory: str
    metric: Metric
    seed: int


@dataclass(frozen=True)
class TrainPayload:
    """Train on a whole sample: a codebook of few lists, or groups."""

    params: TrainingParams
    sample: FileRecord  # a list: SampleFiles


@dataclass(frozen=True)
class SplitPayload:
    """Sort some rows of one file of the sample by group."""

    params: TrainingParams
    file: FileRecord
    first_row: int
    stop_row: int
    rotation: FileRecord
    groups: FileRecord
    lists: FileRecord | None  # a list: ListFiles; None: no lists yet


@dataclass(frozen=True)
class ClusterPayload:
    """Train or refine the lists of neighbouring groups."""

    params: TrainingParams
    rotation: FileRecord
    split: FileRecord  # a list: SplitFiles
    first_group: int
    first_list: int
    lists: tuple[int, ...]  # of each group
    points: tuple[int, ...]  # of each group's vectors that its lists are trained on; empty: the lists are refined
    is_last: bool  # the lists are put into leaf order, and the groups where their lists are


@dataclass(frozen=True)
class CodebookPayload:
    """Make the codebook."""

    params: TrainingParams
    sample: FileRecord  # a list: SampleFiles
    rotation: FileRecord
    groups: FileRecord
    lists: FileRecord  # a list: ListFiles


@dataclass(frozen=True)
class SizesOfGroups:
    """How many vectors of a piece of the sample each group has."""

    sizes: tuple[int, ...]


@dataclass(frozen=True)
class TrainedCodebook:
    """The codebook in the file of a task."""

    digest: str
    num_lists: int
    assignment_recall: float | None  # None: the assignment is exact


TRAIN = TaskKind[TrainPayload, TrainedCodebook]("index-train", 2, TrainedCodebook)
GROUPS = TaskKind[TrainPayload, NoResult]("index-groups", 1, NoResult)
SPLIT = TaskKind[SplitPayload, SizesOfGroups]("index-split", 1, SizesOfGroups)
CLUSTER = TaskKind[ClusterPayload, NoResult]("index-cluster", 2, NoResult)
CODEBOOK = TaskKind[CodebookPayload, TrainedCodebook]("index-codebook", 2, TrainedCodebook)


def run_train_task(
    storage: Storage, task: Task[TrainPayload, TrainedCodebook], clock: str, *, threads: int = 1
) -> TaskRecord[TrainedCodebook]:
    """Train a codebook of few lists. The number of threads does not change its bytes."""
    del clock
    params, sample = task.payload.params, _sample(storage, task.payload.sample)
    codebook = train(sample, params.factory, params.seed, params.metric, threads)
    return _publish_codebook(storage, task, params, codebook, sample, threads)


def run_groups_task(
    storage: Storage, task: Task[TrainPayload, NoResult], clock: str, *, threads: int = 1
) -> TaskRecord[NoResult]:
    """Train the rotation and the groups; its files are a FAISS index of which nothing else is trained, and (G, D) float32."""
    del clock
    params, sample = task.payload.params, _sample(storage, task.payload.sample)
    codebook = new_codebook(params.factory, sample.shape[1], params.metric)
    train_rotation(codebook, check_vectors(sample[evenly_spread(CODE_SAMPLE, len(sample))], codebook.dim))
    num_groups = groups_to_train(params.factory)
    points = _rotated(codebook, sample[evenly_spread(num_groups * POINTS_PER_GROUP, len(sample))], threads)
    groups_GD = train_groups(points, num_groups, params.seed, params.metric, threads)
    data, path = codebook.serialize(), training_path(params.run, f"{task.id}-rotation.faiss")
    rotation = publish(storage, "runs", path, lambda local: _write(local, data))
    return TaskRecord(task.id, (rotation, publish_training_array(storage, params.run, f"{task.id}-groups", groups_GD)))


def run_split_task(
    storage: Storage, task: Task[SplitPayload, SizesOfGroups], clock: str, *, threads: int = 1
) -> TaskRecord[SizesOfGroups]:
    """Sort vectors of the sample by group. Their group is the nearest, or that of their nearest list where there are lists."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    params, groups_GD = payload.params, files.whole_array(payload.groups)
    vectors = files.array(payload.file)[payload.first_row : payload.stop_row]
    rotated = _rotated(_rotation(storage, payload.rotation), vectors, threads)
    lists_S: Int64Array | None = None
    if payload.lists is None:
        group_S = nearest_centroid(rotated, groups_GD, params.metric, threads)
    else:
        trained = _trained(storage, payload.groups, payload.lists)
        lists_S = refining_lists(rotated, trained, params.metric, threads)
        group_S = np.searchsorted(np.cumsum(trained.lists_G), lists_S, side="right")
    order, sizes_G = np.argsort(group_S, kind="stable"), np.bincount(group_S, minlength=len(groups_GD))
    arrays = {"vectors": vectors[order], "offsets": np.concatenate([[0], np.cumsum(sizes_G)]).astype(np.int64)}
    if lists_S is not None:
        arrays["lists"] = lists_S[order].astype(np.int32)
    written = tuple(
        publish_training_array(storage, params.run, f"{task.id}-{name}", array) for name, array in arrays.items()
    )
    return TaskRecord(task.id, written, SizesOfGroups(tuple(sizes_G.tolist())))


def run_cluster_task(
    storage: Storage, task: Task[ClusterPayload, NoResult], clock: str, *, threads: int = 1
) -> TaskRecord[NoResult]:
    """Train or refine the lists of some groups; its file is (l, D) float32, group by group. The last time it has a second one.

    That is (g, D) float32, of the groups that have lists.
    """
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    params, codebook = payload.params, _rotation(storage, payload.rotation)
    split = SplitSample(
        files,
        read_training_list(files, SplitFiles, payload.split),
        payload.first_group,
        payload.first_group + len(payload.lists),
    )
    none, first_list = np.empty((0, codebook.rotated_dim), np.float32), payload.first_list
    centroids, groups = [none], [none]
    for number, num_lists in enumerate(payload.lists):
        group = payload.first_group + number
        if num_lists and payload.points:
            positions = evenly_spread(payload.points[number], split.size(group))
            points = _rotated(codebook, split.vectors(group, positions), threads)
            centroids.append(train_lists(points, num_lists, params.seed, group, params.metric, threads))
        elif num_lists:
            blocks = (
                (_rotated(codebook, vectors, threads), lists.astype(np.int64) - first_list)
                for vectors, lists in split.blocks(group)
            )
            centroids.append(refine_lists(blocks, num_lists, codebook.rotated_dim, params.metric))
        if num_lists and payload.is_last:
            centroids[-1], group_1D = finish_group(centroids[-1], params.metric)
            groups.append(group_1D)
        first_list += num_lists
    arrays = {"lists": centroids, **({"groups": groups} if payload.is_last else {})}
    return TaskRecord(
        task.id,
        tuple(
            publish_training_array(storage, params.run, f"{task.id}-{name}", np.concatenate(array))
            for name, array in arrays.items()
        ),
    )


def run_codebook_task(
    storage: Storage, task: Task[CodebookPayload, TrainedCodebook], clock: str, *, threads: int = 1
) -> TaskRecord[TrainedCodebook]:
    """Train the codes' quantizer around the lists, and publish the codebook."""
    del clock
    payload, sample = task.payload, _sample(storage, task.payload.sample)
    params = payload.params
    trained = _trained(storage, payload.groups, payload.lists)
    codebook = _open_rotation(storage, payload.rotation)
    rotated = _rotated(codebook, sample[evenly_spread(CODE_SAMPLE, len(sample))], threads)
    codebook = finish_codebook(codebook, trained, rotated, threads)
    return _publish_codebook(storage, task, params, codebook, sample, threads)


def _sample(storage: Storage, listed: FileRecord) -> StoredSample:
    files = VerifiedFiles(storage)
    return StoredSample(files, read_training_list(files, SampleFiles, listed))


def _rotated(codebook: Codebook, vectors_SD: VectorArray, threads: int) -> Float32Array:
    return codebook.transform(check_vectors(vectors_SD, codebook.dim, where="training sample"), threads)


def _open_rotation(storage: Storage, record: FileRecord) -> Codebook:
    """The codebook of which only the rotation is trained."""
    return load_codebook(VerifiedFiles(storage).open(record).read_bytes())


@lru_cache(maxsize=1)
def _rotation(storage: Storage, record: FileRecord) -> Codebook:
    """The same, opened once per process, for tasks that train nothing of it."""
    return _open_rotation(storage, record)


@lru_cache(maxsize=1)
def _trained(storage: Storage, groups: FileRecord, listed: FileRecord) -> GroupedCentroids:
    """The lists of all groups, read once per process."""
    files = VerifiedFiles(storage)
    lists = read_training_list(files, ListFiles, listed)
    centroids_LD = np.concatenate([files.whole_array(record) for record in lists.centroids])
    groups_GD, lists_G = files.whole_array(groups).copy(), np.array(lists.lists, dtype=np.int64)
    if lists.groups:
        groups_GD[lists_G > 0] = np.concatenate([files.whole_array(record) for record in lists.groups])
    return GroupedCentroids(groups_GD, lists_G, centroids_LD)


def _publish_codebook(
    storage: Storage,
    task: Task[TrainPayload, TrainedCodebook] | Task[CodebookPayload, TrainedCodebook],
    params: TrainingParams,
    codebook: Codebook,
    sample: StoredSample,
    threads: int,
) -> TaskRecord[TrainedCodebook]:
    codebook, recall = with_enough_groups(codebook, sample, threads)
    data, path = codebook.serialize(), path_of("codebooks", name=params.space, digest=codebook.digest)
    file = publish(storage, "codebooks", path, lambda local: _write(local, data), name=params.space)
    return TaskRecord(task.id, (file,), TrainedCodebook(codebook.digest, codebook.num_lists, recall))


def _write(local: Path, data: bytes) -> None:
    local.write_bytes(data)
