"""Stage dedup, inside the corpus: of documents that are the same but for details one is kept.

Every shard's MinHash bands are hashed once and stay as a sorted run; a shard that comes later is joined with the runs of the
others. Candidates are compared exactly, and every pair that was found is remembered, so that clusters follow from what
is in the database now: a document whose keeper went away comes back, or another one of its cluster is kept.

Documents of equal content are one node of the graph; the first of them stands for all in the join. So they are always
found, also those too short for a shingle, and do not crowd the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from retrodb.config import NearDuplicatesParams, from_mapping, to_mapping
from retrodb.dedup.leak_rule import LeakRule, parse_rule
from retrodb.dedup.lsh import candidate_pairs, parse_bands, sort_bands
from retrodb.dedup.minhash import signatures
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingles import check_ngram, shingle_sets
from retrodb.engine.run import Run, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array, map_array, save_array
from retrodb.format.entries import DuplicatesEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import CLUSTERS, PAIRS, Clusters, Documents, Pairs, read_documents, read_pairs
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import document_blocks, document_texts
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.tombstones import Tombstone, tombstone, tombstones_to_table
from retrodb.view.view import View

STAGE_VERSION = 1
REASON = "near-duplicate"
ENTRY = "near"
_VERIFY_CHUNKS = 1 << 16  # text that a task of exact comparison holds, unless one pair is longer: about 20 MB


@dataclass(frozen=True)
class NearDuplicatesResult:
    """What a search for near-duplicates found."""

    snapshot: int  # the snapshot it made, or the one where nothing was new
    documents: int  # that no other reason deletes
    hashed_documents: int  # those of new shards; the others' bands were there
    compared_pairs: int  # candidates, exactly
    found_pairs: int  # of these, as similar as asked or more
    equal_documents: int  # documents with the content of an earlier one
    clusters: int  # of two or more documents, in the whole database
    removed_documents: int  # by this reason, in the whole database
    removed_chunks: int
    hot_buckets: int  # buckets so full that only the pairs with their first document were compared
    expected_miss: float  # share of the pairs over the threshold that the bands are expected to miss
    dry_run: bool = False


@dataclass(frozen=True)
class _Join:
    """What new shards brought."""

    pairs: Pairs  # as similar as asked
    files: tuple[FileRecord, ...] = ()  # the runs of bands
    hashed: int = 0
    compared: int = 0
    hot: int = 0


def run_near_duplicates(
    context: Context, params: NearDuplicatesParams, *, dry_run: bool = False
) -> NearDuplicatesResult:
    """Remove all but one of documents that are alike, and remember who was like whom.

    Raises:
        UsageError: for parameters that cannot be meant.
        ConflictError: when another search committed meanwhile.
    """
    rule = _check(params)
    view = context.view()
    entry = DuplicatesEntry(params)
    former = view.snapshot.entry(DuplicatesEntry, ENTRY)
    is_same_join = former is not None and replace(former.params, keep=params.keep) == params
    documents = read_documents(view, REASON)
    spans = [(record.first_chunk, record.num_chunks) for record in view.chunks.ranges]
    bands = view.manifest.files("bands", _bands_name(params))
    held = {record.first_chunk: record for record in bands if (record.first_chunk, record.num_chunks) in spans}
    new = [span for span in spans if not (is_same_join and span[0] in held)]
    join = _join(context, view, params, rule, documents, spans, new, held)
    former_pairs = read_pairs(view) if is_same_join else Pairs.none()
    clusters = Clusters.of(documents, former_pairs.concat_keys(join.pairs), params.keep)
    dead = _tombstones(view, spans, clusters)
    result = _result(view, params, documents, clusters, join, dry_run)
    if dry_run or (former == entry and not new and not dead):
        return result
    run = _open(context, view, params)
    change = _change(context, view, run, params, clusters, join, dead, is_same_join)
    snapshot = commit(context.storage, view.snapshot, change)
    return replace(result, snapshot=snapshot.number)


def _check(params: NearDuplicatesParams) -> LeakRule:
    check_ngram(params.ngram)
    parse_bands(params.bands, params.permutations)
    if params.keep not in ("first", "longest", "newest"):
        raise UsageError(f"unknown keeper '{params.keep}'", remedy="It is 'first', 'longest' or 'newest'.")
    return parse_rule(f"jaccard>={params.jaccard:g}")


def _bands_name(params: NearDuplicatesParams) -> str:
    return f"{params.ngram}-{params.permutations}-{params.bands}"


def _open(context: Context, view: View, params: NearDuplicatesParams) -> Run:
    """The run; opened twice it is the same."""
    state = identity(sorted(view.manifest.paths()))
    plan = {"version": STAGE_VERSION, "state": state, "near": to_mapping(params)}
    return open_run(context.storage, "dedup", plan, context.clock)


def _join(
    context: Context, view: View, params: NearDuplicatesParams, rule: LeakRule, documents: Documents,
    spans: Sequence[tuple[int, int]], new: Sequence[tuple[int, int]], held: dict[int, FileRecord],
) -> _Join:  # fmt: skip
    """Hash the shards that have no bands, and find the pairs that the new shards are part of."""
    if not new:
        return _Join(Pairs.none())
    run = _open(context, view, params)
    missing = [span for span in new if span[0] not in held]
    tasks = [_hash_task(view, params, span) for span in missing]
    hashed = context.engine.run(run, tasks, run_bands, context.progress)
    runs = {first: record for (first, _), [record] in zip(missing, (r.files for r in hashed), strict=True)} | held
    placed = {first: (map_array(view.files.open(runs[first])), first) for first, _ in spans}
    is_new = {first for first, _ in new}
    found = candidate_pairs(
        [placed[first] for first, _ in spans if first in is_new],
        [placed[first] for first, _ in spans if first not in is_new],
        without=documents.repeated(),
    )
    verify = _verify_tasks(context, view, run, params, found.pairs, documents)
    records = context.engine.run(run, verify, run_verify, context.progress)
    counts = [map_array(context.storage.local(record.files[0].path)) for record in records]
    intersection, union = np.concatenate([np.empty((0, 2), np.int64), *counts]).T
    alike = (intersection > 0) & rule.is_reached(intersection, union)
    return _Join(
        Pairs(found.pairs[alike, 0], found.pairs[alike, 1], intersection[alike] / union[alike]),
        tuple(file for record in hashed for file in record.files),
        sum(record.counts["documents"] for record in hashed), len(found.pairs), found.num_hot_buckets,
    )  # fmt: skip


def _hash_task(view: View, params: NearDuplicatesParams, span: tuple[int, int]) -> Task[Any, Any]:
    documents, chunks = (view.chunks.file(kind, *span) for kind in ("documents", "chunks"))
    for record in (documents, chunks):
        view.files.open(record)
    payload = {
        "name": _bands_name(params),
        "documents": documents.path,
        "chunks": chunks.path,
        "rows": chunks.rows.hex() if chunks.rows is not None else None,
        "first_chunk": span[0],
        "num_chunks": span[1],
        "params": {**to_mapping(params), "keep": "first", "jaccard": 1.0},  # the bands do not depend on these
    }
    return make_task("bands", STAGE_VERSION, payload, [chunks.digest.sha256.hex()], span[1])


def run_bands(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """The bands of one shard's documents."""
    del clock
    payload = task.payload
    params = from_mapping(NearDuplicatesParams, payload["params"], where="near-duplicates")
    layout = DocumentLayout.from_table(read_table(storage.local(payload["documents"]), LAYOUT_COLUMNS))
    rows = RowSet(payload["num_chunks"], bytes.fromhex(payload["rows"]) if payload["rows"] else None)
    sketch = [np.empty((0, params.permutations), np.uint32)]
    for block in document_blocks(storage.local(payload["chunks"]), layout, rows.present):
        sketch.append(signatures(block.documents(), params.permutations, ngram=params.ngram))
    run = sort_bands(np.concatenate(sketch), layout.first_row, parse_bands(params.bands, params.permutations))
    record = publish(
        storage,
        "bands",
        path_of("bands", name=payload["name"], task=task.id),
        lambda local: save_array(local, run),
        name=payload["name"],
        first_chunk=payload["first_chunk"],
        rows=RowSet.all(payload["num_chunks"]),
    )
    return TaskRecord(task.id, (record,), {}, {"documents": len(layout.first_row)})


