"""Stage dedup: what overlaps a test set gets tombstones, and every shard records what it was held against.

A registered test set is remembered. Documents that come later are held against it before any later stage sees them, and a
test set that comes later is held against the whole built database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retrodb.config import DedupParams, from_mapping, to_mapping
from retrodb.dedup.normalise import join_rows
from retrodb.dedup.testsets import read_test_items
from retrodb.engine.run import Run, add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import UsageError
from retrodb.format.arrays import save_array
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord, ScreenedRecord, screening_key
from retrodb.format.rows import deserialize_rows
from retrodb.stages.context import Context
from retrodb.stages.ingest_change import HELD_OUT_SET
from retrodb.stages.leak_scan import excluded_keys, run_count, run_leak_scan
from retrodb.stages.testset import TestSet, check_params, register
from retrodb.store import marks
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.view.tombstones import tombstone, tombstones_to_table
from retrodb.view.view import View

STAGE_VERSION = 1


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
    removed_documents: int
    removed_chunks: int
    contained_items: int  # items of which some document holds half or more, whatever the rule
    contained_documents: int  # documents that hold half or more of some item
    short_matches: int  # exact matches of texts too short for a shingle
    dry_run: bool = False


@dataclass(frozen=True)
class LeakHit:
    """One pair of a document and a test item that share shingles, as reported when it was found."""

    testset: str
    item: str
    source: str
    doc_id: str
    first_chunk: int
    num_chunks: int
    intersection: int
    document_shingles: int
    item_shingles: int
    jaccard: float
    containment: float
    touched_chunks: tuple[int, ...]
    removed: bool
    item_text: str
    document_excerpt: str  # text of the first touched chunk, "" when it is gone


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
        names = [name] if name else view.snapshot.names("testset")
        if name and view.snapshot.entry("testset", name) is None:
            raise UsageError(f"no test set '{name}'", remedy="Register it with 'retrodb dedup DB --against FILE'.")
        return [_screen(context, context.view(), _registered(view, n), dry_run=dry_run) for n in names]
    check_params(params)
    items = read_test_items(list(against), params.text_template)
    testset = register(context.storage, name or _stem(against[0]), items.ids, items.texts, params)
    return [_screen(context, view, testset, dry_run=dry_run)]


def screen_new_shards(context: Context) -> list[DedupResult]:
    """Hold what no test set has seen yet against all of them; held-out documents are a test set of their own."""
    view = context.view()
    results = []
    if view.snapshot.entry("queries", HELD_OUT_SET) is not None:
        testset = _held_out(context, view)
        if testset is not None:
            results.append(_screen(context, view, testset, dry_run=False))
    for name in context.view().snapshot.names("testset"):
        view = context.view()
        if view.unscreened_shards(name):
            results.append(_screen(context, view, _registered(view, name), dry_run=False))
    return results


def read_leaks(view: View, testset: str | None) -> list[LeakHit]:
    """The reported hits of one test set, or of all, the most contained first."""
    hits = []
    for name in [testset] if testset else view.snapshot.names("testset"):
        texts: dict[str, str] = {}
        for record in view.manifest.files("testsets", name):
            if record.path.endswith("/items.parquet"):
                texts.update(zip(*(c.to_pylist() for c in read_table(view.files.open(record)).columns), strict=True))
        for record in view.manifest.files("reports", name):
            hits += [_leak_hit(view, row, texts) for row in read_table(view.files.open(record)).to_pylist()]
    return sorted(hits, key=lambda hit: (-hit.containment, hit.item, hit.first_chunk))


def _leak_hit(view: View, row: dict[str, Any], texts: dict[str, str]) -> LeakHit:
    touched = tuple(row.pop("touched_chunks"))
    excerpt = view.chunks.texts(np.array(touched[:1], dtype=np.int64), deleted_too=True)
    return LeakHit(
        **row,
        touched_chunks=touched,
        item_text=texts.get(row["item"], ""),
        document_excerpt=excerpt[0] if excerpt else "",
    )


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _registered(view: View, name: str) -> TestSet:
    entry = view.snapshot.entry("testset", name)
    folder = path_of("testsets", name=name, task=entry["digest"], file="")
    files = [record for record in view.manifest.files("testsets", name) if record.path.startswith(folder)]
    return TestSet(name, entry["digest"], entry, tuple(files))


def _held_out(context: Context, view: View) -> TestSet | None:
    """The held-out documents as a test set under the paper's rule; None when all of them were registered so."""
    import pyarrow as pa

    chunks = view.query_set(HELD_OUT_SET)
    ids: list[str] = []
    texts: list[str] = []
    for record in chunks.ranges:
        layout, table = chunks.layout(record), chunks.documents_table(record)
        column = read_table(view.files.open(chunks.file("chunks", record.first_chunk, record.num_chunks)), ["text"])
        bounds = np.append(layout.first_row, record.num_chunks)
        documents = join_rows(column.column("text").combine_chunks(), bounds)
        live = chunks.live_mask(record.first_chunk, record.num_chunks)[layout.first_row].tolist()
        names = zip(table.column("source").to_pylist(), table.column("doc_id").to_pylist(), strict=True)
        for (source, doc_id), text, is_live in zip(names, documents.to_pylist(), live, strict=True):
            if is_live:
                ids.append(f"{source}/{doc_id}")
                texts.append(text)
    if not ids:
        return None
    testset = register(context.storage, HELD_OUT_SET, ids, pa.array(texts, pa.large_string()), DedupParams())
    entry = view.snapshot.entry("testset", HELD_OUT_SET)
    return None if entry and entry["digest"] == testset.digest else testset


