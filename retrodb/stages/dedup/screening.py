"""Screening: shards are compared with one test set, and what leaks is deleted in a transaction.

The view that is screened may show shards that are not committed yet, see `screened_ingest.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.dedup.exact_scan import frequent_keys
from retrodb.engine.run import Run, add_counts
from retrodb.engine.task import TaskRecord
from retrodb.format.arrays import Int64Array, map_array, save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import ChunkRange, FileRecord, ScreenedRecord, screening_key
from retrodb.format.schemas import LEAK_REPORT
from retrodb.stages.context import Context
from retrodb.stages.dedup.leak_report import (
    LeakCounts,
    concat_reports,
    count_leaks,
    read_reports,
    removed_items,
    with_ids,
    with_removed,
)
from retrodb.stages.dedup.leak_scan import (
    CLEAN,
    COUNT,
    SCAN,
    CleanPayload,
    CountPayload,
    LeakedRows,
    ScanPayload,
    ShardFiles,
    run_clean,
    run_count,
    run_leak_scan,
)
from retrodb.stages.dedup.testset import TestSet, open_table
from retrodb.stages.deletion.undelete import compacted_documents, inputs_to_reread
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import digest_bytes, identity
from retrodb.store.publish import publish
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Screening:
    """What the comparison of some shards with a test set gave."""

    id: str  # equal for the same shards, test set and snapshot of one run: names the files of the change
    testset: TestSet
    spans: tuple[ChunkRange, ...]  # the shards that were compared
    report: pa.Table  # schema LEAK_REPORT: of these shards, and the rows of `replaced_reports`
    replaced_reports: tuple[FileRecord, ...]  # earlier reports: some of their hits are on an item that leaks now
    leaked_rows: Mapping[ChunkRange, Int64Array]  # rows to delete of each shard; at chunk level of earlier ones too
    num_documents: int  # scanned
    frequencies: FileRecord | None  # number of documents with each shingle, where the rule needs it

    @property
    def num_removed_chunks(self) -> int:
        """Chunks to delete."""
        return sum(len(rows) for rows in self.leaked_rows.values())

    @property
    def counts(self) -> LeakCounts:
        """Of the report."""
        return count_leaks(self.report)

    @property
    def history(self) -> dict[str, int]:
        """The counts as a snapshot keeps them."""
        counts = {name.removeprefix("num_"): count for name, count in asdict(self.counts).items()}
        return {"documents": self.num_documents, **counts}


def empty_screening(testset: TestSet) -> Screening:
    """The screening of no shard."""
    return Screening("", testset, (), LEAK_REPORT.empty_table(), (), {}, 0, None)


def spans_to_screen(view: View, testset: TestSet) -> list[ChunkRange]:
    """The shards that were not compared with this version of a test set yet."""
    shards = range(len(view.shards)) if testset.is_new else view.unscreened_shards(testset.name)
    return [view.shards.record(shard).span for shard in shards]


def screen_shards(context: Context, run: Run, view: View, testset: TestSet, spans: Sequence[ChunkRange]) -> Screening:
    """Compare some shards of a view with a test set. Nothing is changed but the run's folder."""
    frequencies = excluded = None
    if testset.entry.params.max_document_frequency is not None and spans:
        frequencies, excluded = _frequencies(context, run, view, testset, spans)
    records = _scan_shards(context, run, view, testset, excluded, spans)
    leaked_rows = {span: record.result.rows.present for span, record in zip(spans, records, strict=True)}
    report = _new_report(context, spans, records)
    replaced: tuple[FileRecord, ...] = ()
    if testset.entry.params.level == "chunk":
        report, replaced = _clean(context, run, view, testset, report, leaked_rows)
    return Screening(
        id=identity(run.id, view.snapshot.number, testset.name, testset.entry.digest, _plain(spans)),
        testset=testset,
        spans=tuple(spans),
        report=report,
        replaced_reports=replaced,
        leaked_rows=leaked_rows,
        num_documents=add_counts(records).get("documents", 0),
        frequencies=frequencies,
    )


def add_screening(transaction: Transaction, screening: Screening) -> None:
    """Add what a screening of the transaction's view gave: tombstones, report, screened ranges, and a new test set."""
    view, testset = transaction.view, screening.testset
    name = testset.name
    if testset.is_new:
        current = {record.path for record in testset.files}
        former = [*view.manifest.files("testsets", name), *view.manifest.files("reports", name)]
        transaction.drop_files(record for record in former if record.path not in current)
        transaction.files += testset.files
        transaction.set_entry(name, testset.entry)
    if screening.frequencies:
        transaction.files.append(screening.frequencies)
    transaction.drop_files(screening.replaced_reports)
    tombstones = _tombstones(view, screening)
    # What compaction dropped can come back only if its files are read again, those of this transaction's own ingest too.
    sources, inputs = inputs_to_reread(view, compacted_documents(view, tombstones))
    transaction.files = [file for file in transaction.files if file not in inputs]
    transaction.drop_files(inputs)
    transaction.add_tombstones(tombstones, task=identity(screening.id, "tombstones"))
    if screening.report.num_rows:
        path = path_of("reports", task=identity(screening.id, "report"))
        transaction.publish("reports", path, partial(write_table, table=screening.report), name=name)
    key = screening_key(name, testset.entry.digest)
    transaction.screened += [ScreenedRecord(key, *span) for span in screening.spans]
    revives = any(not change.active for change in tombstones)
    transaction.conflict_keys |= conflict_keys.dedup(name, *sources, revives=revives)


