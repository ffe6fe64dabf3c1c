"""The tasks of stage dedup: the documents of one shard are compared with one test set.

Every document of the shard is scanned, deleted or not, because a document that is undeleted later must not bring a leak back.
Results name rows of the shard and no chunk ids, so they are valid before a new shard has its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retrodb.config import DedupParams
from retrodb.dedup.exact_scan import Hits, ScanResult, count_documents, scan_texts, touched_chunks
from retrodb.dedup.leak_rule import parse_rule
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.minhash_scan import MinHashScan
from retrodb.dedup.shingle_table import ShingleTable, load_shingle_table
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format.arrays import BoolArray, Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet, serialize_rows
from retrodb.stages.dedup.leak_report import ReportRow, concat_reports, report_table
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.document_blocks import DocumentBlock, document_blocks
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_VERSION = 3

ScanFunction: TypeAlias = "Callable[[pa.LargeStringArray], ScanResult]"


@dataclass(frozen=True)
class ShardFiles:
    """The texts of one shard; the task that reads them verifies them. The shard may have no chunk ids yet."""

    documents: FileRecord
    chunks: FileRecord


@dataclass(frozen=True)
class CountPayload:
    """Count shingles of a test set in a shard."""

    run: str  # id of the run that stores the counts
    table: tuple[FileRecord, ...]  # the files of the test set's shingle table
    shard: ShardFiles


@dataclass(frozen=True)
class ScanPayload:
    """Compare a shard with a test set under its rule."""

    run: str  # id of the run that stores the report
    testset: str  # name, for the report
    params: DedupParams
    table: tuple[FileRecord, ...]  # the files of the test set's shingle table
    excluded: str | None  # path of the mask of shingles that do not count because they are too frequent
    shard: ShardFiles


@dataclass(frozen=True)
class CleanPayload:
    """Find all chunks of a shard that shingles of some items touch."""

    table: tuple[FileRecord, ...]  # the files of the test set's shingle table
    items: tuple[int, ...]  # of the table
    shard: ShardFiles


@dataclass(frozen=True)
class LeakedRows:
    """Rows of a shard to delete."""

    rows: RowSet


COUNT = TaskKind[CountPayload, NoResult]("leak-count", STAGE_VERSION, NoResult)
SCAN = TaskKind[ScanPayload, LeakedRows]("leak-scan", STAGE_VERSION, LeakedRows)
CLEAN = TaskKind[CleanPayload, LeakedRows]("leak-clean", STAGE_VERSION, LeakedRows)


def run_count(storage: Storage, task: Task[CountPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Count the documents of one shard that have each shingle (K,) of a test set; the last number is of all documents."""
    del clock
    payload = task.payload
    table = _open_table(storage, payload.table)
    counts = np.zeros(len(table.keys) + 1, dtype=np.int64)
    for block in _blocks(storage, payload.shard):
        documents = block.documents()
        counts[:-1] += count_documents(documents, table)
        counts[-1] += len(documents)
    path = path_of("runs", run=payload.run, file=f"counts/{task.id}.npy")
    return TaskRecord(task.id, (publish(storage, "runs", path, lambda local: save_array(local, counts)),))


def run_leak_scan(storage: Storage, task: Task[ScanPayload, LeakedRows], clock: str) -> TaskRecord[LeakedRows]:
    """Scan one shard; gives the report, schema LEAK_REPORT with rows instead of ids, and the rows to delete.

    At chunk level only short texts are among these rows: `run_clean` finds the others when all shards are scanned and
    the leaked items are known.
    """
    del clock  # the report does not depend on the time
    payload = task.payload
    table = _open_table(storage, payload.table)
    shown = ["source", "doc_id", "first_row", "num_chunks"]
    documents = read_table(VerifiedFiles(storage).open(payload.shard.documents), shown)
    scanner = _Scanner(payload, table, _scan_function(storage, payload, table))
    leaked, reports = [np.empty(0, np.int64)], []
    for block in _blocks(storage, payload.shard):
        leaked_documents, matches = scanner.compare(block)
        leaked.append(_rows_of(documents, leaked_documents))
        reports.append(_report(matches, documents, payload.testset))
    report = concat_reports(reports)
    files = []
    if report.num_rows:
        path = path_of("runs", run=payload.run, file=f"reports/{task.id}.parquet")
        files.append(publish(storage, "runs", path, partial(write_table, table=report)))
    rows = _row_set(payload.shard, np.concatenate(leaked))
    return TaskRecord(task.id, tuple(files), LeakedRows(rows), {"documents": documents.num_rows})


def run_clean(storage: Storage, task: Task[CleanPayload, LeakedRows], clock: str) -> TaskRecord[LeakedRows]:
    """The rows of one shard that shingles of some items touch, in a document or in any [chunk, continuation].

    A chunk may begin or end inside a word, and the rest of this word may complete an n-gram that the document does not have.
    So every text that a reader may see is scanned: documents, chunks, and chunks with their continuation. Each text with an
    n-gram of the items loses a chunk.
    """
    del clock
    payload = task.payload
    table, items = _open_table(storage, payload.table), np.array(payload.items, dtype=np.int64)
    leaked = [np.empty(0, np.int64)]
    for block in _blocks(storage, payload.shard):
        for texts, first, end in block.windows():
            hits = scan_texts(texts, table).hits
            for hit in np.flatnonzero(np.isin(hits.item, items)).tolist():
                window = hits.document[hit]
                leaked.append(block.rows[_touched(block, hits, hit, int(first[window]), int(end[window]))])
    return TaskRecord(task.id, (), LeakedRows(_row_set(payload.shard, np.unique(np.concatenate(leaked)))))


