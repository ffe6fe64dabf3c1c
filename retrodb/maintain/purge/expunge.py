"""Deleting at once what a proof found: files that the newest snapshot does not name, with the snapshots that name them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from retrodb.engine.run import Run
from retrodb.errors import MissingFileError
from retrodb.format.entries import PinEntry
from retrodb.format.snapshot import Snapshot, dump_snapshot, snapshot_number
from retrodb.maintain.purge.proof import Proof
from retrodb.stages.context import Context
from retrodb.store.commit import Change, commit
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.gc import COLLECTED, named_by
from retrodb.store.snapshots import read_head, read_snapshot, snapshot_numbers
from retrodb.store.storage import TEMPORARY, Storage

_UNFINISHED_S = 3600  # no command takes so long between writing a file and publishing it: what is older was left behind


@dataclass(frozen=True)
class Expunged:
    """What was deleted."""

    expired: tuple[int, ...]  # snapshots that became stubs
    files: int
    size_bytes: int


def expunge(context: Context, run: Run, proof: Proof, *, break_pins: bool) -> Expunged:
    """Delete what a proof found, unless the newest snapshot names it: that stays, and the next proof says so.

    With a snapshot that has to expire go the other files that only it names. A pinned snapshot stays unless its pin may be
    broken. Interrupted anywhere, the next proof finds what is left.
    """
    storage = context.storage
    found = {left.path for left in proof.left}
    head = read_head(storage)
    if head.path in found:  # what it says of its own command: one more snapshot, and it may expire
        change = Change(f"{run.id}-over-{head.number}", "purge", {}, run.clock, ConflictKeys(frozenset(), frozenset()))
        head = commit(storage, head, change)
    pinned = set() if break_pins else {head.existing(PinEntry, name).snapshot for name in head.names(PinEntry)}
    readable = [read_snapshot(storage, number) for number in snapshot_numbers(storage)]
    readable = [each for each in readable if each.expired_at is None]
    named = {each.number: {each.path, *named_by(storage, each)} for each in readable}
    expired = [s for s in readable if s.number != head.number and s.number not in pinned and named[s.number] & found]
    _unpin(context, run, head, {s.number for s in expired})
    for snapshot in expired:
        storage.write(snapshot.path, dump_snapshot(snapshot.stub(run.clock)))
    gone = {snapshot.number for snapshot in expired}
    needed = {path for number, paths in named.items() if number not in gone for path in paths}
    orphans = {path for number in gone for path in named[number]} | _with_their_folders(storage, found)
    return _delete(storage, sorted(p for p in orphans - needed if snapshot_number(p) is None), tuple(sorted(gone)))


def _unpin(context: Context, run: Run, head: Snapshot, expired: set[int]) -> None:
    names = [name for name in head.names(PinEntry) if head.existing(PinEntry, name).snapshot in expired]
    if names:
        transaction = f"{run.id}-unpin-{head.number}"
        entries = {f"pin/{name}": None for name in names}
        none = frozenset[str]()
        commit(
            context.storage,
            head,
            Change(transaction, "purge", {}, run.clock, ConflictKeys(none, none), entries=entries),
        )


def _with_their_folders(storage: Storage, found: set[str]) -> set[str]:
    """The files that were found and may be deleted, with what is of no use without them: the rest of a part, or of a run."""
    paths: set[str] = set()
    for path in found:
        folder, *rest = path.split("/")
        if folder in COLLECTED:
            paths.add(path)
        if folder == "parts":
            paths.update(storage.list(path.rpartition("/")[0]))
        elif folder == "runs":
            paths.update(storage.list(f"runs/{rest[0]}"))
        elif folder == TEMPORARY and time.time() - storage.local(path).stat().st_mtime > _UNFINISHED_S:
            paths.add(path)
    return paths


def _delete(storage: Storage, paths: Iterable[str], expired: tuple[int, ...]) -> Expunged:
    files = size_bytes = 0
    for path in paths:
        try:
            size_bytes += storage.local(path).stat().st_size
        except MissingFileError:
            continue
        storage.delete(path)
        files += 1
    return Expunged(expired, files, size_bytes)
