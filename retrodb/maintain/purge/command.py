"""Purge: delete documents for good, from the newest snapshot and from all older ones, and prove that nothing remains.

1. Their chunks get tombstones with the reason `purged`. Their keys are stored, so that they are never ingested again.
2. All files that contain them are rewritten without them: shards, vectors, scores, packed query sets, index parts, tables,
   reports and rejects.
3. Every file in the folder is searched for traces of them. When deleted rows of other documents have something in common with
   them, the files with these rows are rewritten, too. Files with traces that the newest snapshot does not name are deleted, and
   the snapshots that name them expire.
4. Every file is searched again. This is the proof. The history records it.

The traces to search for are stored with the run before anything is deleted, so that an interrupted purge still knows them when it
is run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from retrodb.engine.run import Run, open_run
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array, save_array
from retrodb.format.entries import PinEntry, QueriesEntry, SourceEntry, entry_key
from retrodb.format.kinds import KINDS, path_of
from retrodb.format.records import FileRecord
from retrodb.format.rows import is_in, rows_in
from retrodb.maintain.compact.command import run_compact
from retrodb.maintain.compact.range_contents import PURGED
from retrodb.maintain.compact.ranges import RowsToDrop
from retrodb.maintain.purge.expunge import expunge
from retrodb.maintain.purge.plan import PurgePlan, PurgeResult, plan_purge
from retrodb.maintain.purge.proof import Proof, run_proof
from retrodb.maintain.purge.records import remove_mentions, remove_quoting_items, testsets_to_search
from retrodb.maintain.purge.targets import Targets
from retrodb.maintain.purge.traces import Traces, store_traces, stored_traces, string_values, traces_of
from retrodb.maintain.runs import cancel, wait_for_attempts
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.store.snapshots import head_number, read_snapshot, snapshot_numbers
from retrodb.view.named import Name
from retrodb.view.purged import purged_keys
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import SELF, View

STAGE_VERSION = 1


@dataclass(frozen=True)
class _PurgeRun:
    """Identity of a run: the same names continue an interrupted purge."""

    version: int
    names: str  # their hash


def run_purge(
    context: Context,
    names: Sequence[Name],
    *,
    break_pins: bool = False,
    include_testsets: bool = False,
    ignore_unknown: bool = False,
    search_all: bool = False,
    dry_run: bool = False,
) -> PurgeResult:
    """Delete documents for good.

    Args:
        names: ids, with or without their source.
        ignore_unknown: delete nothing, instead of raising an error, when no document has any of the names.
        break_pins: whether pinned snapshots may expire, too.
        include_testsets: whether to remove items that quote the documents from registered test sets.
        search_all: whether each proof reads every file, also those that an earlier one searched (see `proof.py`).

    Raises:
        UsageError: no name is given, no document has any of the names, or a pinned snapshot has one of the documents.
        ConflictError: another command changed what was read. The same command again continues.
    """
    plan = plan_purge(context, names, ignore_unknown=ignore_unknown)
    if dry_run or not len(plan.targets.keys):
        return replace(plan.result, dry_run=dry_run)
    return execute_purge(context, plan, break_pins=break_pins, include_testsets=include_testsets, search_all=search_all)


def execute_purge(
    context: Context,
    plan: PurgePlan,
    *,
    break_pins: bool = False,
    include_testsets: bool = False,
    search_all: bool = False,
) -> PurgeResult:
    """Execute a plan; arguments and errors are those of `run_purge`."""
    view, targets, result = plan.view, plan.targets, plan.result
    _refuse_pins(plan, break_pins=break_pins)
    for other in plan.open_runs:
        cancel(context.storage, other)
    for other in plan.open_runs:
        wait_for_attempts(context.storage, other)
    run = open_run(
        context.storage, "purge", _PurgeRun(STAGE_VERSION, identity(sorted(map(str, plan.names)))), context.clock
    )
    traces = _stored_traces(view, run, targets)
    _mark(context, plan, run)
    run_compact(context, rows_to_drop=_purged_rows(context.view()))
    remove_mentions(context, run, targets, traces)
    has_held_out = any(target.query_set != SELF for target in targets.documents)
    testsets = testsets_to_search(context.view(), include_all=include_testsets, has_held_out=has_held_out)
    remove_quoting_items(context, run, traces, testsets)
    prove = partial(run_proof, context, run=run, read_all=search_all)
    proof = prove(view=context.view())
    if (deleted := _deleted_rows_with_traces(context.view(), proof)).ids:
        run_compact(context, rows_to_drop=deleted)
        proof = prove(view=context.view())
    expunged = expunge(context, run, proof, break_pins=break_pins)
    proof = prove(view=context.view())
    if not proof.remaining:
        _close(context, run, proof)
    context.storage.forget_copies()
    return replace(
        result,
        snapshot=head_number(context.storage),
        expired_snapshots=expunged.expired_snapshots,
        num_deleted_files=expunged.num_files,
        deleted_bytes=expunged.size_bytes,
        proof=proof,
        keeps_versions=context.storage.keeps_versions,
        dry_run=False,
    )


def _refuse_pins(plan: PurgePlan, *, break_pins: bool) -> None:
    """Raises UsageError when pinned snapshots have one of the documents and may not expire."""
    if plan.pins and not break_pins:
        newest = plan.view.snapshot
        pins = ", ".join(f"{pin} (snapshot {newest.existing(PinEntry, pin).snapshot})" for pin in plan.pins)
        raise UsageError(
            f"pinned snapshots contain documents to purge: {pins}",
            remedy="Stop what reads these snapshots, then add '--break-pins'. They cannot be read afterwards.",
        )


def _close(context: Context, run: Run, proof: Proof) -> None:
    """Record the proof in the history. This ends the run, so collection may delete its files."""
    numbers = snapshot_numbers(context.storage)
    if run.id not in {read_snapshot(context.storage, number).transaction for number in numbers}:
        no_keys = conflict_keys.ConflictKeys(frozenset(), frozenset())
        transaction = Transaction.of_run(context, context.view(), run, "purge", no_keys)
        transaction.counts = {"searched_files": proof.num_files, "left": 0}
        transaction.commit()


def _stored_traces(view: View, run: Run, targets: Targets) -> Traces:
    """The traces of the documents as they are now, and those that earlier attempts stored."""
    ids = Traces.of({"id": [string_values(targets.id_strings)], "key": [targets.keys["key_hi"]]})
    query_sets = sorted({target.query_set for target in targets.documents})
    contents = [traces_of(view, name, targets.first_chunks(name)) for name in query_sets]
    store_traces(view.storage, run.id, Traces.from_arrays([traces.to_array() for traces in (ids, *contents)]))
    return stored_traces(view.storage, run.id)


def _mark(context: Context, plan: PurgePlan, run: Run) -> None:
    """Commit tombstones and keys, and remove the pins; nothing when all this was done before."""
    view, targets = plan.view, plan.targets
    ids = {name: np.union1d(ids, plan.sequence_ids.get(name, ids[:0])) for name, ids in plan.chunk_ids.items()}
    sources = {entry_key(SourceEntry, source) for source in targets.sources}  # an ingest of them may add the documents
    query_sets = {entry_key(QueriesEntry, name) for name in ids if name != SELF and len(ids[name])}
    keys = conflict_keys.ConflictKeys(frozenset({conflict_keys.RESTORE, *query_sets}), frozenset(sources | query_sets))
    arguments = {"documents": len(targets.documents)}
    transaction = Transaction.of_run(context, view, run, "purge", keys, arguments=arguments, step="mark")
    new_keys = targets.keys[~np.isin(targets.keys, purged_keys(view))]
    if len(new_keys):
        path = path_of("purged", task=identity(run.id, new_keys.tobytes().hex()))
        transaction.publish("purged", path, lambda local: save_array(local, new_keys))
    for query_set, purged in ids.items():
        task = identity(run.id, "tombstones", query_set, view.snapshot.number)  # a run may mark several times
        transaction.add_tombstones(list(_new_tombstones(view, query_set, purged)), query_set=query_set, task=task)
    for pin in plan.pins:
        transaction.remove_entry(PinEntry, pin)
    if transaction.files or transaction.entries:
        num_chunks = sum(map(len, plan.chunk_ids.values()))
        transaction.counts = {"documents": len(targets.documents), "chunks": num_chunks}
        transaction.commit()


def _new_tombstones(view: View, query_set: str, ids: Int64Array) -> Iterator[Tombstone]:
    """The tombstones of the chunks that have none of a purge yet."""
    chunks = view.query_set(query_set)
    for record, rows in chunks.split(ids):
        is_purged = chunks.tombstones.rows_by_reason(*record.span).get(PURGED)
        rows = rows if is_purged is None else rows[~is_in(is_purged, rows, record.num_chunks)]
        if len(rows):
            yield tombstone(*record.span, PURGED, rows)


def _purged_rows(view: View) -> RowsToDrop:
    """Every row that a purge marked: this one, or one that was interrupted. Other shards are not looked at."""
    ids = {}
    for query_set in (SELF, *view.snapshot.names(QueriesEntry)):
        chunks = view.query_set(query_set)
        if PURGED not in chunks.tombstones.reasons:
            continue
        purged = [np.empty(0, np.int64)]
        for record in chunks.ranges:
            if query_set == SELF and not _num_purged(view, record):
                continue
            if rows := chunks.tombstones.rows_by_reason(*record.span).get(PURGED):
                purged.append(record.first_chunk + rows_in(rows))
        ids[query_set] = np.concatenate(purged)
    return RowsToDrop(ids)


def _num_purged(view: View, record: FileRecord) -> int:
    """How many rows of a shard a purge deletes, by the counts of the manifest."""
    counts = view.manifest.counts.get(record.first_chunk, {}).get(PURGED)
    return 0 if counts is None else counts.num_chunks


def _deleted_rows_with_traces(view: View, proof: Proof) -> RowsToDrop:
    """The deleted rows of live files in which a proof found traces."""
    paths, deleted = {trace.path for trace in proof.remaining}, defaultdict[str, list[Int64Array]](list)
    for record in view.manifest.all_files():
        is_of_rows = KINDS[record.kind].covers == "chunks" or record.kind == "queries"
        if record.path in paths and is_of_rows:
            query_set = record.name if record.kind == "queries" else SELF
            ids = record.first_chunk + view.files.rows(record).present
            ids = ids[~view.query_set(query_set).is_live(ids)]
            if len(ids):
                deleted[query_set].append(ids)
    return RowsToDrop({query_set: np.unique(np.concatenate(ids)) for query_set, ids in deleted.items()})
