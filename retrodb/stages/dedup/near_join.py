"""Joining new shards with all others: their MinHash bands, candidate pairs, and the exact similarity of these.

Shapes: `E` pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.leak_rule import LeakRule, parse_rule
from retrodb.dedup.lsh import candidate_pairs, parse_bands, sort_bands
from retrodb.dedup.minhash import signatures
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingles import shingle_sets
from retrodb.engine.run import Run, open_run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array, map_array, save_array
from retrodb.format.json_codec import to_plain_object
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.dedup.clusters import Documents, Pairs
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.document_blocks import document_blocks, document_texts
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.view import View

STAGE_VERSION = 1
_VERIFY_CHUNKS = 1 << 16  # chunks that a task of exact comparison reads, unless one pair has more: about 20 MB of text


@dataclass(frozen=True)
class BandsPayload:
    """Hash the documents of one shard."""

    name: str  # of the bands files
    params: NearDuplicatesParams
    documents: FileRecord
    chunks: FileRecord


@dataclass(frozen=True)
class VerifyPayload:
    """Compare some candidate pairs exactly."""

    run: str  # id of the run that stores the sizes
    snapshot: int  # that the documents are read from
    pairs: str  # path of all candidates, (E, 2) document ids
    first: int  # pair to begin with
    end: int  # one past the last
    ngram: int


BANDS = TaskKind[BandsPayload, NoResult]("bands", STAGE_VERSION, NoResult)
VERIFY = TaskKind[VerifyPayload, NoResult]("verify", STAGE_VERSION, NoResult)


@dataclass(frozen=True)
class NewPairs:
    """The pairs with a document of a new shard."""

    pairs: Pairs  # as similar as asked
    files: tuple[FileRecord, ...] = ()  # bands
    num_hashed: int = 0
    num_compared: int = 0
    num_hot_buckets: int = 0


def jaccard_rule(params: NearDuplicatesParams) -> LeakRule:
    """The least similarity of a pair. Raises UsageError when it is invalid."""
    return parse_rule(f"jaccard>={params.jaccard:g}")


def _bands_name(params: NearDuplicatesParams) -> str:
    return f"{params.ngram}-{params.permutations}-{params.bands}"


def bands_files(view: View, params: NearDuplicatesParams, spans: Sequence[ChunkRange]) -> list[FileRecord]:
    """The bands of the shards that have some."""
    return [record for record in view.manifest.files("bands", _bands_name(params)) if record.span in spans]


def open_search(context: Context, view: View, params: NearDuplicatesParams) -> Run:
    """The run of a search; opened twice it is the same."""
    state = identity(sorted(view.manifest.paths()))
    plan = {"version": STAGE_VERSION, "state": state, "near": to_plain_object(params)}
    return open_run(context.storage, "dedup", plan, context.clock)


def join_new_shards(
    context: Context,
    view: View,
    params: NearDuplicatesParams,
    documents: Documents,
    spans: Sequence[ChunkRange],
    new: Sequence[ChunkRange],
    bands: Mapping[int, FileRecord],
) -> NewPairs:
    """Hash the shards without bands, and find the pairs that documents of the new shards are part of."""
    if not new:
        return NewPairs(Pairs.none())
    threshold = jaccard_rule(params)
    run = open_search(context, view, params)
    missing = [span for span in new if span.first_chunk not in bands]
    hashed = context.engine.run(run, [_bands_task(view, params, span) for span in missing], run_bands, context.progress)
    new_bands = {span.first_chunk: record.files[0] for span, record in zip(missing, hashed, strict=True)}
    bands = {**new_bands, **bands}
    runs = {span.first_chunk: (map_array(view.files.open(bands[span.first_chunk])), span.first_chunk) for span in spans}
    is_new = {span.first_chunk for span in new}
    candidates = candidate_pairs(
        [runs[first] for first in runs if first in is_new],
        [runs[first] for first in runs if first not in is_new],
        without=documents.repeated(),
    )
    intersection, union = _compare(context, view, run, params, candidates.pairs, documents)
    is_similar = (intersection > 0) & threshold.is_reached(intersection, union)
    pairs = candidates.pairs[is_similar]
    return NewPairs(
        pairs=Pairs(pairs[:, 0], pairs[:, 1], intersection[is_similar] / union[is_similar]),
        files=tuple(file for record in hashed for file in record.files),
        num_hashed=sum(record.counts["documents"] for record in hashed),
        num_compared=len(candidates.pairs),
        num_hot_buckets=candidates.num_hot_buckets,
    )


def _bands_task(view: View, params: NearDuplicatesParams, span: ChunkRange) -> Task[BandsPayload, NoResult]:
    documents, chunks = (view.chunks.file(kind, *span) for kind in ("documents", "chunks"))
    independent = replace(params, keep="first", jaccard=1.0)  # the bands do not depend on these
    return BANDS.task(BandsPayload(_bands_name(params), independent, documents, chunks), (), span.num_chunks)


def run_bands(storage: Storage, task: Task[BandsPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """The bands of one shard's documents."""
    del clock
    payload, params, verified = task.payload, task.payload.params, VerifiedFiles(storage)
    layout = DocumentLayout.from_table(read_table(verified.open(payload.documents), LAYOUT_COLUMNS))
    sketch = [np.empty((0, params.permutations), np.uint32)]
    for block in document_blocks(verified.open(payload.chunks), layout, payload.chunks.row_set.present):
        sketch.append(signatures(block.documents(), params.permutations, ngram=params.ngram))
    run = sort_bands(np.concatenate(sketch), layout.first_row, parse_bands(params.bands, params.permutations))
    record = publish(
        storage,
        "bands",
        path_of("bands", name=payload.name, task=task.id),
        lambda local: save_array(local, run),
        name=payload.name,
        first_chunk=payload.chunks.first_chunk,
        rows=RowSet.all(payload.chunks.num_chunks),
    )
    return TaskRecord(task.id, (record,), counts={"documents": len(layout.first_row)})


