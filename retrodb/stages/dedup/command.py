"""Stage dedup: what overlaps a test set gets tombstones, and every shard records what it was held against.

A registered test set is remembered. Documents that come later are held against it before any later stage sees them, and a
test set that comes later is held against the whole built database. Registering it again with other items or another rule
starts afresh: what only the former version removed comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.config import DedupParams, to_mapping
from retrodb.dedup.exact_scan import frequent_keys
from retrodb.dedup.leak_rule import parse_rule
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.testset_items import read_test_items
from retrodb.engine.run import Run, add_counts, open_run
from retrodb.engine.task import Task, TaskFunction, TaskRecord, make_task
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array, map_array, save_array
from retrodb.format.entries import QueriesEntry, TestsetEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord, ScreenedRecord, screening_key
from retrodb.format.rows import deserialize_rows
from retrodb.format.schemas import LEAK_REPORT
from retrodb.stages.context import Context
from retrodb.stages.dedup.leak_report import read_reports, removed_items, summary, with_removed
from retrodb.stages.dedup.leak_scan import run_clean, run_count, run_leak_scan
from retrodb.stages.dedup.testset import TestSet, check_params, open_table, register, registered
from retrodb.stages.deletion.undelete import compacted_documents, inputs_to_reread
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.publish import publish
from retrodb.view.document_blocks import document_texts
from retrodb.view.tombstones import Tombstone, tombstone, tombstones_to_table
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_VERSION = 2
Span = tuple[int, int]  # first chunk and number of chunks of a shard


@dataclass(frozen=True)
class DedupResult:
    """What holding the database against a test set gave."""

    snapshot: int  # the snapshot it made, or the one where nothing was left to screen
    testset: str
    rule: str
    items: int  # of the test set
    documents: int  # scanned
    hits: int  # pairs of a document and an item that share a shingle
    matched_items: int  # items with a hit
    removed_documents: int  # documents that lost all, or at chunk level some, of their chunks
    removed_chunks: int
    contained_items: int  # items of which some document holds half or more, whatever the rule
    contained_documents: int  # documents that hold half or more of some item
    short_matches: int  # documents too short for a shingle that are an item word for word
    expected_miss: float = (
        0.0  # share of the true pairs that MinHash bands are expected to miss; the exact method misses none
    )
    dry_run: bool = False


@dataclass(frozen=True)
class _Found:
    """What one screening found."""

    spans: list[Span]  # the shards that were held against the test set
    report: pa.Table  # of these, and of earlier hits that turned out to be on a contained item
    replaced: list[str]  # the report files whose rows stand in it anew
    dead: dict[Span, Int64Array]  # rows to delete of each shard, of earlier ones too
    num_documents: int  # scanned
    counts: FileRecord | None  # in how many documents each shingle stands, where the rule asks


def run_dedup(
    context: Context, against: Sequence[Path], params: DedupParams, *, name: str | None = None, dry_run: bool = False
) -> list[DedupResult]:
    """Register a test set and screen the database with it; without files, finish the screening of registered ones.

    Raises:
        UsageError, InputError: for files or options that cannot be meant.
        ConflictError: when the same test set was registered meanwhile.
    """
    view = context.view()
    if not against:
        names = [name] if name else view.snapshot.names(TestsetEntry)
        if name and view.snapshot.entry(TestsetEntry, name) is None:
            raise UsageError(f"no test set '{name}'", remedy="Register it with 'retrodb dedup DB --against FILE'.")
        return [_screen(context, registered(view, n), dry_run=dry_run) for n in names]
    check_params(params)
    items = read_test_items(list(against), params.text_template)
    testset = register(view, name or _stem(against[0]), items.ids, items.texts, params)
    return [_screen(context, testset, dry_run=dry_run)]


def screen_with(
    context: Context, name: str, ids: Sequence[str], texts: pa.LargeStringArray, params: DedupParams
) -> DedupResult:
    """Register a test set by its items and hold the database against it. Raises as `run_dedup`."""
    return _screen(context, register(context.view(), name, ids, texts, params), dry_run=False)


def screen_new_shards(context: Context) -> list[DedupResult]:
    """Hold what no test set has seen yet against all of them; held-out documents are a test set of their own."""
    view = context.view()
    results = []
    if view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is not None:
        testset = _held_out(view)
        if testset is not None and testset.is_new:
            results.append(_screen(context, testset, dry_run=False))
    for name in context.view().snapshot.names(TestsetEntry):
        view = context.view()
        if view.unscreened_shards(name):
            results.append(_screen(context, registered(view, name), dry_run=False))
    return results


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _held_out(view: View) -> TestSet | None:
    """The live held-out documents as a test set under the paper's rule; None when there are none."""
    chunks = view.query_set(HELD_OUT_SET)
    firsts = [np.empty(0, dtype=np.int64)]
    for record in chunks.ranges:
        rows = chunks.layout(record).first_row
        firsts.append(record.first_chunk + rows[chunks.live_mask(record.first_chunk, record.num_chunks)[rows]])
    ids = np.concatenate(firsts)
    if not len(ids):
        return None
    names = [f"{document['source']}/{document['doc_id']}" for document in chunks.documents(ids) if document]
    return register(view, HELD_OUT_SET, names, document_texts(chunks, ids), DedupParams())


