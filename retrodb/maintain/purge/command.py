"""Purge: documents go for good, from the files, from the past, and provably.

1. Their chunks get tombstones for the reason `purged`, and their keys are kept so that they never come back.
2. Whatever holds them is written anew without them: shards, vectors, scores, index parts, tables, reports, rejects.
3. Everything in the folder is searched for what is left of them. Where deleted rows of other documents have something in
   common with them, these files are written anew without their deleted rows. What the newest snapshot does not name is
   deleted, and the snapshots that name it expire.
4. Everything is searched once more. That is the proof, and the history notes it.

What to look for is kept with the run before anything goes, so that a purge that was interrupted, run again, still knows it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from retrodb.engine.run import Run, open_run
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array, map_array, save_array
from retrodb.format.entries import ExportEntry, PinEntry, QueriesEntry
from retrodb.format.kinds import KINDS, path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.maintain.compact.command import run_compact
from retrodb.maintain.compact.plan import PURGED, RowsToDrop
from retrodb.maintain.purge.expunge import expunge
from retrodb.maintain.purge.proof import Proof, run_proof
from retrodb.maintain.purge.records import affected_testsets, rewrite_records, without_items
from retrodb.maintain.purge.targets import Targets, find_targets, holding_snapshots
from retrodb.maintain.purge.traces import Traces, string_values, traces_of
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.snapshots import head_number, read_head, read_snapshot, snapshot_numbers
from retrodb.view.purged import purged_keys
from retrodb.view.tombstones import tombstone, tombstones_to_table
from retrodb.view.view import View

STAGE_VERSION = 1


@dataclass(frozen=True)
class StaleExport:
    """A registered export that was made when a purged document was there."""

    path: str
    snapshot: int
    remedy: str


@dataclass(frozen=True)
class PurgeResult:
    """What a purge did, and the proof."""

    snapshot: int
    documents: int  # versions of documents that went, held-out ones among them
    chunks: int
    unknown: tuple[str, ...]  # names that no document has
    expired: tuple[int, ...]  # snapshots that cannot be read any more
    broken_pins: tuple[str, ...]  # that kept one of these
    deleted_files: int
    deleted_bytes: int
    exports: tuple[StaleExport, ...]
    proof: Proof | None  # None in a dry run
    dry_run: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left."""
        return self.proof is None or not self.proof.left