def _verify_tasks(
    context: Context, view: View, run: Run, params: NearDuplicatesParams, pairs: Int64Array, documents: Documents
) -> list[Task[Any, Any]]:
    """The candidates in blocks of about as much text each."""
    path = path_of("runs", run=run.id, file="candidates.npy")
    file = publish(context.storage, "runs", path, lambda local: save_array(local, pairs))
    sizes = documents.num_chunks[documents.index(pairs)].sum(axis=1)
    block = np.cumsum(sizes) // _VERIFY_CHUNKS
    bounds = np.flatnonzero(np.diff(block, prepend=-1, append=-1)).tolist()
    payload = {"run": run.id, "snapshot": view.snapshot.number, "pairs": file.path, "ngram": params.ngram}
    return [
        make_task(
            "verify", STAGE_VERSION, {**payload, "first": first, "end": end}, [file.digest.sha256.hex()], end - first
        )
        for first, end in pairwise(bounds)
    ]


def run_verify(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Sizes of intersection and union of the shingle sets of some pairs of documents, (E, 2) int64."""
    del clock
    payload = task.payload
    pairs = map_array(storage.local(payload["pairs"]))[payload["first"] : payload["end"]]
    ids, places = np.unique(pairs, return_inverse=True)
    texts = document_texts(Context(storage).view(payload["snapshot"]).chunks, ids)
    sizes = np.stack(intersection_and_union(places.reshape(-1, 2), shingle_sets(texts, payload["ngram"])), axis=1)
    path = path_of("runs", run=payload["run"], file=f"similarity/{task.id}.npy")
    return TaskRecord(task.id, (publish(storage, "runs", path, lambda local: save_array(local, sizes)),))


def _tombstones(view: View, spans: Sequence[tuple[int, int]], clusters: Clusters) -> list[Tombstone]:
    """What has to be deleted that is not, and what has to come back."""
    changes = []
    removed = clusters.removed
    for first, count in spans:
        layout = view.chunks.layout(view.chunks.file("documents", first, count))
        own = removed[(removed >= first) & (removed < first + count)] - first
        wanted = np.zeros(count, dtype=bool)
        wanted[layout.rows_of(own)] = True
        present = view.chunks.tombstones.deleted_by_reason(first, count).get(REASON, np.zeros(count, dtype=bool))
        present &= view.chunks.present_mask(first, count)  # what compaction dropped cannot come back
        for rows, active in ((wanted & ~present, True), (present & ~wanted, False)):
            if rows.any():
                changes.append(tombstone(first, count, REASON, np.flatnonzero(rows), active=active))
    return changes


def _result(
    view: View, params: NearDuplicatesParams, documents: Documents, clusters: Clusters, join: _Join, dry_run: bool
) -> NearDuplicatesResult:
    removed = clusters.removed
    return NearDuplicatesResult(
        snapshot=view.snapshot.number,
        documents=int(documents.is_present.sum()),
        hashed_documents=join.hashed,
        compared_pairs=join.compared,
        found_pairs=len(join.pairs.first),
        equal_documents=documents.num_equal(),
        clusters=clusters.count,
        removed_documents=len(removed),
        removed_chunks=int(documents.num_chunks[documents.index(removed)].sum()),
        hot_buckets=join.hot,
        expected_miss=parse_bands(params.bands, params.permutations).expected_miss(params.jaccard),
        dry_run=dry_run,
    )


def _change(
    context: Context, view: View, run: Run, params: NearDuplicatesParams,
    clusters: Clusters, join: _Join, dead: list[Tombstone], is_same_join: bool,
) -> Change:  # fmt: skip
    files = list(join.files)
    former = view.manifest.files("duplicates", CLUSTERS)
    if not is_same_join:
        former += view.manifest.files("duplicates", PAIRS)

    def put(kind: str, path: str, table: Any, name: str = "") -> None:
        files.append(publish(context.storage, kind, path, partial(write_table, table=table), name=name))

    if dead:
        put("tombstones", path_of("tombstones", task=run.id), tombstones_to_table(dead))
    path = partial(path_of, "duplicates", task=run.id)
    if len(join.pairs.first):
        put("duplicates", path(name=PAIRS), join.pairs.table(), PAIRS)
    put("duplicates", path(name=CLUSTERS), clusters.table(), CLUSTERS)
    return Change(
        transaction=run.id,
        command="dedup",
        arguments={"near_duplicates": True, **to_mapping(params)},
        clock=run.clock,
        conflict_keys=conflict_keys.near_duplicates(),
        files=files,
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in former],
        entries={f"duplicates/{ENTRY}": DuplicatesEntry(params)},
        counts={"clusters": clusters.count, "removed_documents": len(clusters.removed)},
    )
