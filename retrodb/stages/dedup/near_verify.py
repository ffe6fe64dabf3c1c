"""The exact similarity of candidate pairs, one task per range of documents; the similar ones are files of pairs.

Shapes: `E` pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.leak_rule import LeakRule, parse_rule
from retrodb.dedup.lsh import unique_pairs
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingles import shingle_sets
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array, map_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import PAIRS, Pairs
from retrodb.stages.dedup.near_documents import read_facts
from retrodb.stages.dedup.near_files import read_list, shard_groups
from retrodb.stages.dedup.near_join import CandidateSample, JoinedBands
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import document_texts
from retrodb.view.view import View

STAGE_VERSION = 2
TASK_PAIRS = 1 << 14  # candidates of a task, until there are MAX_SMALL_TASKS
MAX_SMALL_TASKS = 1 << 10
MAX_TASK_PAIRS = 1 << 20
_BLOCK_CHUNKS = 1 << 16  # chunks that are read at once, unless one pair has more: about 20 MB of text


@dataclass(frozen=True)
class VerifyPayload:
    """Compare the candidates whose first document is in a range of ids."""

    run: str
    snapshot: int  # that the documents are read from
    candidates: str  # path of the list of files of candidates
    first: int
    end: int
    ngram: int
    jaccard: float


VERIFY = TaskKind[VerifyPayload, NoResult]("verify", STAGE_VERSION, NoResult)


def jaccard_rule(jaccard: float) -> LeakRule:
    """The least similarity of a pair. Raises UsageError when it is invalid."""
    return parse_rule(f"jaccard>={jaccard:g}")


def compare_candidates(
    context: Context, view: View, run: Run, params: NearDuplicatesParams, joined: JoinedBands
) -> list[TaskRecord[NoResult]]:
    """Compare all candidates; gives the pairs files in ascending order of their pairs."""
    end = int(view.snapshot.next_chunk)
    bounds = [0, *_cuts(joined.samples, _num_tasks(joined.num_pairs)), end] if joined.num_pairs else []
    tasks = [
        VERIFY.task(
            VerifyPayload(run.id, view.snapshot.number, joined.files.path, first, end, params.ngram, params.jaccard),
            [joined.files.digest.sha256.hex()],
        )
        for first, end in pairwise(bounds)
    ]
    return context.engine.run(run, tasks, run_verify, context.progress)


def _num_tasks(num_pairs: int) -> int:
    return max(min(-(-num_pairs // TASK_PAIRS), MAX_SMALL_TASKS), -(-num_pairs // MAX_TASK_PAIRS))


def _cuts(samples: Sequence[CandidateSample], num_tasks: int) -> list[int]:
    """First documents, ascending, that cut the candidates into tasks of about equal size."""
    firsts = np.concatenate([np.array(sample.firsts, np.int64) for sample in samples])
    weights = np.concatenate([np.full(len(sample.firsts), sample.weight) for sample in samples])
    order = np.argsort(firsts, kind="stable")
    part = np.cumsum(weights[order]) * num_tasks // weights.sum()
    is_cut = (np.diff(part, prepend=0) > 0) & (part < num_tasks)
    cuts: list[int] = np.unique(firsts[order][is_cut & (firsts[order] > 0)]).tolist()
    return cuts


def run_verify(storage: Storage, task: Task[VerifyPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """A file of the pairs of a range that are as similar as asked; none when there are no such pairs."""
    del clock
    payload = task.payload
    candidates = _candidates(storage, payload)
    view, rule = Context(storage).view(payload.snapshot), jaccard_rule(payload.jaccard)
    similar = Pairs.none()
    for first, end in pairwise(_blocks(storage, view, payload.run, candidates)):
        pairs = candidates[first:end]
        ids, numbers = np.unique(pairs, return_inverse=True)
        sets = shingle_sets(document_texts(view.chunks, ids), payload.ngram)
        intersection, union = intersection_and_union(numbers.reshape(-1, 2), sets)
        chosen = (intersection > 0) & rule.is_reached(intersection, union)
        similar = similar.concat(Pairs(pairs[chosen, 0], pairs[chosen, 1], intersection[chosen] / union[chosen]))
    counts = {"compared": len(candidates), "similar": len(similar.first)}
    if not len(similar.first):
        return TaskRecord(task.id, counts=counts)
    path = path_of("duplicates", name=PAIRS, task=task.id)
    file = publish(storage, "duplicates", path, partial(write_table, table=similar.table()), name=PAIRS)
    return TaskRecord(task.id, (file,), counts=counts)


def _candidates(storage: Storage, payload: VerifyPayload) -> Int64Array:
    """(E, 2) the candidates of a range, ascending: only these rows of the files are read."""
    parts = [np.empty((0, 2), np.int64)]
    for path in read_list(storage, payload.candidates).paths:
        pairs = map_array(storage.local(path))
        low, high = np.searchsorted(pairs[:, 0], [payload.first, payload.end])
        parts.append(np.array(pairs[low:high]))
    return unique_pairs(np.concatenate(parts))


def _blocks(storage: Storage, view: View, run: str, pairs: Int64Array) -> list[int]:
    """The pairs at which blocks begin whose documents are read at once, and the end."""
    facts = read_facts(storage, run, shard_groups(view), np.unique(pairs))
    num_chunks = facts["num_chunks"][np.searchsorted(facts["document"], pairs)].sum(axis=1, dtype=np.int64)
    is_first = np.diff(np.cumsum(num_chunks) // _BLOCK_CHUNKS, prepend=-1) > 0
    return [*np.flatnonzero(is_first).tolist(), len(pairs)]
