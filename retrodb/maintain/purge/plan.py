"""What a purge would remove, and what it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.engine.run import read_plan
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import ExportEntry, PinEntry, QueriesEntry
from retrodb.maintain.purge.proof import Proof
from retrodb.maintain.purge.targets import Targets, find_targets, holding_snapshots, packed_sequences
from retrodb.maintain.runs import open_runs
from retrodb.stages.context import Context
from retrodb.store.scratch import ScratchStorage
from retrodb.store.snapshots import read_snapshot
from retrodb.view.named import Name
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class StaleExport:
    """A registered export that was made when a purged document was in the database."""

    path: str
    snapshot: int
    remedy: str


@dataclass(frozen=True)
class PurgeResult:
    """What a purge did, and the proof."""

    snapshot: int
    num_documents: int  # versions of documents, including held-out ones
    num_chunks: int  # of these documents
    num_packed_sequences: int  # sequences of packed query sets that contained one of the documents
    unknown_names: tuple[str, ...]  # that no document has
    expired_snapshots: tuple[int, ...]
    broken_pins: tuple[str, ...]  # that kept one of these
    num_deleted_files: int
    deleted_bytes: int
    stale_exports: tuple[StaleExport, ...]
    proof: Proof | None  # None in a dry run
    cancelled_runs: tuple[str, ...] = ()  # that had not committed and may have read the documents
    keeps_versions: bool = False  # the storage keeps old versions of files, which only its owner can delete
    dry_run: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether the proof found no trace."""
        return self.proof is None or not self.proof.remaining


@dataclass(frozen=True)
class PurgePlan:
    """The documents to purge, and everything that goes with them."""

    view: View
    names: tuple[Name, ...]  # as given
    targets: Targets
    chunk_ids: Mapping[str, Int64Array]  # query set -> ids of the documents' chunks
    sequence_ids: Mapping[str, Int64Array]  # query set -> ids of the rows of packed sequences that contain them
    num_packed_sequences: int
    holding_snapshots: tuple[int, ...]  # that can be read and have one of the documents
    pins: tuple[str, ...]  # of these snapshots
    open_runs: tuple[str, ...]  # of other commands, which may have read the documents

    @property
    def result(self) -> PurgeResult:
        """The result of a dry run."""
        return PurgeResult(
            snapshot=self.view.snapshot.number,
            num_documents=len(self.targets.documents),
            num_chunks=sum(map(len, self.chunk_ids.values())),
            num_packed_sequences=self.num_packed_sequences,
            unknown_names=self.targets.unknown_names,
            expired_snapshots=self.holding_snapshots,
            broken_pins=self.pins,
            num_deleted_files=0,
            deleted_bytes=0,
            stale_exports=tuple(_stale_exports(self.view, self.targets)),
            proof=None,
            cancelled_runs=self.open_runs,
            dry_run=True,
        )


def plan_purge(context: Context, names: Sequence[Name], *, ignore_unknown: bool = False) -> PurgePlan:
    """Find the documents, and everything that goes with them.

    Args:
        ignore_unknown: make an empty plan, instead of raising an error, when no document has any of the names.

    Raises:
        UsageError: no name is given, or no document has any of the names.
    """
    if not any(names):
        raise UsageError("no documents to purge", remedy="Name them in the file given to --doc-ids, one a line.")
    view = context.view()
    targets = find_targets(context, view, names)
    if not len(targets.keys) and not ignore_unknown:
        remedy = 'Write on each line an id, or {"id": "ID", "source": "NAME"}.'
        raise UsageError("no document has any of these names", remedy=remedy)
    holding = holding_snapshots(context, targets.keys)
    newest = view.snapshot
    query_sets = (SELF, *newest.names(QueriesEntry))
    sequences = packed_sequences(context, view, targets.full_names)
    return PurgePlan(
        view=view,
        names=tuple(names),
        targets=targets,
        chunk_ids={name: _chunk_ids(view, name, targets.first_chunks(name)) for name in query_sets},
        sequence_ids={name: _chunk_ids(view, name, first_rows) for name, first_rows in sequences.items()},
        num_packed_sequences=sum(map(len, sequences.values())),
        holding_snapshots=tuple(holding),
        pins=tuple(pin for pin in newest.names(PinEntry) if newest.existing(PinEntry, pin).snapshot in holding),
        open_runs=tuple(_runs_of_others(context)),
    )


def _runs_of_others(context: Context) -> Iterator[str]:
    """The runs that have not committed, without those of purges."""
    for run in open_runs(context.storage):
        plan = read_plan(context.storage, run)
        if plan is not None and plan.command != "purge":
            yield run


def _chunk_ids(view: View, query_set: str, first_chunks: Int64Array) -> Int64Array:
    """The ids of all chunks of some documents; of a document that compaction dropped, its first."""
    chunks = view.query_set(query_set)
    ids = [np.empty(0, np.int64)]
    for record, first_rows in chunks.split(first_chunks):
        layout = chunks.layout(record)
        is_present = layout.document_of(first_rows) >= 0
        rows = np.union1d(layout.rows_of(first_rows[is_present]), first_rows[~is_present])
        ids.append(record.first_chunk + rows)
    return np.concatenate(ids)


def _stale_exports(view: View, targets: Targets) -> Iterator[StaleExport]:
    """The registered exports of snapshots that had one of the documents."""
    first_chunks, storage = targets.first_chunks(SELF), view.storage
    url = storage.database_url if isinstance(storage, ScratchStorage) else storage.url
    for name in view.snapshot.names(ExportEntry):
        entry = view.snapshot.existing(ExportEntry, name)
        if len(first_chunks) and read_snapshot(view.storage, entry.snapshot).next_chunk > first_chunks[0]:
            remedy = f"retrodb export {url} --refresh {entry.path}"
            yield StaleExport(entry.path, entry.snapshot, remedy)
