"""The snapshots to copy: one with those that have names and the same files, or all after one that the destination has."""

from __future__ import annotations

from collections.abc import Sequence

from retrodb.errors import UsageError
from retrodb.format.entries import PinEntry
from retrodb.format.snapshot import Snapshot
from retrodb.maintain.copy.transfer import Threads
from retrodb.store.snapshots import read_head, read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage


def with_named(source: Storage, head: Snapshot, snapshot: Snapshot, threads: Threads) -> list[Snapshot]:
    """A snapshot, and before it those with names that have the same manifest: they cost nothing.

    A pin is a commit of its own. So a copy of the newest snapshot has the one too that was given a name before.

    Args:
        head: the newest snapshot of the source, whose names count.
    """
    named = {head.existing(PinEntry, name).snapshot for name in head.names(PinEntry)}
    numbers = sorted(number for number in named & set(snapshot_numbers(source)) if number < snapshot.number)
    earlier = read_snapshots(source, numbers, threads)
    return [*(each for each in earlier if each.expired_at is None and each.segments == snapshot.segments), snapshot]


def later_snapshots(
    source: Storage, destination: Storage, start: int, there: Sequence[int], threads: Threads
) -> list[Snapshot]:
    """The readable snapshots of the source after one that the destination has; its newest one at least.

    Raises:
        UsageError: the source or the destination does not have it.
    """
    ours = snapshot_numbers(source)
    if start not in ours:
        remedy = "'retrodb snapshots' lists those that there are."
        raise UsageError(f"no snapshot {start}", where=source.url, remedy=remedy)
    if start not in there:
        remedy = "Leave out '--since': then the newest snapshot is copied."
        if is_readable(source, start):
            remedy = f"Copy it first: 'retrodb copy SRC DST --snapshot {start}'. Or leave out '--since'."
        raise UsageError(f"the destination does not have snapshot {start}", where=destination.url, remedy=remedy)
    later = read_snapshots(source, [number for number in ours if number > start], threads)
    return [snapshot for snapshot in later if snapshot.expired_at is None] or [read_head(source)]


def read_snapshots(storage: Storage, numbers: Sequence[int], threads: Threads) -> list[Snapshot]:
    """Snapshots by their numbers, several at a time."""
    read = dict[int, Snapshot]()
    threads.each(lambda number: read.__setitem__(number, read_snapshot(storage, number)), numbers)
    return [read[number] for number in numbers]


def is_readable(storage: Storage, number: int) -> bool:
    """Whether a snapshot that is there has not expired."""
    return read_snapshot(storage, number).expired_at is None