def _plain(spans: Sequence[ChunkRange]) -> list[list[int]]:
    return [list(span) for span in spans]


def _shard_files(view: View, span: ChunkRange) -> ShardFiles:
    """The texts of a shard, without its chunk ids: a task on a new shard is the same whatever ids the shard gets."""
    documents, chunks = (view.chunks.file(kind, *span).at(-1) for kind in ("documents", "chunks"))
    return ShardFiles(documents, chunks)


def _table_files(testset: TestSet) -> tuple[FileRecord, ...]:
    """The files of the test set's shingle table."""
    return tuple(record for record in testset.files if record.path.endswith(".npy"))


def _scan_shards(
    context: Context,
    run: Run,
    view: View,
    testset: TestSet,
    excluded: FileRecord | None,
    spans: Sequence[ChunkRange],
) -> list[TaskRecord[LeakedRows]]:
    table, tasks = _table_files(testset), []
    mask = excluded.path if excluded else None
    inputs = [testset.entry.digest, excluded.digest.sha256.hex() if excluded else ""]
    for span in spans:
        payload = ScanPayload(run.id, testset.name, testset.entry.params, table, mask, _shard_files(view, span))
        tasks.append(SCAN.task(payload, inputs, span.num_chunks))
    return context.engine.run(run, tasks, run_leak_scan, context.progress)


def _new_report(context: Context, spans: Sequence[ChunkRange], records: Sequence[TaskRecord[LeakedRows]]) -> pa.Table:
    return concat_reports(
        with_ids(read_table(context.storage.local(file.path)), span.first_chunk)
        for span, record in zip(spans, records, strict=True)
        for file in record.files
    )


def _clean(
    context: Context,
    run: Run,
    view: View,
    testset: TestSet,
    report: pa.Table,
    leaked_rows: dict[ChunkRange, Int64Array],
) -> tuple[pa.Table, tuple[FileRecord, ...]]:
    """At chunk level: add to `leaked_rows` all rows that leaked items touch; gives the report and the reports it replaces.

    An item that leaks in one document is removed from all documents, so a newly leaked item concerns earlier shards too.
    """
    earlier = [] if testset.is_new else view.manifest.files("reports", testset.name)
    leaked_before = removed_items(read_reports(view, earlier))
    leaked = leaked_before | removed_items(report)
    replaced = tuple(earlier) if leaked != leaked_before else ()
    spans = [record.span for record in view.chunks.ranges] if leaked != leaked_before else list(leaked_rows)
    report = with_removed(concat_reports([read_reports(view, replaced), report]), leaked)
    if leaked:
        table = open_table(view, testset)
        items = tuple(item for item in range(table.num_items) if table.id(item) in leaked)
        tasks = []
        for span in spans:
            payload = CleanPayload(_table_files(testset), items, _shard_files(view, span))
            tasks.append(CLEAN.task(payload, [testset.entry.digest], span.num_chunks))
        records = context.engine.run(run, tasks, run_clean, context.progress)
        for span, record in zip(spans, records, strict=True):
            leaked_rows[span] = np.union1d(leaked_rows.get(span, np.empty(0, np.int64)), record.result.rows.present)
    return report, replaced


def _frequencies(
    context: Context, run: Run, view: View, testset: TestSet, spans: Sequence[ChunkRange]
) -> tuple[FileRecord, FileRecord]:
    """The counts of these shards, to be kept, and the mask of shingles that are too frequent by all counts."""
    table, tasks = _table_files(testset), []
    for span in spans:
        payload = CountPayload(run.id, table, _shard_files(view, span))
        tasks.append(COUNT.task(payload, [testset.entry.digest], span.num_chunks))
    records = context.engine.run(run, tasks, run_count, context.progress)
    new = np.sum([map_array(context.storage.local(record.files[0].path)) for record in records], axis=0)
    task = identity(run.id, testset.entry.digest, _plain(spans))
    path = path_of("testsets", name=testset.name, task=task, file="counts.npy")
    counts = publish(context.storage, "testsets", path, lambda local: save_array(local, new), name=testset.name)
    earlier = [] if testset.is_new else view.manifest.files("testsets", testset.name)
    old = [view.files.whole_array(record) for record in earlier if record.path.endswith("/counts.npy")]
    total = np.sum([new, *old], axis=0)
    max_fraction = testset.entry.params.max_document_frequency
    assert max_fraction is not None
    mask = frequent_keys(total[:-1], int(total[-1]), max_fraction)
    path = path_of("runs", run=run.id, file=f"excluded/{digest_bytes(mask.tobytes()).sha256.hex()[:32]}.npy")
    return counts, publish(context.storage, "runs", path, lambda local: save_array(local, mask))


def _tombstones(view: View, screening: Screening) -> list[Tombstone]:
    """What the test set deletes and, for a new version, what only its former version deleted."""
    reason = f"leak:{screening.testset.name}"
    changes = []
    for (first, count), rows in screening.leaked_rows.items():
        if len(rows):
            changes.append(tombstone(first, count, reason, rows))
        former = view.chunks.tombstones.deleted_by_reason(first, count).get(reason)
        if screening.testset.is_new and former is not None:
            former[rows] = False
            if former.any():
                changes.append(tombstone(first, count, reason, np.flatnonzero(former), active=False))
    return changes
