"""Delete the files that a proof found at once, unless the newest snapshot names them; snapshots that name them expire."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from retrodb.engine.run import Run
from retrodb.errors import MissingFileError
from retrodb.format.blocks import has_block_file
from retrodb.format.entries import PinEntry
from retrodb.format.kinds import kind_of, path_of
from retrodb.format.snapshot import Snapshot, dump_snapshot, snapshot_number
from retrodb.maintain.purge.proof import Proof
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store.collection import COLLECTED, is_ours, named_by
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.digest import digest_file
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.store.temporary import is_abandoned, is_temporary
from retrodb.view.view import View

_UNFINISHED_S = (
    3600  # of another machine's process; longer than any command takes between writing a file and publishing it
)


@dataclass(frozen=True)
class Expunged:
    """What was deleted."""

    expired_snapshots: tuple[int, ...]
    num_files: int
    size_bytes: int


def expunge(context: Context, run: Run, proof: Proof, *, break_pins: bool) -> Expunged:
    """Delete what a proof found, except files of the newest snapshot, which the next proof reports.

    When a snapshot has to expire, the other files that only it names are deleted as well. A pinned snapshot expires only with
    `break_pins`. When this is interrupted, the next proof finds what remains.
    """
    storage = context.storage
    with_traces = {trace.path for trace in proof.remaining}
    view = _without_traces_in_newest(context, run, with_traces)
    newest = view.snapshot
    pinned = set() if break_pins else {newest.existing(PinEntry, name).snapshot for name in newest.names(PinEntry)}
    snapshots = [read_snapshot(storage, number) for number in snapshot_numbers(storage)]
    readable = [snapshot for snapshot in snapshots if snapshot.expired_at is None]
    named = {snapshot.number: {snapshot.path, *named_by(storage, snapshot)} for snapshot in readable}
    expired = [
        snapshot
        for snapshot in readable
        if snapshot.number != newest.number and snapshot.number not in pinned and named[snapshot.number] & with_traces
    ]
    _remove_pins(context, view, run, expired)
    for snapshot in expired:
        storage.write(snapshot.path, dump_snapshot(snapshot.stub(run.clock)))
    numbers = {snapshot.number for snapshot in expired}
    needed = {path for number, paths in named.items() if number not in numbers for path in paths}
    deletable = _deletable(storage, with_traces)
    unneeded = (
        {path for number in numbers for path in named[number]} | deletable | set(_block_files(storage, deletable))
    )
    return _delete(
        storage, sorted(path for path in unneeded - needed if snapshot_number(path) is None), tuple(sorted(numbers))
    )


def _without_traces_in_newest(context: Context, run: Run, with_traces: set[str]) -> View:
    """The newest snapshot. When it has traces in its own arguments, another one is committed, so that it can expire."""
    view = context.view()
    if view.snapshot.path not in with_traces:
        return view
    Transaction.of_run(context, view, run, "purge", _NO_KEYS, step="new snapshot").commit()
    return context.view()


def _remove_pins(context: Context, view: View, run: Run, expired: Iterable[Snapshot]) -> None:
    numbers = {snapshot.number for snapshot in expired}
    newest = view.snapshot
    names = [name for name in newest.names(PinEntry) if newest.existing(PinEntry, name).snapshot in numbers]
    if names:
        transaction = Transaction.of_run(context, view, run, "purge", _NO_KEYS, step="remove pins")
        for name in names:
            transaction.remove_entry(PinEntry, name)
        transaction.commit()


_NO_KEYS = ConflictKeys(frozenset(), frozenset())


def _deletable(storage: Storage, with_traces: set[str]) -> set[str]:
    """The files with traces that may be deleted, and the files that are useless without them: the rest of a part, or of a run."""
    paths: set[str] = set()
    for path in with_traces:
        folder, *rest = path.split("/")
        if folder in COLLECTED:
            paths.add(path)
        if folder == "parts":
            paths.update(storage.list(path.rpartition("/")[0]))
        elif folder == "runs":
            paths.update(storage.list(f"runs/{rest[0]}"))
        elif is_abandoned(path) or (is_temporary(path) and _age_s(storage, path) > _UNFINISHED_S):
            paths.add(path)
    return set(filter(is_ours, paths))


def _block_files(storage: Storage, paths: Iterable[str]) -> Iterator[str]:
    """The files of block digests of some files: the record of an interrupted task may be all that named them."""
    for path in paths:
        kind = kind_of(path)
        with suppress(MissingFileError):  # another command deleted it
            if kind is not None and has_block_file(kind, storage.stat(path).size_bytes):
                yield path_of("blocks", digest=digest_file(storage.local(path)).sha256.hex())


def _age_s(storage: Storage, path: str) -> float:
    return time.time() - storage.stat(path).modified_s


def _delete(storage: Storage, paths: Iterable[str], expired_snapshots: tuple[int, ...]) -> Expunged:
    stats = storage.stats("")
    present = [path for path in paths if path in stats]  # another command may have deleted some
    storage.delete_all(present)
    storage.remove_empty_folders("runs")
    return Expunged(expired_snapshots, len(present), sum(stats[path].size_bytes for path in present))
