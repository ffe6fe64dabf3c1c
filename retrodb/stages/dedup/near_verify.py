"""The exact similarity of candidate pairs; the similar ones are files of pairs.

The shingle sets of all documents in candidates are computed once, one task per shard, and stored in the run's folder. Then
tasks compare the candidates, each those whose first document is in a range of ids.

Shapes: `E` pairs, `M` documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.leak_rule import LeakRule, parse_rule
from retrodb.dedup.lsh import unique_pairs
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingles import ShingleSets, shingle_sets
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array, growing_array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import PAIRS, Pairs
from retrodb.stages.dedup.near_files import documents_records, map_near, near_path, publish_array, read_list
from retrodb.stages.dedup.near_join import CandidateSample, JoinedBands
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import document_texts
from retrodb.view.view import View

STAGE_VERSION = 2
TASK_PAIRS = 1 << 14  # candidates of a task, until there are MAX_SMALL_TASKS
MAX_SMALL_TASKS = 1 << 10
MAX_TASK_PAIRS = 1 << 20
_BLOCK_CHUNKS = 1 << 16  # chunks that are read at once, unless one document has more: about 20 MB of text
_BLOCK_SHINGLES = 1 << 23  # shingles of the pairs that are compared at once, unless one pair has more: 64 MB

SHINGLE_DTYPE = np.dtype([("shingle", "<u8")])
"""The name tells a purge what the numbers are."""
SET_DTYPE = np.dtype([("document", "<i8"), ("begin", "<i8"), ("end", "<i8")])
"""A document, and which shingles of its shard's file are its own."""


@dataclass(frozen=True)
class ShinglesPayload:
    """Compute the shingle sets of those documents of one shard that are in candidates."""

    run: str
    snapshot: PlannedSnapshot  # that the documents are read from
    documents: str  # path of the list of files of documents
    first_chunk: int
    num_chunks: int
    ngram: int


@dataclass(frozen=True)
class VerifyPayload:
    """Compare the candidates whose first document is in a range of ids."""

    run: str
    snapshot: PlannedSnapshot
    candidates: str  # path of the list of files of candidates
    first: int
    end: int
    jaccard: float


SHINGLES = TaskKind[ShinglesPayload, NoResult]("near-shingles", STAGE_VERSION, NoResult)
VERIFY = TaskKind[VerifyPayload, NoResult]("verify", STAGE_VERSION, NoResult)


def jaccard_rule(jaccard: float) -> LeakRule:
    """The least similarity of a pair. Raises UsageError when it is invalid."""
    return parse_rule(f"jaccard>={jaccard:g}")


def compare_candidates(
    context: Context, view: View, run: Run, params: NearDuplicatesParams, joined: JoinedBands
) -> list[TaskRecord[NoResult]]:
    """Compare all candidates; gives the pairs files in ascending order of their pairs."""
    if not joined.num_pairs:
        return []
    snapshot, files = PlannedSnapshot.of(view), joined.files
    sets = [
        SHINGLES.task(
            ShinglesPayload(run.id, snapshot, joined.documents.path, *record.span, params.ngram),
            [joined.documents.digest.sha256.hex()],
            record.num_chunks,
        )
        for record in documents_records(view)
    ]
    context.engine.run(run, sets, run_shingles, context.progress)
    bounds = [0, *_cuts(joined.samples, _num_tasks(joined.num_pairs)), view.snapshot.next_chunk]
    tasks = [
        VERIFY.task(
            VerifyPayload(run.id, snapshot, files.path, first, end, params.jaccard), [files.digest.sha256.hex()]
        )
        for first, end in pairwise(bounds)
    ]
    return context.engine.run(run, tasks, run_verify, context.progress)