def run_purge(
    context: Context,
    names: Sequence[str],
    *,
    break_pins: bool = False,
    include_testsets: bool = False,
    dry_run: bool = False,
) -> PurgeResult:
    """Take documents out for good.

    Args:
        names: ids, or source and id with a slash between them.
        break_pins: expire pinned snapshots too.
        include_testsets: take items with the text of the documents out of registered test sets as well.

    Raises:
        UsageError: when no name is given, or none is known, or a pinned snapshot has one of the documents; it is named.
        ConflictError: when another command changed what was read; the same command again goes on.
    """
    if not any(names):
        raise UsageError("no documents to purge", remedy="Name them in the file given to --doc-ids, one a line.")
    view = context.view()
    targets = find_targets(view, names)
    if not len(targets.keys):
        raise UsageError("no document has any of these names", remedy="Write an id, or source/id, on each line.")
    holding = holding_snapshots(context, targets.keys)
    pins = _pins(view, holding)
    if pins and not break_pins and not dry_run:
        named = ", ".join(f"{name} (snapshot {view.snapshot.existing(PinEntry, name).snapshot})" for name in pins)
        raise UsageError(
            f"pinned snapshots hold documents to purge: {named}",
            remedy="End what reads them, then add '--break-pins'; they can be read no more afterwards.",
        )
    rows = {name: _rows(view, name, targets.ids(name)) for name in ("", *view.snapshot.names(QueriesEntry))}
    result = PurgeResult(
        snapshot=view.snapshot.number,
        documents=len(targets.found),
        chunks=sum(map(len, rows.values())),
        unknown=targets.unknown,
        expired=tuple(holding),
        broken_pins=tuple(pins),
        deleted_files=0,
        deleted_bytes=0,
        exports=(),
        proof=None,
        dry_run=dry_run,
    )
    if dry_run:
        return replace(result, exports=tuple(_stale_exports(view, targets)))
    exports = tuple(_stale_exports(view, targets))
    run = open_run(
        context.storage, "purge", {"version": STAGE_VERSION, "names": identity(sorted(names))}, context.clock
    )
    traces = _kept_traces(view, run, targets)
    _mark(context, view, run, targets, rows, pins)
    run_compact(context, must_go=_must_go(context.view()))
    rewrite_records(context, run, targets, traces)
    held_out = any(target.query_set for target in targets.found)
    testsets = affected_testsets(context.view(), include_all=include_testsets, held_out=held_out)
    without_items(context, traces, testsets)
    look = partial(run_proof, traces=traces, names=set(targets.strings), skip=path_of("runs", run=run.id, file=""))
    found = look(context.view(), progress=context.progress)
    if (deleted := _deleted_beside(context.view(), found)).ids:
        run_compact(context, must_go=deleted)
        found = look(context.view(), progress=context.progress)
    done = expunge(context, run, found, break_pins=break_pins)
    proof = look(context.view(), progress=context.progress)
    if not proof.left:
        _close(context, run, proof)
    return replace(
        result,
        snapshot=head_number(context.storage),
        expired=done.expired,
        deleted_files=done.files,
        deleted_bytes=done.size_bytes,
        exports=exports,
        proof=proof,
    )


def _close(context: Context, run: Run, proof: Proof) -> None:
    """Note in the history what was proved; with that the run has ended, and collection may take what it kept."""
    numbers = snapshot_numbers(context.storage)
    if run.id not in {read_snapshot(context.storage, number).transaction for number in numbers}:
        none = frozenset[str]()
        counts = {"searched_files": proof.files, "left": 0}
        change = Change(run.id, "purge", {}, run.clock, conflict_keys.ConflictKeys(none, none), counts=counts)
        commit(context.storage, read_head(context.storage), change)


def _pins(view: View, numbers: Sequence[int]) -> list[str]:
    names = view.snapshot.names(PinEntry)
    return [name for name in names if view.snapshot.existing(PinEntry, name).snapshot in numbers]


def _rows(view: View, query_set: str, documents: Int64Array) -> Int64Array:
    """The ids of all chunks of some documents; of one that compaction dropped, its first."""
    chunks = view.query_set(query_set) if query_set else view.chunks
    ids = [np.empty(0, np.int64)]
    for record, first_rows in chunks.split(documents):
        layout = chunks.layout(record)
        is_there = layout.document_of(first_rows) >= 0
        ids.append(record.first_chunk + np.union1d(layout.rows_of(first_rows[is_there]), first_rows[~is_there]))
    return np.concatenate(ids)


def _kept_traces(view: View, run: Run, targets: Targets) -> Traces:
    """What to look for: of the documents as they are now, and as earlier attempts found them."""
    names = Traces.of({"id": [string_values(targets.strings)], "key": [targets.keys["key_hi"]]})
    found = [traces_of(view, name, targets.ids(name)) for name in sorted({t.query_set for t in targets.found})]
    own = Traces.from_arrays([each.to_array() for each in (names, *found)])
    array = own.to_array()
    path = path_of("runs", run=run.id, file=f"traces/{identity(array.tobytes().hex())}.npy")
    publish(view.storage, "runs", path, lambda local: save_array(local, array))
    kept = view.storage.list(path_of("runs", run=run.id, file="traces"))
    return Traces.from_arrays([map_array(view.storage.local(each)) for each in kept])


