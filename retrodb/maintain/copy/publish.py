"""Publishing copied snapshots: last, when all of their files are there, and never over a commit of somebody else.

Numbers have no gaps, so the destination gets stubs of the snapshots that are not copied. They come first: a command that commits
there meanwhile fights for the next number, and only one of both gets it. A stub is not the newest snapshot, so readers see
the earlier one until the copied one is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from retrodb.errors import RetroDBError
from retrodb.format.entries import PinEntry, entry_key
from retrodb.format.snapshot import Snapshot, dump_snapshot
from retrodb.maintain.copy.history import history_error, is_same_commit, read_there
from retrodb.maintain.copy.transfer import Threads
from retrodb.store.snapshots import read_head, record_head, recorded_head
from retrodb.store.storage import Storage


def publish_snapshots(
    source: Storage, destination: Storage, copied: Sequence[Snapshot], stubs: Sequence[Snapshot], threads: Threads
) -> None:
    """Make copied snapshots visible.

    Args:
        copied: snapshots of the source that the destination has the files of, ascending.
        stubs: the stubs of those that it has not, ascending.

    Raises:
        ConflictError: the destination has another snapshot of the same number.
    """
    put = partial(_put, source, destination)
    first = min([*copied, *stubs], key=lambda snapshot: snapshot.number)
    put(first)  # who has the lowest number has them all, unless a command there has committed
    threads.each(put, [stub for stub in stubs if stub is not first])
    for snapshot in copied:
        if snapshot is not first:
            put(snapshot)


def record_newest(destination: Storage) -> None:
    """Note outside of the snapshots which one is the newest, where an interrupted copy has not done it."""
    head = read_head(destination)
    if recorded_head(destination) != head.number:
        with suppress(
            RetroDBError
        ):  # it only shows the loss of the newest snapshot, and the next commit writes its own
            record_head(destination, head)


def _put(source: Storage, destination: Storage, snapshot: Snapshot) -> None:
    data = dump_snapshot(snapshot)
    if destination.put_if_absent(snapshot.path, data):
        return
    there = read_there(destination, snapshot.number)
    if not is_same_commit(there, snapshot):
        raise history_error(source, destination)
    if there.expired_at is not None and snapshot.expired_at is None:
        destination.write(snapshot.path, data)


def with_pins(snapshot: Snapshot, head: Snapshot, copied: Sequence[int]) -> Snapshot:
    """A snapshot, with the names that the head of the source has given to copied snapshots since."""
    names = [name for name in head.names(PinEntry) if head.existing(PinEntry, name).snapshot in copied]
    pins = {entry_key(PinEntry, name): head.existing(PinEntry, name) for name in names}
    return replace(snapshot, entries={**snapshot.entries, **pins})