def _num_tasks(num_pairs: int) -> int:
    return max(min(-(-num_pairs // TASK_PAIRS), MAX_SMALL_TASKS), -(-num_pairs // MAX_TASK_PAIRS))


def _cuts(samples: Sequence[CandidateSample], num_tasks: int) -> list[int]:
    """First documents, ascending, that cut the candidates into tasks of about equal size."""
    firsts = np.concatenate([np.array(sample.firsts, np.int64) for sample in samples])
    weights = np.concatenate([np.array(sample.weights, np.int64) for sample in samples])
    order = np.argsort(firsts, kind="stable")
    part = np.cumsum(weights[order]) * num_tasks // weights.sum()
    is_cut = (np.diff(part, prepend=0) > 0) & (part < num_tasks)
    cuts: list[int] = np.unique(firsts[order][is_cut & (firsts[order] > 0)]).tolist()
    return cuts


def run_shingles(storage: Storage, task: Task[ShinglesPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The shingles (SHINGLE_DTYPE) of one shard's documents in candidates, and which are whose (SET_DTYPE)."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    ids = _documents(storage, payload)
    sizes = [np.zeros(1, np.int64)]

    def write(local: Path) -> None:
        with growing_array(local, SHINGLE_DTYPE) as append:
            for first, end in pairwise(_blocks(_num_chunks(view, payload, ids), _BLOCK_CHUNKS)):
                sets = shingle_sets(document_texts(view.chunks, ids[first:end]), payload.ngram)
                append(sets.keys.view(SHINGLE_DTYPE))
                sizes.append(sets.sizes())

    shingles = publish(storage, "runs", near_path(payload.run, f"shingles/{payload.first_chunk}.npy"), write)
    bounds = np.cumsum(np.concatenate(sizes))
    sets = np.empty(len(ids), SET_DTYPE)
    sets["document"], sets["begin"], sets["end"] = ids, bounds[:-1], bounds[1:]
    return TaskRecord(task.id, (shingles, publish_array(storage, payload.run, f"sets/{payload.first_chunk}", sets)))


def _documents(storage: Storage, payload: ShinglesPayload) -> Int64Array:
    """The documents of a shard that are in candidates, ascending."""
    parts = [np.empty(0, np.int64)]
    for path in read_list(storage, payload.documents).paths:
        documents = map_array(storage.local(path))
        low, high = np.searchsorted(documents, [payload.first_chunk, payload.first_chunk + payload.num_chunks])
        parts.append(np.array(documents[low:high]))
    return np.unique(np.concatenate(parts))


def _num_chunks(view: View, payload: ShinglesPayload, ids: Int64Array) -> Int64Array:
    """(M,) chunks of documents of a shard."""
    layout = view.chunks.layout(view.chunks.file("documents", payload.first_chunk, payload.num_chunks))
    return layout.num_chunks[np.searchsorted(layout.first_row, ids - payload.first_chunk)]


def _blocks(sizes: Int64Array, block_size: int) -> list[int]:
    """Where blocks of about a size begin in a sequence of things with sizes, and the end."""
    is_first = np.diff(np.cumsum(sizes) // block_size, prepend=-1) > 0
    return [*np.flatnonzero(is_first).tolist(), len(sizes)]


def run_verify(storage: Storage, task: Task[VerifyPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """A file of the pairs of a range that are as similar as asked; none when there are no such pairs."""
    del clock
    payload = task.payload
    candidates = _candidates(storage, payload)
    shards = documents_records(planned_view(storage, payload.snapshot))
    rule, similar = jaccard_rule(payload.jaccard), [Pairs.none()]
    sets = _StoredSets(storage, payload.run, shards, np.unique(candidates))
    for first, end in pairwise(_blocks(sets.sizes(candidates).sum(axis=1), _BLOCK_SHINGLES)):
        pairs = candidates[first:end]
        ids, numbers = np.unique(pairs, return_inverse=True)
        intersection, union = intersection_and_union(numbers.reshape(-1, 2), sets.read(ids))
        chosen = (intersection > 0) & rule.is_reached(intersection, union)
        similar.append(Pairs(pairs[chosen, 0], pairs[chosen, 1], intersection[chosen] / union[chosen]))
    result = Pairs.concat(similar)
    counts = {"compared": len(candidates), "similar": len(result.first)}
    if not len(result.first):
        return TaskRecord(task.id, counts=counts)
    path = path_of("duplicates", name=PAIRS, task=task.id)
    file = publish(storage, "duplicates", path, partial(write_table, table=result.table()), name=PAIRS)
    return TaskRecord(task.id, (file,), counts=counts)


def _candidates(storage: Storage, payload: VerifyPayload) -> Int64Array:
    """(E, 2) the candidates of a range, ascending: only these rows of the files are read."""
    parts = [np.empty((0, 2), np.int64)]
    for path in read_list(storage, payload.candidates).paths:
        pairs = map_array(storage.local(path))
        low, high = np.searchsorted(pairs[:, 0], [payload.first, payload.end])
        parts.append(np.array(pairs[low:high]))
    return unique_pairs(np.concatenate(parts))


class _StoredSets:
    """The shingle sets of some documents, read from the files of their shards when they are needed."""

    def __init__(self, storage: Storage, run: str, shards: Sequence[FileRecord], ids: Int64Array) -> None:
        """
        Args:
            ids: (M,) ascending.
        """
        self._storage, self._run = storage, run
        self._shards = [shard for shard in shards if len(_inside(ids, shard))]
        parts = [np.empty(0, SET_DTYPE)]
        for shard in self._shards:
            of_shard = map_near(storage, run, f"sets/{shard.first_chunk}")
            parts.append(of_shard[np.searchsorted(of_shard["document"], _inside(ids, shard))])
        self._sets = np.concatenate(parts)

    def sizes(self, ids: Int64Array) -> Int64Array:
        """The number of shingles of each document, in the shape of `ids`."""
        sets = self._sets[np.searchsorted(self._sets["document"], ids)]
        return np.asarray(sets["end"] - sets["begin"])

    def read(self, ids: Int64Array) -> ShingleSets:
        """The sets of documents, ascending; without the fields that need words."""
        parts = [np.empty(0, np.uint64)]
        for shard in self._shards:
            sets = self._sets[np.searchsorted(self._sets["document"], _inside(ids, shard))]
            if len(sets):
                shingles = map_near(self._storage, self._run, f"shingles/{shard.first_chunk}")["shingle"]
                parts += [shingles[begin:end] for _, begin, end in sets.tolist()]
        none = np.zeros(len(ids), np.int64)
        offsets = np.concatenate(([0], np.cumsum(self.sizes(ids))))
        return ShingleSets(np.concatenate(parts), offsets, none.view(np.uint64), none)


def _inside(ids: Int64Array, shard: FileRecord) -> Int64Array:
    """Those of ascending ids that are of a shard."""
    low, high = np.searchsorted(ids, [shard.first_chunk, shard.span.end])
    return ids[low:high]
