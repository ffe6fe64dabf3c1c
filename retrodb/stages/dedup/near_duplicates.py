"""Stage dedup, inside the corpus: of documents that are nearly the same one is kept.

The MinHash bands of every shard are hashed once and stored as a sorted run. A new shard is joined with the runs of all shards.
Candidates are compared exactly, and all similar pairs are stored. So clusters follow from the documents that are in the
database now: when a keeper is deleted, another document of its cluster comes back.

Documents of equal content are one node of the graph, and the first of them represents all in the join. So they are always
found, even when they are too short for a shingle, and do not fill up the buckets.

All work is done by tasks that exchange files in the run's folder (`near_files`). Planning sees their counts and the manifest:

    near_documents  facts of the documents of each shard; documents of equal content, by prefixes of their hashes
    near_bands      bands of new shards; bands without the documents of repeated content
    near_join       candidate pairs, by bands and prefixes of their hashes
    near_verify     shingle sets of the candidates of each shard; similar pairs, by ranges of first documents
    near_clusters   clusters of all pairs; tombstones of each shard
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.shingles import check_ngram
from retrodb.dedup.union_find import Keep
from retrodb.engine.run import Run, add_counts, forget_run, open_run
from retrodb.engine.task import NoResult, TaskRecord
from retrodb.errors import UsageError
from retrodb.format.entries import DuplicatesEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import CLUSTERS, PAIRS
from retrodb.stages.dedup.near_bands import bands_files, distinct_bands, hash_shards
from retrodb.stages.dedup.near_clusters import CLUSTERS_FILE, changed_tombstones, cluster_pairs
from retrodb.stages.dedup.near_documents import DescribedDocuments, describe_documents
from retrodb.stages.dedup.near_files import (
    BandsRun,
    delete_near_files,
    documents_records,
    near_path,
)
from retrodb.stages.dedup.near_join import join_bands
from retrodb.stages.dedup.near_verify import compare_candidates, jaccard_rule
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.view.tombstones import Tombstone
from retrodb.view.view import View

ENTRY = "near"
STAGE_VERSION = 2


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
class NewPairs:
    """The pairs with a document of a new shard, and the counts of finding them."""

    bands: tuple[FileRecord, ...] = ()  # of shards that were hashed
    pairs: tuple[FileRecord, ...] = ()
    num_hashed: int = 0
    num_compared: int = 0
    num_similar: int = 0
    num_hot_buckets: int = 0


@dataclass(frozen=True)
class NearDuplicatesPlan:
    """What a search for near-duplicates is going to delete and to bring back."""

    view: View
    run: Run
    params: NearDuplicatesParams
    join: NewPairs
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
    with context.engine.sharing_processes() as engine:
        plan = plan_near_duplicates(replace(context, engine=engine), params)
    if not plan.has_changes:
        forget_run(plan.run)
        return replace(plan.result, dry_run=dry_run)
    return plan.result if dry_run else execute_near_duplicates(context, plan)


def plan_near_duplicates(context: Context, params: NearDuplicatesParams) -> NearDuplicatesPlan:
    """Find the clusters, and what has to be deleted or brought back.

    The documents of all shards are read and new shards are hashed and joined here, in tasks, because the clusters follow from
    them. This work is stored in the run's folder, and in bands and pairs files, and `execute_near_duplicates` and any later run
    of the same command use it.

    Raises:
        UsageError: for invalid parameters.
    """
    _check(params)
    keep = _keep(params)
    view = context.view()
    run = _open_search(context, view, params)
    former = view.snapshot.entry(DuplicatesEntry, ENTRY)
    keeps_pairs = former is not None and replace(former.params, keep=params.keep) == params
    spans = [record.span for record in documents_records(view)]
    bands = {record.first_chunk: record for record in bands_files(view, params, spans)}
    new = [span for span in spans if not (keeps_pairs and span.first_chunk in bands)]
    documents = describe_documents(context, view, run)
    join = _join_new_shards(context, view, run, params, documents, bands, new)
    clusters = cluster_pairs(context, view, run, keep, documents, join.pairs, has_former_pairs=keeps_pairs)
    tombstones = changed_tombstones(context, view, run, clusters)
    return NearDuplicatesPlan(
        view=view,
        run=run,
        params=params,
        join=join,
        tombstones=tuple(tombstones),
        keeps_pairs=keeps_pairs,
        has_changes=former != DuplicatesEntry(params) or bool(new) or bool(tombstones),
        result=_result(view, params, documents, clusters, join),
    )


def _open_search(context: Context, view: View, params: NearDuplicatesParams) -> Run:
    """The run of a search; opened twice it is the same."""
    state = identity(sorted(view.manifest.paths()))
    plan = {"version": STAGE_VERSION, "state": state, "near": to_plain_object(params)}
    return open_run(context.storage, "dedup", plan, context.clock)


def _join_new_shards(
    context: Context,
    view: View,
    run: Run,
    params: NearDuplicatesParams,
    documents: DescribedDocuments,
    bands: dict[int, FileRecord],
    new: Sequence[ChunkRange],
) -> NewPairs:
    """Hash the shards without bands, and find the pairs that documents of the new shards are part of."""
    if not new:
        return NewPairs()
    hashed = hash_shards(context, view, run, params, [span for span in new if span.first_chunk not in bands])
    new_bands = tuple(file for record in hashed for file in record.files)
    is_new = {span.first_chunk for span in new}
    all_bands = sorted([*bands.values(), *new_bands], key=lambda record: record.first_chunk)
    runs = [BandsRun(record, record.first_chunk in is_new) for record in all_bands]
    joined = join_bands(context, view, run, params, distinct_bands(context, view, run, documents, runs))
    compared = compare_candidates(context, view, run, params, joined)
    counts = add_counts([*hashed, *compared])
    return NewPairs(
        bands=new_bands,
        pairs=tuple(file for record in compared for file in record.files),
        num_hashed=counts.get("documents", 0),
        num_compared=counts.get("compared", 0),
        num_similar=counts.get("similar", 0),
        num_hot_buckets=joined.num_hot_buckets,
    )


def execute_near_duplicates(context: Context, plan: NearDuplicatesPlan) -> NearDuplicatesResult:
    """Commit the clusters and tombstones of a plan that has changes.

    Raises:
        ConflictError: another search was committed meanwhile.
    """
    view, run, result = plan.view, plan.run, plan.result
    arguments = {"near_duplicates": True, **to_plain_object(plan.params)}
    keys = conflict_keys.near_duplicates()
    transaction = Transaction.of_run(context, view, run, "dedup", keys, arguments=arguments)
    transaction.drop_files(view.manifest.files("duplicates", CLUSTERS))
    if not plan.keeps_pairs:
        transaction.drop_files(view.manifest.files("duplicates", PAIRS))
    transaction.files += [*plan.join.bands, *plan.join.pairs]
    transaction.add_tombstones(plan.tombstones)
    clusters = context.storage.local(near_path(run.id, CLUSTERS_FILE))
    path = path_of("duplicates", name=CLUSTERS, task=run.id)
    transaction.publish("duplicates", path, partial(_copy, clusters), name=CLUSTERS)
    transaction.set_entry(ENTRY, DuplicatesEntry(plan.params))
    transaction.counts = {"clusters": result.num_clusters, "removed_documents": result.num_removed_documents}
    snapshot = transaction.commit()
    delete_near_files(run)
    return replace(result, dry_run=False, snapshot=snapshot.number)


def _copy(source: Path, local: Path) -> None:
    shutil.copyfile(source, local)


def _keep(params: NearDuplicatesParams) -> Keep:
    match params.keep:
        case "first" | "longest" | "newest":
            return params.keep
    raise UsageError(f"unknown keeper '{params.keep}'", remedy="Valid values: 'first', 'longest', 'newest'.")


def _check(params: NearDuplicatesParams) -> None:
    jaccard_rule(params.jaccard)
    check_ngram(params.ngram)
    parse_bands(params.bands, params.permutations)


def _result(
    view: View,
    params: NearDuplicatesParams,
    documents: DescribedDocuments,
    clusters: TaskRecord[NoResult],
    join: NewPairs,
) -> NearDuplicatesResult:
    return NearDuplicatesResult(
        snapshot=view.snapshot.number,
        num_documents=documents.num_present,
        num_hashed_documents=join.num_hashed,
        num_compared_pairs=join.num_compared,
        num_similar_pairs=join.num_similar,
        num_equal_documents=clusters.counts["equal_documents"],
        num_clusters=clusters.counts["clusters"],
        num_removed_documents=clusters.counts["removed_documents"],
        num_removed_chunks=clusters.counts["removed_chunks"],
        num_hot_buckets=join.num_hot_buckets,
        expected_miss=parse_bands(params.bands, params.permutations).expected_miss(params.jaccard),
        dry_run=True,
    )
