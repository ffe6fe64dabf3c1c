"""The task of stage dedup: one shard held against one test set.

Every document of the shard is scanned, deleted or not: a document that is undeleted later must not bring a leak back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.config import DedupParams, from_mapping
from retrodb.dedup.leakscan import ScanResult, count_documents, frequent_keys, scan, touched_chunks
from retrodb.dedup.normalise import join_rows
from retrodb.dedup.rule import parse_rule
from retrodb.dedup.testtable import TestTable, load_table
from retrodb.engine.task import Task, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.rows import serialize_rows
from retrodb.format.schemas import LEAK_REPORT
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.layout import Layout

if TYPE_CHECKING:
    import pyarrow as pa

CONTAINED = 0.5
"""An item counts as contained in a document from this share of its shingles on; printed whatever the rule."""


def run_leak_scan(storage: Storage, task: Task, clock: str) -> TaskRecord:
    """Scan one shard; gives the rows to delete, the report, and what containment sees."""
    del clock  # nothing that is found knows the time
    payload = task.payload
    params = from_mapping(DedupParams, payload["params"], where="test set")
    table = _table(storage, payload)
    shard = _Shard(storage, payload)
    excluded = map_array(storage.local(payload["excluded"])) if payload["excluded"] else None
    found = scan(shard.documents(), table, excluded)
    decided = parse_rule(params.rule).decide(found.hits)
    rows = _rows_to_delete(shard, found, decided, params)
    report = _report(shard, table, found, decided, payload["testset"])
    contained = found.hits.containment() >= CONTAINED
    short = found.short_hits.document if params.short_texts == "remove" else found.short_hits.document[:0]
    result = {
        "rows": serialize_rows(rows).hex() if len(rows) else None,
        "contained_items": np.unique(found.hits.item[contained]).tolist(),
        "matched_items": np.unique(found.hits.item).tolist(),
    }
    counts = {
        "documents": len(shard.layout.first_row),
        "hits": len(found.hits),
        "removed_documents": len(np.unique(np.concatenate([found.hits.document[decided], short]))),
        "removed_chunks": len(rows),
        "contained_documents": len(np.unique(found.hits.document[contained])),
        "short_matches": len(found.short_hits.document),
    }
    files = []
    if report.num_rows:
        path = path_of("runs", run=payload["run"], file=f"reports/{task.id}.parquet")
        files.append(publish(storage, "runs", path, partial(write_table, table=report)))
    return TaskRecord(task.id, tuple(files), result, counts)


def run_count(storage: Storage, task: Task, clock: str) -> TaskRecord:
    """Count in how many documents of one shard each shingle of a test set stands."""
    del clock
    table = _table(storage, task.payload)
    shard = _Shard(storage, task.payload)
    counts = count_documents(shard.documents(), table)
    path = path_of("runs", run=task.payload["run"], file=f"counts/{task.id}.npy")
    file = publish(storage, "runs", path, lambda local: save_array(local, counts))
    return TaskRecord(task.id, (file,), {}, {"documents": len(shard.layout.first_row)})


def excluded_keys(storage: Storage, records: list[TaskRecord], max_share: float) -> BoolArray:
    """(K,) the keys of a test set that stand in more than a share of the counted documents."""
    counts = np.sum([map_array(storage.local(record.files[0].path)) for record in records], axis=0)
    return frequent_keys(counts, sum(record.counts["documents"] for record in records), max_share)


def _table(storage: Storage, payload: Any) -> TestTable:
    return load_table(storage.local(payload["table"]).parent)


class _Shard:
    """The documents of one shard."""

    def __init__(self, storage: Storage, payload: Any) -> None:
        self.first_chunk: int = payload["first_chunk"]
        self.table: pa.Table = read_table(storage.local(payload["documents"]))
        self.layout = Layout.from_table(self.table)
        self.texts = read_table(storage.local(payload["chunks"]), ["text"]).column("text").combine_chunks()

    def documents(self) -> pa.LargeStringArray:
        """The documents' texts, without a copy: the chunks of one lie side by side."""
        bounds = np.append(self.layout.first_row, len(self.texts))
        return join_rows(self.texts, bounds)

    def chunk_offsets(self, document: int) -> Int64Array:
        """Where in the document's bytes each of its chunks begins, and its end."""
        first = int(self.layout.first_row[document])
        offsets = np.frombuffer(self.texts.buffers()[1], np.int64)[self.texts.offset :]
        own = offsets[first : first + int(self.layout.num_chunks[document]) + 1]
        return np.asarray(own - own[0])


def _rows_to_delete(shard: _Shard, found: ScanResult, decided: BoolArray, params: DedupParams) -> Int64Array:
    short = found.short_hits.document if params.short_texts == "remove" else found.short_hits.document[:0]
    documents = np.unique(np.concatenate([found.hits.document[decided], short]))
    if params.level == "document":
        return shard.layout.rows_of(shard.layout.first_row[documents])
    rows = [shard.layout.rows_of(shard.layout.first_row[np.unique(short)])]
    rows += [_touched_rows(shard, found, hit) for hit in np.flatnonzero(decided).tolist()]
    return np.unique(np.concatenate(rows))


def _touched_rows(shard: _Shard, found: ScanResult, hit: int) -> Int64Array:
    """Rows of the chunks that a hit's shared shingles touch.

    All of a shared n-gram lies in them, so that without them no [chunk, continuation] holds it any more.
    """
    hits = found.hits
    document = int(hits.document[hit])
    ranges = slice(int(hits.range_offsets[hit]), int(hits.range_offsets[hit + 1]))
    chunks = touched_chunks(hits.range_start[ranges], hits.range_end[ranges], shard.chunk_offsets(document))
    return np.asarray(chunks + shard.layout.first_row[document], dtype=np.int64)


def _report(shard: _Shard, table: TestTable, found: ScanResult, decided: BoolArray, testset: str) -> pa.Table:
    import pyarrow as pa

    hits, documents = found.hits, shard.table.select(["source", "doc_id"]).to_pylist() if len(found.hits) else []
    jaccard, containment = hits.jaccard(), hits.containment()
    rows = [
        {
            "testset": testset,
            "item": table.id(int(hits.item[i])),
            **documents[document],
            "first_chunk": shard.first_chunk + int(shard.layout.first_row[document]),
            "num_chunks": int(shard.layout.num_chunks[document]),
            "intersection": int(hits.intersection[i]),
            "document_shingles": int(hits.document_size[i]),
            "item_shingles": int(hits.item_size[i]),
            "jaccard": float(jaccard[i]),
            "containment": float(containment[i]),
            "touched_chunks": (_touched_rows(shard, found, i) + shard.first_chunk).tolist(),
            "removed": bool(decided[i]),
        }
        for i, document in enumerate(hits.document.tolist())
    ]
    return pa.Table.from_pylist(rows, schema=LEAK_REPORT)
