"""Clusters of near-duplicates from files of pairs, and the tombstones that follow from them.

Only documents that are in a pair, or whose content another document has, can be in a cluster: what is held grows with their
number and not with that of all documents. Pairs are read in blocks, once for each step.

Shapes: `M` documents that can be in a cluster, `E` pairs, `C` documents that are in a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from retrodb.dedup.union_find import Keep, choose_keepers, connected_components
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Float64Array, Int64Array
from retrodb.format.parquet import write_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import Clusters, Pairs, pair_blocks, read_pairs
from retrodb.stages.dedup.near_documents import REASON, DescribedDocuments, read_facts
from retrodb.stages.dedup.near_files import (
    FileList,
    map_near,
    map_numbered,
    near_path,
    publish_array,
    publish_list,
    read_list,
    records_of,
    shard_groups,
)
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View

STAGE_VERSION = 1
EXPANSION = 6  # bytes in memory for a byte of a file of pairs: ids, numbers, labels and facts of the documents
_PENDING_IDS = 1 << 22  # that are sorted at once
CLUSTERS_FILE = "clusters.parquet"
"""In the run's folder: the clusters, schema DUPLICATE_CLUSTERS."""
_REMOVED = "removed"  # ids of the documents that are not kept, ascending

PairBlocks: TypeAlias = Callable[[], Iterable[Pairs]]
"""Reads all pairs again, in blocks."""


@dataclass(frozen=True)
class ClustersPayload:
    """Find the clusters of all pairs."""

    run: str
    snapshot: PlannedSnapshot
    keep: Keep
    has_former_pairs: bool  # whether the pairs of earlier searches count
    new_pairs: str  # path of the list of files of new pairs
    num_equal_files: int


@dataclass(frozen=True)
class TombstonesPayload:
    """Compare the tombstones of a group of shards with the clusters."""

    run: str
    snapshot: PlannedSnapshot
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True)
class ChangedTombstones:
    """What has to be deleted that is not, and what has to come back."""

    tombstones: tuple[Tombstone, ...]


CLUSTERS_OF_PAIRS = TaskKind[ClustersPayload, NoResult]("near-clusters", STAGE_VERSION, NoResult)
TOMBSTONES_OF_CLUSTERS = TaskKind[TombstonesPayload, ChangedTombstones](
    "near-tombstones", STAGE_VERSION, ChangedTombstones
)


@dataclass(frozen=True)
class LinkedDocuments:
    """The documents that are in a pair, or whose content another document has, by ascending id."""

    ids: Int64Array  # (M,) of the first chunk
    num_chunks: Int64Array  # (M,)
    representative: Int64Array  # (M,) the first document (0 .. M-1) of the same content
    is_present: BoolArray  # (M,) some chunk of it is live, or deleted as a near-duplicate only
    num_chars: Int64Array  # (M,)
    added_at: Int64Array  # (M,) microseconds

    def index(self, ids: Int64Array) -> Int64Array:
        """The number (0 .. M-1) of each document, by id."""
        return np.searchsorted(self.ids, ids)

    def num_equal(self) -> int:
        """How many present documents have the same content as an earlier present one."""
        present = self.representative[self.is_present]
        return len(present) - len(np.unique(present))


def cluster_pairs(
    context: Context,
    view: View,
    run: Run,
    keep: Keep,
    documents: DescribedDocuments,
    new_pairs: Sequence[FileRecord],
    *,
    has_former_pairs: bool,
) -> TaskRecord[NoResult]:
    """Find the clusters; CLUSTERS_FILE has them, and the record their counts."""
    listed = publish_list(context.storage, run.id, "pairs", FileList(tuple(file.path for file in new_pairs)))
    payload = ClustersPayload(
        run.id, PlannedSnapshot.of(view), keep, has_former_pairs, listed.path, documents.num_prefixes
    )
    task = CLUSTERS_OF_PAIRS.task(payload, [listed.digest.sha256.hex()])
    pairs_bytes = sum(file.digest.size_bytes for file in [*new_pairs, *view.manifest.files("duplicates")])
    extra_bytes = EXPANSION * pairs_bytes
    [record] = context.engine.run(run, [task], run_clusters, context.progress, extra_bytes=extra_bytes)
    return record


