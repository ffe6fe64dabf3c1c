"""The tasks of stage dedup: one shard held against one test set.

Every document of the shard is scanned, deleted or not: a document that is undeleted later must not bring a leak back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from retrodb.config import DedupParams, from_mapping
from retrodb.dedup.exact_scan import Hits, ScanResult, count_documents, scan_texts, touched_chunks
from retrodb.dedup.leak_rule import parse_rule
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.minhash_scan import MinHashScan
from retrodb.dedup.shingle_table import ShingleTable, load_shingle_table
from retrodb.engine.task import Task, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.rows import RowSet, serialize_rows
from retrodb.format.schemas import LEAK_REPORT
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import DocumentBlock, document_blocks
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout

if TYPE_CHECKING:
    import pyarrow as pa

Find: TypeAlias = "Callable[[pa.LargeStringArray], ScanResult]"


def run_leak_scan(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Scan one shard; gives the report and, as a bitmap, the rows of the documents to delete.

    At chunk level only short texts are among these rows: `run_clean` finds the others, once all shards told which items
    they contain.
    """
    import pyarrow as pa

    del clock  # nothing that is found knows the time
    payload = task.payload
    params = from_mapping(DedupParams, payload["params"], where="test set")
    table = _table(storage, payload)
    find, rule = _find(storage, payload, params, table), parse_rule(params.rule)
    documents = read_table(storage.local(payload["documents"]), ["source", "doc_id", "first_row", "num_chunks"])
    first_rows = documents.column("first_row").to_numpy()
    num_chunks = documents.column("num_chunks").to_numpy()
    dead, reports = [np.empty(0, np.int64)], [LEAK_REPORT.empty_table()]
    for block in _blocks(storage, payload):
        found = find(block.documents())
        is_leak = rule.is_leak(found.hits)
        removes_short = params.short_texts == "remove"
        removed = [found.hits.document[is_leak]] if params.level == "document" else []
        removed += [found.short_hits.document] if removes_short else []
        for document in np.unique(np.concatenate([np.empty(0, np.int64), *removed])) + block.first_document:
            dead.append(first_rows[document] + np.arange(num_chunks[document]))
        rows = [*_hit_rows(block, found.hits, is_leak, table), *_short_rows(block, found, removes_short, table)]
        reports.append(_report(rows, documents, payload))
    report = pa.concat_tables(reports)
    files = []
    if report.num_rows:
        path = path_of("runs", run=payload["run"], file=f"reports/{task.id}.parquet")
        files.append(publish(storage, "runs", path, partial(write_table, table=report)))
    result = {"rows": serialize_rows(np.concatenate(dead)).hex()}
    return TaskRecord(task.id, tuple(files), result, {"documents": len(first_rows)})


