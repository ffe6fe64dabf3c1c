"""Stage dedup: documents that overlap a test set are deleted, and every shard records what it was compared with.

A registered test set is remembered. Later documents are compared with it before any later stage sees them, and a new test
set is compared with the whole database. Registering a test set again with other items or another rule screens everything
again, and brings back what only the former version removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.config import DedupParams
from retrodb.dedup.leak_rule import parse_rule
from retrodb.dedup.lsh import parse_bands
from retrodb.dedup.testset_items import read_test_items
from retrodb.engine.run import Run, open_run
from retrodb.format.entries import QueriesEntry, TestsetEntry
from retrodb.format.json_codec import to_plain_object
from retrodb.stages.context import Context
from retrodb.stages.dedup.leak_scan import STAGE_VERSION
from retrodb.stages.dedup.screening import Screening, add_screening, empty_screening, screen_shards, spans_to_screen
from retrodb.stages.dedup.testset import TestSet, check_params, register_testset, registered_testset
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.document_blocks import document_texts
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class DedupResult:
    """What the comparison of the database with a test set gave."""

    snapshot: int  # the new snapshot, or the one where nothing was left to screen
    testset: str
    rule: str
    num_items: int  # of the test set
    num_documents: int  # scanned
    num_hits: int  # pairs of a document and an item with a shared shingle
    num_matched_items: int  # items with a hit
    num_removed_documents: int  # documents that lost all chunks, or at chunk level some
    num_removed_chunks: int
    num_contained_items: int  # items of which a document has half or more, whatever the rule
    num_contained_documents: int  # documents that have half or more of an item
    num_short_matches: int  # documents that are too short for a shingle and equal to an item, word for word
    expected_miss: float = (
        0.0  # fraction of true pairs that MinHash bands miss on average; the exact method misses none
    )
    dry_run: bool = False
    unused_text_fields: tuple[str, ...] = ()  # fields of the test set with long texts that were not compared


@dataclass(frozen=True)
class DedupPlan:
    """What a screening is going to delete."""

    view: View
    run: Run | None  # None: nothing is left to screen
    screening: Screening
    result: DedupResult  # of a dry run


def run_dedup(
    context: Context, against: Sequence[Path], params: DedupParams, *, name: str | None = None, dry_run: bool = False
) -> list[DedupResult]:
    """Register a test set and screen the database with it; without files, finish the screening of registered ones.

    Raises:
        UsageError, InputError: for invalid files or options.
        ConflictError: the same test set was registered meanwhile.
    """
    view = context.view()
    if against:
        check_params(params)
        items = read_test_items(list(against), params.text_template)
        testset = register_testset(view, name or _stem(against[0]), items.ids, items.texts, params)
        return [replace(_run(context, testset, dry_run=dry_run), unused_text_fields=items.unused_text_fields)]
    names = [name] if name else view.snapshot.names(TestsetEntry)
    return [_run(context, registered_testset(view, testset), dry_run=dry_run) for testset in names]


def screen_with(
    context: Context, name: str, ids: Sequence[str], texts: pa.LargeStringArray, params: DedupParams
) -> DedupResult:
    """Register a test set by its items and screen the database with it. Raises as `run_dedup`."""
    return _run(context, register_testset(context.view(), name, ids, texts, params), dry_run=False)


def screen_new_shards(context: Context) -> list[DedupResult]:
    """Screen all shards that are not screened yet, with one commit for each test set."""
    return [_run(context, testset, dry_run=False) for testset in _testsets_to_screen(context.view())]


def screen_staged(transaction: Transaction) -> None:
    """Screen all shards of a transaction's view that are not screened yet, as part of the transaction."""
    for testset in _testsets_to_screen(transaction.view):
        spans = spans_to_screen(transaction.view, testset)
        screening = screen_shards(transaction.context, transaction.run, transaction.view, testset, spans)
        add_screening(transaction, screening)
        for key, count in screening.history.items():
            key = "screened_documents" if key == "documents" else key
            transaction.counts[key] = transaction.counts.get(key, 0) + count


def plan_dedup(context: Context, testset: TestSet) -> DedupPlan:
    """Compare all shards that are not screened yet with a test set.

    The shards are scanned here, because the scan tells what would be deleted. The scans are stored in the run's folder, and
    `execute_dedup` and any later run of the same command use them.
    """
    view = context.view()
    spans = spans_to_screen(view, testset)
    if not spans and not testset.is_new:
        screening = empty_screening(testset)
        return DedupPlan(view, None, screening, _result(view, screening))
    plan = {
        "version": STAGE_VERSION,
        "testset": testset.name,
        "entry": to_plain_object(testset.entry),
        "spans": [list(span) for span in spans],
    }
    run = open_run(context.storage, "dedup", plan, context.clock)
    screening = screen_shards(context, run, view, testset, spans)
    return DedupPlan(view, run, screening, _result(view, screening))


def execute_dedup(context: Context, plan: DedupPlan) -> DedupResult:
    """Delete what the plan's screening found, and register its test set.

    Raises:
        ConflictError: the same test set was registered meanwhile.
    """
    result = replace(plan.result, dry_run=False)
    if plan.run is None:
        return result
    testset = plan.screening.testset
    arguments = {"testset": testset.name, **to_plain_object(testset.entry.params)}
    keys = conflict_keys.dedup(testset.name)
    transaction = Transaction.of_run(context, plan.view, plan.run, "dedup", keys, arguments=arguments)
    add_screening(transaction, plan.screening)
    transaction.counts = plan.screening.history
    return replace(result, snapshot=transaction.commit().number)


def _run(context: Context, testset: TestSet, *, dry_run: bool) -> DedupResult:
    plan = plan_dedup(context, testset)
    return plan.result if dry_run else execute_dedup(context, plan)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _testsets_to_screen(view: View) -> list[TestSet]:
    """The test sets with which shards were not compared yet; among them the one of the held-out documents."""
    held_out = _held_out_testset(view)
    new = [held_out] if held_out is not None and held_out.is_new else []
    replaced = [testset.name for testset in new]
    names = [name for name in view.snapshot.names(TestsetEntry) if name not in replaced]
    return new + [registered_testset(view, name) for name in names if view.unscreened_shards(name)]


def _held_out_testset(view: View) -> TestSet | None:
    """The live held-out documents as a test set under the paper's rule; None when there are none."""
    if view.snapshot.entry(QueriesEntry, HELD_OUT_SET) is None:
        return None
    chunks = view.query_set(HELD_OUT_SET)
    ids = np.concatenate(
        [
            np.empty(0, dtype=np.int64),
            *(
                record.first_chunk + rows[chunks.live_mask(*record.span)[rows]]
                for record in chunks.ranges
                for rows in [chunks.layout(record).first_row]
            ),
        ]
    )
    if not len(ids):
        return None
    names = [f"{document['source']}/{document['doc_id']}" for document in chunks.documents(ids) if document]
    return register_testset(view, HELD_OUT_SET, names, document_texts(chunks, ids), DedupParams())


def _result(view: View, screening: Screening) -> DedupResult:
    testset, params = screening.testset, screening.testset.entry.params
    expected_miss = 0.0
    if params.method == "minhash":
        threshold = float(parse_rule(params.rule).threshold)
        expected_miss = parse_bands(params.bands, params.permutations).expected_miss(threshold)
    return DedupResult(
        snapshot=view.snapshot.number,
        testset=testset.name,
        rule=params.rule,
        num_items=testset.entry.items,
        num_documents=screening.num_documents,
        num_removed_chunks=screening.num_removed_chunks,
        **asdict(screening.counts),
        expected_miss=expected_miss,
        dry_run=True,
    )