def run_clusters(storage: Storage, task: Task[ClustersPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The clusters, and the documents that are removed."""
    del clock
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    equal = partial(map_numbered, storage, payload.run, "equal", payload.num_equal_files)
    paths = read_list(storage, payload.new_pairs).paths

    def pairs() -> Iterator[Pairs]:
        if payload.has_former_pairs:
            yield from read_pairs(view)
        for path in paths:
            yield from pair_blocks(storage.local(path))

    documents = _read_linked(storage, view, payload.run, equal, pairs)
    clusters = find_clusters(documents, pairs, payload.keep)
    removed, path = clusters.removed, near_path(payload.run, CLUSTERS_FILE)
    files = (
        publish(storage, "runs", path, partial(write_table, table=clusters.table())),
        publish_array(storage, payload.run, _REMOVED, removed),
    )
    counts = {
        "clusters": clusters.num_clusters,
        "removed_documents": len(removed),
        "removed_chunks": int(documents.num_chunks[documents.index(removed)].sum()),
        "equal_documents": documents.num_equal(),
    }
    return TaskRecord(task.id, files, counts=counts)


def _read_linked(
    storage: Storage, view: View, run: str, equal: Callable[[], Iterable[Int64Array]], pairs: PairBlocks
) -> LinkedDocuments:
    def ids() -> Iterator[Int64Array]:
        for of_pairs in pairs():
            yield from (of_pairs.first, of_pairs.second)
        for of_contents in equal():
            yield of_contents.ravel()

    facts = read_facts(storage, run, shard_groups(view), _unique(ids()))
    documents = np.array(facts["document"])
    representative = np.arange(len(documents))
    for block in equal():
        first, repeated = np.searchsorted(documents, block).T
        representative[repeated] = first
    return LinkedDocuments(
        ids=documents,
        num_chunks=facts["num_chunks"].astype(np.int64),
        representative=representative,
        is_present=facts["is_present"].astype(bool),
        num_chars=np.array(facts["num_chars"]),
        added_at=np.array(facts["added_at"]),
    )


def _unique(blocks: Iterable[Int64Array]) -> Int64Array:
    """The distinct values of blocks, ascending."""
    known, pending, size = np.empty(0, np.int64), [np.empty(0, np.int64)], 0
    for block in blocks:
        pending.append(np.unique(block))
        size += len(pending[-1])
        if size > max(_PENDING_IDS, len(known)):
            known, pending, size = np.unique(np.concatenate([known, *pending])), [], 0
    return np.unique(np.concatenate([known, *pending]))


def find_clusters(documents: LinkedDocuments, pairs: PairBlocks, keep: Keep) -> Clusters:
    """The connected components. Documents of equal content are one node, and only present documents connect others."""
    node = documents.representative
    has_present = np.zeros(len(node), dtype=bool)
    has_present[node[documents.is_present]] = True
    edges = (
        np.stack([first, second], axis=1)[has_present[first] & has_present[second]]
        for first, second, _ in _node_pairs(documents, pairs())
    )
    labels = connected_components(len(node), edges)[node]
    present = np.flatnonzero(documents.is_present)
    _, cluster_of, sizes = np.unique(labels[present], return_inverse=True, return_counts=True)
    chosen = present[sizes[cluster_of] > 1]
    labels = labels[chosen]
    kept = choose_keepers(labels, keep, documents.num_chars[chosen], documents.added_at[chosen])
    smallest = choose_keepers(labels, "first", documents.num_chars[chosen], documents.added_at[chosen])
    keeper_of = np.full(len(node), -1)
    keeper_of[node[chosen]] = node[chosen][kept]
    jaccard = _similarity(keeper_of, _node_pairs(documents, pairs()))[node[chosen]]
    ids = documents.ids[chosen]
    return Clusters(ids, ids[smallest], ids[kept], jaccard)


def _node_pairs(
    documents: LinkedDocuments, blocks: Iterable[Pairs]
) -> Iterator[tuple[Int64Array, Int64Array, Float64Array]]:
    """The two nodes, and the similarity, of the pairs of existing documents. Compaction drops documents, but never pairs."""
    for pairs in blocks:
        has_both = np.isin(pairs.first, documents.ids) & np.isin(pairs.second, documents.ids)
        first, second = (
            documents.representative[documents.index(ids[has_both])] for ids in (pairs.first, pairs.second)
        )
        yield first, second, pairs.jaccard[has_both]


def _similarity(keeper_of: Int64Array, blocks: Iterable[tuple[Int64Array, Int64Array, Float64Array]]) -> Float64Array:
    """(M,) the similarity of each node to the one that is kept: 1 to itself, 0 where the two are no pair."""
    similarity = np.where(keeper_of == np.arange(len(keeper_of)), 1.0, 0.0)
    for first, second, jaccard in blocks:
        for node, other in ((first, second), (second, first)):
            is_kept = keeper_of[node] == other
            similarity[node[is_kept]] = jaccard[is_kept]
    return similarity


def changed_tombstones(context: Context, view: View, run: Run, clusters: TaskRecord[NoResult]) -> list[Tombstone]:
    """What has to be deleted that is not, and what has to come back, in all shards."""
    digests, snapshot = [file.digest.sha256.hex() for file in clusters.files], PlannedSnapshot.of(view)
    tasks = [
        TOMBSTONES_OF_CLUSTERS.task(TombstonesPayload(run.id, snapshot, *group), digests, group.num_chunks)
        for group in shard_groups(view)
    ]
    records = context.engine.run(run, tasks, run_tombstones, context.progress)
    return [of_shard for record in records for of_shard in record.result.tombstones]


def run_tombstones(
    storage: Storage, task: Task[TombstonesPayload, ChangedTombstones], clock: str
) -> TaskRecord[ChangedTombstones]:
    """The changes of a group of shards."""
    del clock
    payload = task.payload
    view, removed = planned_view(storage, payload.snapshot), map_near(storage, payload.run, _REMOVED)
    changes: list[Tombstone] = []
    for record in records_of(view, ChunkRange(payload.first_chunk, payload.num_chunks)):
        low, high = np.searchsorted(removed, [record.first_chunk, record.span.end])
        changes += _changes(view, record, removed[low:high] - record.first_chunk)
    return TaskRecord(task.id, result=ChangedTombstones(tuple(changes)))


def _changes(view: View, documents: FileRecord, first_rows: Int64Array) -> Iterator[Tombstone]:
    first, count = documents.span
    should_delete = np.zeros(count, dtype=bool)
    should_delete[view.chunks.layout(documents).rows_of(first_rows)] = True
    is_deleted = view.chunks.tombstones.deleted_by_reason(first, count).get(REASON, np.zeros(count, dtype=bool))
    is_deleted = is_deleted & view.chunks.present_mask(first, count)  # what compaction dropped cannot come back
    for rows, active in ((should_delete & ~is_deleted, True), (is_deleted & ~should_delete, False)):
        if rows.any():
            yield tombstone(first, count, REASON, np.flatnonzero(rows), active=active)