def run_clean(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """The rows of one shard that shingles of some items touch, in a document or in any [chunk, continuation].

    A chunk may begin or end inside a word, and the part of the word that is left may complete an n-gram that the document
    does not have; so every text that a reader may see is scanned itself. Whatever is returned later is one of these
    texts, and each that held an n-gram has lost a chunk.
    """
    del clock
    table, items = _table(storage, task.payload), np.array(task.payload["items"], dtype=np.int64)
    dead = [np.empty(0, np.int64)]
    for block in _blocks(storage, task.payload):
        for texts, first, end in block.windows():
            hits = scan_texts(texts, table).hits
            for hit in np.flatnonzero(np.isin(hits.item, items)).tolist():
                window = hits.document[hit]
                dead.append(block.rows[_touched(block, hits, hit, int(first[window]), int(end[window]))])
    return TaskRecord(task.id, (), {"rows": serialize_rows(np.unique(np.concatenate(dead))).hex()})


def run_count(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Count in how many documents of one shard each shingle of a test set stands; the last number is of all documents."""
    del clock
    table = _table(storage, task.payload)
    counts = np.zeros(len(table.keys) + 1, dtype=np.int64)
    for block in _blocks(storage, task.payload):
        documents = block.documents()
        counts[:-1] += count_documents(documents, table)
        counts[-1] += len(documents)
    path = path_of("runs", run=task.payload["run"], file=f"counts/{task.id}.npy")
    return TaskRecord(task.id, (publish(storage, "runs", path, lambda local: save_array(local, counts)),))


def _table(storage: Storage, payload: Any) -> ShingleTable:
    return load_shingle_table(storage.local(payload["table"]).parent)


def _find(storage: Storage, payload: Any, params: DedupParams, table: ShingleTable) -> Find:
    excluded: BoolArray | None = map_array(storage.local(payload["excluded"])) if payload["excluded"] else None
    if params.method == "exact":
        return partial(scan_texts, table=table, excluded=excluded)
    return MinHashScan(table, params.permutations, parse_bands(params.bands, params.permutations))


def _blocks(storage: Storage, payload: Any) -> Iterator[DocumentBlock]:
    layout = DocumentLayout.from_table(read_table(storage.local(payload["documents"]), LAYOUT_COLUMNS))
    bitmap = bytes.fromhex(payload["rows"]) if payload["rows"] else None
    return document_blocks(storage.local(payload["chunks"]), layout, RowSet(payload["num_chunks"], bitmap).present)


def _touched(block: DocumentBlock, hits: Hits, hit: int, first: int, end: int) -> Int64Array:
    """The chunks of a block, of those from `first` to `end`, that a hit's shared shingles touch."""
    own = slice(int(hits.range_offsets[hit]), int(hits.range_offsets[hit + 1]))
    touched = touched_chunks(hits.range_start[own], hits.range_end[own], block.offsets(first, end))
    return np.asarray(touched + first, dtype=np.int64)


def _hit_rows(block: DocumentBlock, hits: Hits, is_leak: BoolArray, table: ShingleTable) -> Iterator[dict[str, Any]]:
    jaccard, containment = hits.jaccard(), hits.containment()
    for i, document in enumerate(hits.document.tolist()):
        touched = _touched(block, hits, i, int(block.bounds[document]), int(block.bounds[document + 1]))
        yield {
            "item": table.id(int(hits.item[i])),
            "document": block.first_document + document,
            "intersection": int(hits.intersection[i]),
            "document_shingles": int(hits.document_size[i]),
            "item_shingles": int(hits.item_size[i]),
            "jaccard": float(jaccard[i]),
            "containment": float(containment[i]),
            "touched": block.rows[touched],
            "removed": bool(is_leak[i]),
        }


def _short_rows(
    block: DocumentBlock, found: ScanResult, is_removed: bool, table: ShingleTable
) -> Iterator[dict[str, Any]]:
    """Texts too short for a shingle that are an item's, word for word."""
    for document, item in zip(found.short_hits.document.tolist(), found.short_hits.item.tolist(), strict=True):
        yield {
            "item": table.id(item),
            "document": block.first_document + document,
            "intersection": 0,
            "document_shingles": 0,
            "item_shingles": 0,
            "jaccard": 1.0,
            "containment": 1.0,
            "touched": block.rows[block.bounds[document] : block.bounds[document + 1]],
            "removed": is_removed,
        }


def _report(rows: list[dict[str, Any]], documents: pa.Table, payload: Any) -> pa.Table:
    """The rows with their documents' names, and ids in the place of rows of the range."""
    import pyarrow as pa

    first = payload["first_chunk"]
    names = documents.take([row.pop("document") for row in rows]).to_pylist() if rows else []
    for row, name in zip(rows, names, strict=True):
        row |= {**name, "testset": payload["testset"], "first_chunk": first + name["first_row"]}
        row["touched_chunks"] = (row.pop("touched") + first).tolist()
        del row["first_row"]
    return pa.Table.from_pylist(rows, schema=LEAK_REPORT)