def _row_set(shard: ShardFiles, rows: Int64Array) -> RowSet:
    return RowSet(shard.chunks.num_chunks, serialize_rows(rows))


def _open_table(storage: Storage, files: Sequence[FileRecord]) -> ShingleTable:
    return load_shingle_table(map(VerifiedFiles(storage).open, files))


def _blocks(storage: Storage, shard: ShardFiles) -> Iterator[DocumentBlock]:
    files = VerifiedFiles(storage)
    layout = DocumentLayout.from_table(read_table(files.open(shard.documents), LAYOUT_COLUMNS))
    return document_blocks(files.open(shard.chunks), layout, files.rows(shard.chunks).present)


def _scan_function(storage: Storage, payload: ScanPayload, table: ShingleTable) -> ScanFunction:
    params = payload.params
    excluded: BoolArray | None = map_array(storage.local(payload.excluded)) if payload.excluded else None
    if params.method == "exact":
        return partial(scan_texts, table=table, excluded=excluded)
    return MinHashScan(table, params.permutations, parse_bands(params.bands, params.permutations))


@dataclass(frozen=True)
class _Match:
    """A document and an item of the test set."""

    document: int  # of the shard's documents, 0 .. M-1
    item: str
    intersection: int
    document_shingles: int
    item_shingles: int
    jaccard: float
    containment: float
    touched: Int64Array  # rows of the shard
    is_removed: bool


class _Scanner:
    """Compares blocks of documents with a test set under its rule."""

    def __init__(self, payload: ScanPayload, table: ShingleTable, scan_texts: ScanFunction) -> None:
        self._table, self._scan_texts = table, scan_texts
        self._rule = parse_rule(payload.params.rule)
        self._removes_documents = payload.params.level == "document"
        self._removes_short = payload.params.short_texts == "remove"

    def compare(self, block: DocumentBlock) -> tuple[Int64Array, list[_Match]]:
        """The documents (0 .. M-1 of the shard) to delete whole, ascending, and all matches."""
        result = self._scan_texts(block.documents())
        is_leak = self._rule.is_leak(result.hits)
        removed = [np.empty(0, np.int64)]
        if self._removes_documents:
            removed.append(result.hits.document[is_leak])
        if self._removes_short:
            removed.append(result.short_hits.document)
        documents = np.unique(np.concatenate(removed)) + block.first_document
        return documents, [*self._matches(block, result.hits, is_leak), *self._short_matches(block, result)]

    def _matches(self, block: DocumentBlock, hits: Hits, is_leak: BoolArray) -> Iterator[_Match]:
        jaccard, containment = hits.jaccard(), hits.containment()
        for i, document in enumerate(hits.document.tolist()):
            touched = _touched(block, hits, i, int(block.bounds[document]), int(block.bounds[document + 1]))
            yield _Match(
                document=block.first_document + document,
                item=self._table.id(int(hits.item[i])),
                intersection=int(hits.intersection[i]),
                document_shingles=int(hits.document_size[i]),
                item_shingles=int(hits.item_size[i]),
                jaccard=float(jaccard[i]),
                containment=float(containment[i]),
                touched=block.rows[touched],
                is_removed=bool(is_leak[i]),
            )

    def _short_matches(self, block: DocumentBlock, result: ScanResult) -> Iterator[_Match]:
        """Texts that are too short for a shingle and have exactly the words of an item."""
        short = result.short_hits
        for document, item in zip(short.document.tolist(), short.item.tolist(), strict=True):
            touched = block.rows[block.bounds[document] : block.bounds[document + 1]]
            yield _Match(
                document=block.first_document + document,
                item=self._table.id(item),
                intersection=0,
                document_shingles=0,
                item_shingles=0,
                jaccard=1.0,
                containment=1.0,
                touched=touched,
                is_removed=self._removes_short,
            )


def _touched(block: DocumentBlock, hits: Hits, hit: int, first: int, end: int) -> Int64Array:
    """The chunks of a block, of those from `first` to `end`, that a hit's shared shingles touch."""
    ranges = slice(int(hits.range_offsets[hit]), int(hits.range_offsets[hit + 1]))
    touched = touched_chunks(hits.range_start[ranges], hits.range_end[ranges], block.offsets(first, end))
    return np.asarray(touched + first, dtype=np.int64)


def _rows_of(documents: pa.Table, chosen: Int64Array) -> Int64Array:
    """The rows of some documents of a shard."""
    table = documents.take(chosen)
    pairs = zip(table.column("first_row").to_pylist(), table.column("num_chunks").to_pylist(), strict=True)
    return np.concatenate([np.empty(0, np.int64), *(np.arange(first, first + count) for first, count in pairs)])


def _report(matches: list[_Match], documents: pa.Table, testset: str) -> pa.Table:
    """The matches with the names of their documents."""
    chosen = documents.take(np.array([match.document for match in matches], dtype=np.int64)).to_pylist()
    return report_table(
        ReportRow(
            testset=testset,
            item=match.item,
            source=document["source"],
            doc_id=document["doc_id"],
            first_chunk=document["first_row"],
            num_chunks=document["num_chunks"],
            intersection=match.intersection,
            document_shingles=match.document_shingles,
            item_shingles=match.item_shingles,
            jaccard=match.jaccard,
            containment=match.containment,
            touched_chunks=tuple(match.touched.tolist()),
            removed=match.is_removed,
        )
        for match, document in zip(matches, chosen, strict=True)
    )