def _compare(
    context: Context, view: View, run: Run, params: NearDuplicatesParams, pairs: Int64Array, documents: Documents
) -> tuple[Int64Array, Int64Array]:
    """(E,) the sizes of intersection and union of the shingle sets of each candidate (E, 2)."""
    path = path_of("runs", run=run.id, file="candidates.npy")
    file = publish(context.storage, "runs", path, lambda local: save_array(local, pairs))
    num_chunks = documents.num_chunks[documents.index(pairs)].sum(axis=1)
    block = np.cumsum(num_chunks) // _VERIFY_CHUNKS
    bounds = np.flatnonzero(np.diff(block, prepend=-1, append=-1)).tolist()
    tasks = [
        VERIFY.task(
            VerifyPayload(run.id, view.snapshot.number, file.path, first, end, params.ngram),
            [file.digest.sha256.hex()],
            end - first,
        )
        for first, end in pairwise(bounds)
    ]
    records = context.engine.run(run, tasks, run_verify, context.progress)
    sizes = [map_array(context.storage.local(record.files[0].path)) for record in records]
    intersection, union = np.concatenate([np.empty((0, 2), np.int64), *sizes]).T
    return intersection, union


def run_verify(storage: Storage, task: Task[VerifyPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Sizes of intersection and union of the shingle sets of some pairs of documents, (E, 2) int64."""
    del clock
    payload = task.payload
    pairs = map_array(storage.local(payload.pairs))[payload.first : payload.end]
    ids, numbers = np.unique(pairs, return_inverse=True)
    texts = document_texts(Context(storage).view(payload.snapshot).chunks, ids)
    sizes = np.stack(intersection_and_union(numbers.reshape(-1, 2), shingle_sets(texts, payload.ngram)), axis=1)
    path = path_of("runs", run=payload.run, file=f"similarity/{task.id}.npy")
    return TaskRecord(task.id, (publish(storage, "runs", path, lambda local: save_array(local, sizes)),))