def _screen(context: Context, testset: TestSet, *, dry_run: bool) -> DedupResult:
    """Hold every shard that was not yet screened against a test set, and commit what was found."""
    view = context.view()
    params = testset.entry.params
    shards = range(len(view.shards)) if testset.is_new else view.unscreened_shards(testset.name)
    spans = [(int(view.shards.first_chunk[s]), int(view.shards.num_chunks[s])) for s in shards]
    if not spans and not testset.is_new:
        return _result(view, testset, params, _Found([], LEAK_REPORT.empty_table(), [], {}, 0, None), dry_run)
    plan = {"version": STAGE_VERSION, "testset": testset.name, "entry": testset.entry, "spans": spans}
    run = open_run(context.storage, "dedup", plan, context.clock)
    found = _scan(context, run, view, testset, params, spans)
    result = _result(view, testset, params, found, dry_run)
    if dry_run:
        return result
    snapshot = commit(context.storage, view.snapshot, _change(context, view, run, testset, params, found))
    return replace(result, snapshot=snapshot.number)


def _scan(context: Context, run: Run, view: View, testset: TestSet, params: DedupParams, spans: list[Span]) -> _Found:
    excluded = counts = None
    if params.max_document_frequency is not None and spans:
        counts, excluded = _frequencies(context, run, view, testset, params.max_document_frequency, spans)

    def run_all(function: TaskFunction[Any, Any], over: list[Span], **more: Any) -> list[TaskRecord[Any]]:
        tasks = [_task(function.__name__, run, view, testset, excluded, span, more) for span in over]
        return context.engine.run(run, tasks, function, context.progress)

    records = run_all(run_leak_scan, spans)
    dead = {span: _rows(record) for span, record in zip(spans, records, strict=True)}
    report = _read_new_reports(context, records)
    replaced: list[FileRecord] = []
    if params.level == "chunk":
        earlier = [] if testset.is_new else view.manifest.files("reports", testset.name)
        known = removed_items(read_reports(view, earlier))
        leaked = known | removed_items(report)
        if leaked != known:  # an item that leaks anywhere is taken out everywhere
            replaced = earlier
            spans_to_clean = [(r.first_chunk, r.num_chunks) for r in view.chunks.ranges]
        else:
            spans_to_clean = spans
        report = with_removed(_joined(read_reports(view, replaced), report), leaked)
        if leaked:
            table = open_table(view, testset)
            items = [item for item in range(table.num_items) if table.id(item) in leaked]
            for span, record in zip(spans_to_clean, run_all(run_clean, spans_to_clean, items=items), strict=True):
                dead[span] = np.union1d(dead.get(span, np.empty(0, np.int64)), _rows(record))
    num_documents = add_counts(records).get("documents", 0)
    return _Found(spans, report, [record.path for record in replaced], dead, num_documents, counts)


def _task(
    stage: str, run: Run, view: View, testset: TestSet, excluded: FileRecord | None, span: Span, more: dict[str, Any]
) -> Task[Any, Any]:
    documents, chunks = (view.chunks.file(kind, *span) for kind in ("documents", "chunks"))
    for record in (documents, chunks, *testset.files):
        view.files.open(record)
    payload = {
        "run": run.id,
        "testset": testset.name,
        "params": to_mapping(testset.entry.params),
        "table": next(record.path for record in testset.files if record.path.endswith(".npy")),
        "excluded": excluded.path if excluded else None,
        "documents": documents.path,
        "chunks": chunks.path,
        "rows": chunks.rows.hex() if chunks.rows is not None else None,
        "first_chunk": span[0],
        "num_chunks": span[1],
        **more,
    }
    inputs = [testset.entry.digest, chunks.digest.sha256.hex(), excluded.digest.sha256.hex() if excluded else ""]
    return make_task(stage, STAGE_VERSION, payload, inputs, span[1])