def _screen(context: Context, view: View, testset: TestSet, *, dry_run: bool) -> DedupResult:
    """Hold every shard that was not yet screened against a test set, and commit what was found."""
    params = from_mapping(DedupParams, testset.entry["params"], where=f"test set {testset.name}")
    is_new = view.snapshot.entry("testset", testset.name) != testset.entry
    shards = list(range(len(view.shards))) if is_new else view.unscreened_shards(testset.name)
    ranges = [(int(view.shards.first_chunk[s]), int(view.shards.num_chunks[s])) for s in shards]
    plan = {"version": STAGE_VERSION, "testset": testset.name, "digest": testset.digest, "ranges": ranges}
    run = open_run(context.storage, "dedup", plan, context.clock)
    records: list[TaskRecord] = []
    if shards:
        excluded = _excluded(context, run, view, testset, params, ranges)
        tasks = [_task(run, view, testset, params, excluded, *span) for span in ranges]
        records = context.engine.run(run, tasks, run_leak_scan, context.progress)
    result = _result(view, testset, params, records, dry_run)
    if dry_run or not (shards or is_new):
        return result
    snapshot = commit(
        context.storage, view.snapshot, _change(context, view, run, testset, params, ranges, records, is_new)
    )
    return replace(result, snapshot=snapshot.number)


def _task(
    run: Run, view: View, testset: TestSet, params: DedupParams, excluded: FileRecord | None, first: int, count: int
) -> Task:
    documents, chunks = (view.chunks.file(kind, first, count) for kind in ("documents", "chunks"))
    for record in (documents, chunks, *testset.files):
        view.files.open(record)
    payload = {
        "run": run.id,
        "testset": testset.name,
        "params": to_mapping(params),
        "table": next(record.path for record in testset.files if record.path.endswith(".npy")),
        "excluded": excluded.path if excluded else None,
        "documents": documents.path,
        "chunks": chunks.path,
        "first_chunk": first,
    }
    inputs = [testset.digest, chunks.digest.sha256.hex(), excluded.digest.sha256.hex() if excluded else ""]
    return make_task("dedup", STAGE_VERSION, payload, inputs, count)


def _excluded(
    context: Context, run: Run, view: View, testset: TestSet, params: DedupParams, ranges: list[tuple[int, int]]
) -> FileRecord | None:
    """The shingles too frequent in the scanned documents to count towards containment, as a file of the run."""
    if params.max_document_frequency is None:
        return None
    tasks = [
        replace(t, id=identity(t.id, "count")) for t in (_task(run, view, testset, params, None, *r) for r in ranges)
    ]
    records = context.engine.run(run, tasks, run_count, context.progress)
    mask = excluded_keys(context.storage, records, params.max_document_frequency)
    path = path_of("runs", run=run.id, file="excluded.npy")
    return publish(context.storage, "runs", path, lambda local: save_array(local, mask))


def _result(view: View, testset: TestSet, params: DedupParams, records: list[TaskRecord], dry_run: bool) -> DedupResult:
    counts = add_counts(records)
    names = ("documents", "hits", "removed_documents", "removed_chunks", "contained_documents", "short_matches")
    return DedupResult(
        snapshot=view.snapshot.number,
        testset=testset.name,
        rule=params.rule,
        items=testset.entry["items"],
        matched_items=len({item for record in records for item in record.result["matched_items"]}),
        contained_items=len({item for record in records for item in record.result["contained_items"]}),
        **{name: counts.get(name, 0) for name in names},
        dry_run=dry_run,
    )


def _change(
    context: Context,
    view: View,
    run: Run,
    testset: TestSet,
    params: DedupParams,
    ranges: list[tuple[int, int]],
    records: list[TaskRecord],
    is_new: bool,
) -> Change:
    import pyarrow as pa

    files = list(testset.files) if is_new else []
    kept = {record.path for record in testset.files}
    replaced = [record.path for record in view.manifest.files("testsets", testset.name) if record.path not in kept]
    dead = [
        tombstone(first, count, f"leak:{testset.name}", deserialize_rows(bytes.fromhex(record.result["rows"])))
        for (first, count), record in zip(ranges, records, strict=True)
        if record.result["rows"]
    ]
    if dead:
        write = partial(write_table, table=tombstones_to_table(dead))
        files.append(publish(context.storage, "tombstones", path_of("tombstones", task=run.id), write))
    reports = [read_table(context.storage.local(file.path)) for record in records for file in record.files]
    if reports:
        write = partial(write_table, table=pa.concat_tables(reports))
        files.append(publish(context.storage, "reports", path_of("reports", task=run.id), write, name=testset.name))
    key = screening_key(testset.name, testset.digest)
    return Change(
        transaction=run.id,
        command="dedup",
        arguments={"testset": testset.name, **to_mapping(params)},
        clock=run.clock,
        marks=marks.dedup(testset.name),
        files=files,
        drops=[DropRecord(OP_DROP_FILE, path) for path in replaced],
        screened=[ScreenedRecord(key, first, count) for first, count in ranges],
        entries={f"testset/{testset.name}": testset.entry} if is_new else {},
        counts=add_counts(records),
    )
