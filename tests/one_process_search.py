"""The plain reference of the search for near-duplicates: one process, all documents and pairs in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from retrodb.config import NearDuplicatesParams
from retrodb.dedup.leak_rule import parse_rule
from retrodb.dedup.lsh import SortedBands, parse_bands, sort_bands
from retrodb.dedup.minhash import signatures
from retrodb.dedup.pair_similarity import intersection_and_union
from retrodb.dedup.shingles import shingle_sets
from retrodb.dedup.union_find import Keep, choose_keepers
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import DuplicatesEntry
from retrodb.format.parquet import read_table
from retrodb.format.records import ChunkRange
from retrodb.view.document_blocks import document_blocks, document_texts
from retrodb.view.view import View

REASON = "near-duplicate"


@dataclass(frozen=True)
class ExpectedSearch:
    """What a search has to give."""

    num_documents: int
    num_hashed_documents: int
    num_compared_pairs: int
    num_equal_documents: int
    num_hot_buckets: int
    num_removed_chunks: int
    new_pairs: list[tuple[int, int, float]]
    clusters: list[tuple[int, int, int, float]]
    tombstones: list[tuple[int, bool, list[int]]]  # first chunk of the shard, whether it deletes, rows
    has_changes: bool


@dataclass(frozen=True)
class _Document:
    id: int
    num_chunks: int
    num_chars: int
    added_at: int
    content: bytes
    is_present: bool


def expected_search(view: View, params: NearDuplicatesParams, max_bucket: int) -> ExpectedSearch:
    """What a search on this snapshot has to give."""
    documents = _documents(view)
    first_of: dict[bytes, int] = {}
    for document in documents.values():
        first_of.setdefault(document.content, document.id)
    node_of = {document.id: first_of[document.content] for document in documents.values()}
    former = view.snapshot.entry(DuplicatesEntry, "near")
    keeps_pairs = former is not None and replace(former.params, keep=params.keep) == params
    name = f"{params.ngram}-{params.permutations}-{params.bands}"
    hashed = {record.span for record in view.manifest.files("bands", name)}
    spans = [record.span for record in view.chunks.ranges]
    new = [span for span in spans if not (keeps_pairs and span in hashed)]
    repeated = {document for document, node in node_of.items() if document != node}
    candidates, num_hot = _candidates(view, params, spans, set(new), repeated, max_bucket) if new else ([], 0)
    new_pairs = _similar(view, candidates, params)
    pairs = [*(_former_pairs(view) if keeps_pairs else []), *new_pairs]
    clusters = _clusters(documents, node_of, pairs, params.keep)
    present = [node_of[document.id] for document in documents.values() if document.is_present]
    removed = [document for document, _, keeper, _ in clusters if document != keeper]
    deleted = [id + row for id in removed for row in range(documents[id].num_chunks)]
    tombstones = _tombstones(view, set(deleted))
    return ExpectedSearch(
        num_documents=len(present),
        num_hashed_documents=sum(
            span.first_chunk <= id < span.end for span in new if span not in hashed for id in documents
        ),
        num_compared_pairs=len(candidates),
        num_equal_documents=len(present) - len(set(present)),
        num_hot_buckets=num_hot,
        num_removed_chunks=len(deleted),
        new_pairs=new_pairs,
        clusters=clusters,
        tombstones=tombstones,
        has_changes=former != DuplicatesEntry(params) or bool(new) or bool(tombstones),
    )


def _documents(view: View) -> dict[int, _Document]:
    documents = {}
    for record in view.chunks.ranges:
        is_deleted = ~view.chunks.present_mask(*record.span)
        for reason, mask in view.chunks.tombstones.deleted_by_reason(*record.span).items():
            is_deleted |= mask & (reason != REASON)
        table = view.chunks.documents_table(record)
        added_at = table.column("added_at").cast(pa.int64()).to_pylist()
        for row, time in zip(table.to_pylist(), added_at, strict=True):
            first, count = row["first_row"], row["num_chunks"]
            is_present = not is_deleted[first : first + count].all()
            id = first + record.first_chunk
            documents[id] = _Document(id, count, row["num_chars"], time, row["content_hash"], is_present)
    return documents


def _bands(view: View, params: NearDuplicatesParams, span: ChunkRange) -> SortedBands:
    documents, chunks = (view.chunks.file(kind, *span) for kind in ("documents", "chunks"))
    layout = view.chunks.layout(documents)
    sketch = [np.empty((0, params.permutations), np.uint32)]
    for block in document_blocks(view.files.open(chunks), layout, view.files.rows(chunks).present):
        sketch.append(signatures(block.documents(), params.permutations, ngram=params.ngram))
    banding = parse_bands(params.bands, params.permutations)
    return sort_bands(np.concatenate(sketch), layout.first_row + span.first_chunk, banding)


def _stored_bands(view: View, params: NearDuplicatesParams, span: ChunkRange) -> SortedBands:
    """The bands as the database has them: a compaction does not hash documents again that it drops chunks of."""
    name = f"{params.ngram}-{params.permutations}-{params.bands}"
    for record in view.manifest.files("bands", name):
        if record.span == span:
            bands = np.array(view.chunks.map(record))
            bands["document"] += span.first_chunk
            return bands
    return _bands(view, params, span)


def _candidates(
    view: View,
    params: NearDuplicatesParams,
    spans: list[ChunkRange],
    new: set[ChunkRange],
    repeated: set[int],
    max_bucket: int,
) -> tuple[list[tuple[int, int]], int]:
    buckets: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for span in spans:
        for band, entries in enumerate(_stored_bands(view, params, span)):
            for value, document in entries.tolist():
                if document not in repeated:
                    buckets.setdefault((band, value), []).append((document, span in new))
    pairs, num_hot = set(), 0
    for bucket in buckets.values():
        members = sorted(bucket)
        if not any(is_new for _, is_new in members):
            continue
        is_hot = len(members) > max_bucket
        num_hot += is_hot
        for i, (a, a_is_new) in enumerate(members[:1] if is_hot else members):
            pairs |= {(a, b) for b, b_is_new in members[i + 1 :] if a_is_new or b_is_new}
    return sorted(pairs), num_hot


def _similar(
    view: View, candidates: list[tuple[int, int]], params: NearDuplicatesParams
) -> list[tuple[int, int, float]]:
    ids, numbers = np.unique(np.array(candidates, np.int64).reshape(-1, 2), return_inverse=True)
    sets = shingle_sets(document_texts(view.chunks, ids), params.ngram)
    intersection, union = intersection_and_union(numbers.reshape(-1, 2), sets)
    is_similar = (intersection > 0) & parse_rule(f"jaccard>={params.jaccard:g}").is_reached(intersection, union)
    return [(*candidates[e], float(intersection[e] / union[e])) for e in np.flatnonzero(is_similar).tolist()]


def _former_pairs(view: View) -> list[tuple[int, int, float]]:
    tables = [read_table(view.files.open(record)) for record in view.manifest.files("duplicates", "pairs")]
    return [row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def _clusters(
    documents: dict[int, _Document], node_of: dict[int, int], pairs: list[tuple[int, int, float]], keep: str
) -> list[tuple[int, int, int, float]]:
    similarity = {(node_of[a], node_of[b]): j for a, b, j in pairs if a in node_of and b in node_of}
    has_present = {node_of[document.id] for document in documents.values() if document.is_present}
    group = {node: {node} for node in has_present}
    for a, b in similarity:
        if a in has_present and b in has_present:
            for member in (joined := group[a] | group[b]):
                group[member] = joined
    members: dict[int, list[int]] = {}
    for document in documents.values():
        if document.is_present:
            members.setdefault(min(group[node_of[document.id]]), []).append(document.id)
    rows = []
    for ids in (ids for ids in members.values() if len(ids) > 1):
        keeper = _keeper([documents[id] for id in ids], keep)
        for id in ids:
            nodes = sorted((node_of[id], node_of[keeper]))
            rows.append(
                (id, min(ids), keeper, 1.0 if nodes[0] == nodes[1] else similarity.get((nodes[0], nodes[1]), 0.0))
            )
    return sorted(rows)


def _tombstones(view: View, deleted: set[int]) -> list[tuple[int, bool, list[int]]]:
    tombstones = []
    for record in view.chunks.ranges:
        first, count = record.span
        mask = view.chunks.tombstones.deleted_by_reason(first, count).get(REASON, np.zeros(count, bool))
        is_deleted = (mask & view.chunks.present_mask(first, count)).tolist()
        added = [row for row in range(count) if first + row in deleted and not is_deleted[row]]
        revoked = [row for row in range(count) if first + row not in deleted and is_deleted[row]]
        tombstones += [(first, active, rows) for active, rows in ((True, added), (False, revoked)) if rows]
    return tombstones


def _keeper(documents: list[_Document], keep: str) -> int:
    rule: Keep = keep  # type: ignore[assignment]
    lengths, times = np.array([(d.num_chars, d.added_at) for d in documents], np.int64).T
    labels: Int64Array = np.zeros(len(documents), np.int64)
    return documents[int(choose_keepers(labels, rule, lengths, times)[0])].id