def _rows(record: TaskRecord[Any]) -> Int64Array:
    return deserialize_rows(bytes.fromhex(record.result["rows"]))


def _read_new_reports(context: Context, records: list[TaskRecord[Any]]) -> pa.Table:
    paths = [context.storage.local(file.path) for record in records for file in record.files]
    return _joined(*(read_table(path) for path in paths))


def _joined(*reports: pa.Table) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables([LEAK_REPORT.empty_table(), *reports])


def _frequencies(
    context: Context, run: Run, view: View, testset: TestSet, max_share: float, spans: list[Span]
) -> tuple[FileRecord, FileRecord]:
    """The counts of the new shards, to be kept, and the shingles that all counts together call too frequent."""
    tasks = [_task("run_count", run, view, testset, None, span, {}) for span in spans]
    records = context.engine.run(run, tasks, run_count, context.progress)
    new = np.sum([map_array(context.storage.local(record.files[0].path)) for record in records], axis=0)
    path = path_of("testsets", name=testset.name, task=run.id, file="counts.npy")
    counts = publish(context.storage, "testsets", path, lambda local: save_array(local, new), name=testset.name)
    kept = [] if testset.is_new else view.manifest.files("testsets", testset.name)
    old = [map_array(view.files.open(record)) for record in kept if record.path.endswith("/counts.npy")]
    total = np.sum([new, *old], axis=0)
    mask = frequent_keys(total[:-1], int(total[-1]), max_share)
    path = path_of("runs", run=run.id, file="excluded.npy")
    return counts, publish(context.storage, "runs", path, lambda local: save_array(local, mask))


def _result(view: View, testset: TestSet, params: DedupParams, found: _Found, dry_run: bool) -> DedupResult:
    miss = 0.0
    if params.method == "minhash":
        threshold = float(parse_rule(params.rule).threshold)
        miss = parse_bands(params.bands, params.permutations).expected_miss(threshold)
    return DedupResult(
        snapshot=view.snapshot.number,
        testset=testset.name,
        rule=params.rule,
        items=testset.entry.items,
        documents=found.num_documents,
        removed_chunks=sum(len(rows) for rows in found.dead.values()),
        **summary(found.report),
        expected_miss=miss,
        dry_run=dry_run,
    )


def _change(context: Context, view: View, run: Run, testset: TestSet, params: DedupParams, found: _Found) -> Change:
    name = testset.name
    files = [*testset.files] if testset.is_new else []
    files += [found.counts] if found.counts else []
    drops = list(found.replaced)
    if testset.is_new:
        kept = {record.path for record in testset.files}
        former = [*view.manifest.files("testsets", name), *view.manifest.files("reports", name)]
        drops += [record.path for record in former if record.path not in kept]
    dead = _tombstones(view, testset, found)
    sources, inputs = inputs_to_reread(view, compacted_documents(view, dead))
    if dead:
        write = partial(write_table, table=tombstones_to_table(dead))
        files.append(publish(context.storage, "tombstones", path_of("tombstones", task=run.id), write))
    if found.report.num_rows:
        write = partial(write_table, table=found.report)
        files.append(publish(context.storage, "reports", path_of("reports", task=run.id), write, name=name))
    key = screening_key(name, testset.entry.digest)
    return Change(
        transaction=run.id,
        command="dedup",
        arguments={"testset": name, **to_mapping(params)},
        clock=run.clock,
        conflict_keys=conflict_keys.dedup(name, *sources, revives=any(not each.active for each in dead)),
        files=files,
        drops=[DropRecord(OP_DROP_FILE, path) for path in (*drops, *inputs)],
        screened=[ScreenedRecord(key, first, count) for first, count in found.spans],
        entries={f"testset/{name}": testset.entry} if testset.is_new else {},
        counts={"documents": found.num_documents, **summary(found.report)},
    )


def _tombstones(view: View, testset: TestSet, found: _Found) -> list[Tombstone]:
    """What the test set deletes and, where it is registered anew, what its former version alone deleted."""
    reason = f"leak:{testset.name}"
    changes = []
    for (first, count), rows in found.dead.items():
        if len(rows):
            changes.append(tombstone(first, count, reason, rows))
        former = view.chunks.tombstones.deleted_by_reason(first, count).get(reason)
        if testset.is_new and former is not None:
            former[rows] = False
            if former.any():
                changes.append(tombstone(first, count, reason, np.flatnonzero(former), active=False))
    return changes