def _mark(
    context: Context, view: View, run: Run, targets: Targets, rows: dict[str, Int64Array], pins: Sequence[str]
) -> None:
    """Commit tombstones and keys, and take the pins away; nothing when all that was done before."""
    never = purged_keys(view)
    new_keys = targets.keys[~np.isin(targets.keys, never)]
    files: list[FileRecord] = []
    if len(new_keys):
        path = path_of("purged", task=identity(run.id, new_keys.tobytes().hex()))
        files.append(publish(context.storage, "purged", path, lambda local: save_array(local, new_keys)))
    for name, ids in rows.items():
        stones = list(_tombstones(view, name, ids))
        if stones:
            path = path_of("tombstones", task=identity(run.id, "tombstones", name, view.snapshot.number))
            write = partial(write_table, table=tombstones_to_table(stones))
            files.append(publish(context.storage, "tombstones", path, write, name=name))
    if not files and not pins:
        return
    sources = {f"source/{source}" for source in targets.sources}  # what is being ingested may hold them
    query_sets = {f"queries/{name}" for name, ids in rows.items() if name and len(ids)}
    change = Change(
        transaction=identity(run.id, "mark", view.snapshot.number),
        command="purge",
        arguments={"documents": len(targets.found)},
        clock=run.clock,
        conflict_keys=conflict_keys.ConflictKeys(
            frozenset({conflict_keys.RESTORE, *query_sets}), frozenset(sources | query_sets)
        ),
        files=files,
        entries={f"pin/{name}": None for name in pins},
        counts={"documents": len(targets.found), "chunks": sum(map(len, rows.values()))},
    )
    commit(context.storage, view.snapshot, change)


def _tombstones(view: View, query_set: str, ids: Int64Array) -> Any:
    chunks = view.query_set(query_set) if query_set else view.chunks
    for record, rows in chunks.split(ids):
        span = record.first_chunk, record.num_chunks
        already = chunks.tombstones.deleted_by_reason(*span).get(PURGED)
        rows = rows if already is None else rows[~already[rows]]
        if len(rows):
            yield tombstone(*span, PURGED, rows)


def _must_go(view: View) -> RowsToDrop:
    """Every row that some purge marked, this one or one that was interrupted."""
    ids = {}
    for name in ("", *view.snapshot.names(QueriesEntry)):
        chunks = view.query_set(name) if name else view.chunks
        masks = [
            (r.first_chunk, chunks.tombstones.deleted_by_reason(r.first_chunk, r.num_chunks).get(PURGED))
            for r in chunks.ranges
        ]
        own = [first + np.flatnonzero(mask) for first, mask in masks if mask is not None]
        ids[name] = np.concatenate([np.empty(0, np.int64), *own])
    return RowsToDrop(ids)


def _deleted_beside(view: View, proof: Proof) -> RowsToDrop:
    """The deleted rows of the files in which a proof found something."""
    found, ids = {left.path for left in proof.left}, defaultdict[str, list[Int64Array]](list)
    for record in view.manifest.all_files():
        is_of_rows = KINDS[record.kind].covers == "chunks" or record.kind == "queries"
        if record.path in found and is_of_rows:
            name = record.name if record.kind == "queries" else ""
            chunks = view.query_set(name) if name else view.chunks
            own = record.first_chunk + record.row_set.present
            if len(dead := own[~chunks.is_live(own)]):
                ids[name].append(dead)
    return RowsToDrop({name: np.unique(np.concatenate(parts)) for name, parts in ids.items()})


def _stale_exports(view: View, targets: Targets) -> list[StaleExport]:
    """The registered exports of snapshots that had one of the documents."""
    first = min((target.first_chunk for target in targets.found if not target.query_set), default=None)
    stale = []
    for name in view.snapshot.names(ExportEntry):
        entry = view.snapshot.existing(ExportEntry, name)
        if first is not None and read_snapshot(view.storage, entry.snapshot).next_chunk > first:
            remedy = f"retrodb export {view.storage.url} --refresh {entry.path}"
            stale.append(StaleExport(entry.path, entry.snapshot, remedy))
    return stale
