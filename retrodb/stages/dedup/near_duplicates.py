"""Stage dedup, inside the corpus: of documents that are nearly the same one is kept.

The MinHash bands of every shard are hashed once and stored as a sorted run. A new shard is joined with the runs of all shards.
Candidates are compared exactly, and all similar pairs are stored. So clusters follow from the documents that are in the
database now: when a keeper is deleted, another document of its cluster comes back.

Documents of equal content are one node of the graph, and the first of them represents all in the join. So they are always
found, even when they are too short for a shingle, and do not fill up the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.shingles import check_ngram
from retrodb.dedup.union_find import Keep
from retrodb.errors import UsageError
from retrodb.format.entries import DuplicatesEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import ChunkRange
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import CLUSTERS, PAIRS, Clusters, Documents, Pairs, read_documents, read_pairs
from retrodb.stages.dedup.near_join import NewPairs, bands_files, jaccard_rule, join_new_shards, open_search
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

REASON = "near-duplicate"
ENTRY = "near"


@dataclass(frozen=True)
class NearDuplicatesResult:
    """What a search for near-duplicates gave."""

    snapshot: int  # the new snapshot, or the one where nothing was new
    num_documents: int  # that no other reason deletes
    num_hashed_documents: int  # of new shards; the others have their bands already
    num_compared_pairs: int  # candidates, compared exactly
    num_similar_pairs: int  # of these, as similar as asked
    num_equal_documents: int  # documents with the same content as an earlier one
    num_clusters: int  # of two or more documents, in the whole database
    num_removed_documents: int  # for this reason, in the whole database
    num_removed_chunks: int
    num_hot_buckets: int  # buckets with so many documents that only the pairs with the first one were compared
    expected_miss: float  # fraction of the similar pairs that the bands miss on average
    dry_run: bool = False


@dataclass(frozen=True)
class NearDuplicatesPlan:
    """What a search for near-duplicates is going to delete and to bring back."""

    view: View
    params: NearDuplicatesParams
    join: NewPairs
    clusters: Clusters
    tombstones: tuple[Tombstone, ...]
    keeps_pairs: bool  # pairs of the last search stay valid
    has_changes: bool
    result: NearDuplicatesResult  # of a dry run


def run_near_duplicates(
    context: Context, params: NearDuplicatesParams, *, dry_run: bool = False
) -> NearDuplicatesResult:
    """Keep one of the documents that are alike, and store the clusters.

    Raises:
        UsageError: for invalid parameters.
        ConflictError: another search was committed meanwhile.
    """
    plan = plan_near_duplicates(context, params)
    return plan.result if dry_run else execute_near_duplicates(context, plan)


def plan_near_duplicates(context: Context, params: NearDuplicatesParams) -> NearDuplicatesPlan:
    """Find the clusters, and what has to be deleted or brought back.

    New shards are hashed and joined here, because the clusters follow from the pairs. This work is stored in the run's folder
    and in bands files, and `execute_near_duplicates` and any later run of the same command use it.

    Raises:
        UsageError: for invalid parameters.
    """
    _check(params)
    keep = _keep(params)
    view = context.view()
    former = view.snapshot.entry(DuplicatesEntry, ENTRY)
    keeps_pairs = former is not None and replace(former.params, keep=params.keep) == params
    documents = read_documents(view, REASON)
    spans = [record.span for record in view.chunks.ranges]
    bands = {record.first_chunk: record for record in bands_files(view, params, spans)}
    new = [span for span in spans if not (keeps_pairs and span.first_chunk in bands)]
    join = join_new_shards(context, view, params, documents, spans, new, bands)
    former_pairs = read_pairs(view) if keeps_pairs else Pairs.none()
    clusters = Clusters.of(documents, former_pairs.concat(join.pairs), keep)
    tombstones = _tombstones(view, spans, clusters)
    return NearDuplicatesPlan(
        view=view,
        params=params,
        join=join,
        clusters=clusters,
        tombstones=tuple(tombstones),
        keeps_pairs=keeps_pairs,
        has_changes=former != DuplicatesEntry(params) or bool(new) or bool(tombstones),
        result=_result(view, params, documents, clusters, join),
    )


def execute_near_duplicates(context: Context, plan: NearDuplicatesPlan) -> NearDuplicatesResult:
    """Commit the clusters and tombstones of a plan.

    Raises:
        ConflictError: another search was committed meanwhile.
    """
    result = replace(plan.result, dry_run=False)
    if not plan.has_changes:
        return result
    view, clusters, pairs = plan.view, plan.clusters, plan.join.pairs
    run = open_search(context, view, plan.params)
    arguments = {"near_duplicates": True, **to_plain_object(plan.params)}
    keys = conflict_keys.near_duplicates()
    transaction = Transaction.of_run(context, view, run, "dedup", keys, arguments=arguments)
    transaction.drop_files(view.manifest.files("duplicates", CLUSTERS))
    if not plan.keeps_pairs:
        transaction.drop_files(view.manifest.files("duplicates", PAIRS))
    transaction.files += plan.join.files
    transaction.add_tombstones(plan.tombstones)
    if len(pairs.first):
        _publish(transaction, PAIRS, pairs.table())
    _publish(transaction, CLUSTERS, clusters.table())
    transaction.set_entry(ENTRY, DuplicatesEntry(plan.params))
    transaction.counts = {"clusters": clusters.num_clusters, "removed_documents": len(clusters.removed)}
    return replace(result, snapshot=transaction.commit().number)


def _publish(transaction: Transaction, name: str, table: pa.Table) -> None:
    path = path_of("duplicates", name=name, task=transaction.run.id)
    transaction.publish("duplicates", path, partial(write_table, table=table), name=name)


def _keep(params: NearDuplicatesParams) -> Keep:
    match params.keep:
        case "first" | "longest" | "newest":
            return params.keep
    raise UsageError(f"unknown keeper '{params.keep}'", remedy="Valid values: 'first', 'longest', 'newest'.")


def _check(params: NearDuplicatesParams) -> None:
    jaccard_rule(params)
    check_ngram(params.ngram)
    parse_bands(params.bands, params.permutations)


def _tombstones(view: View, spans: Sequence[ChunkRange], clusters: Clusters) -> list[Tombstone]:
    """What has to be deleted that is not, and what has to come back."""
    changes = []
    removed = clusters.removed
    for first, count in spans:
        layout = view.chunks.layout(view.chunks.file("documents", first, count))
        first_rows = removed[(removed >= first) & (removed < first + count)] - first
        should_delete = np.zeros(count, dtype=bool)
        should_delete[layout.rows_of(first_rows)] = True
        is_deleted = view.chunks.tombstones.deleted_by_reason(first, count).get(REASON, np.zeros(count, dtype=bool))
        is_deleted &= view.chunks.present_mask(first, count)  # what compaction dropped cannot come back
        for rows, active in ((should_delete & ~is_deleted, True), (is_deleted & ~should_delete, False)):
            if rows.any():
                changes.append(tombstone(first, count, REASON, np.flatnonzero(rows), active=active))
    return changes


def _result(
    view: View, params: NearDuplicatesParams, documents: Documents, clusters: Clusters, join: NewPairs
) -> NearDuplicatesResult:
    removed = clusters.removed
    return NearDuplicatesResult(
        snapshot=view.snapshot.number,
        num_documents=int(documents.is_present.sum()),
        num_hashed_documents=join.num_hashed,
        num_compared_pairs=join.num_compared,
        num_similar_pairs=len(join.pairs.first),
        num_equal_documents=documents.num_equal(),
        num_clusters=clusters.num_clusters,
        num_removed_documents=len(removed),
        num_removed_chunks=int(documents.num_chunks[documents.index(removed)].sum()),
        num_hot_buckets=join.num_hot_buckets,
        expected_miss=parse_bands(params.bands, params.permutations).expected_miss(params.jaccard),
        dry_run=True,
    )
