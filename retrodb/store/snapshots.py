"""Finding and reading snapshots."""

from __future__ import annotations

from difflib import get_close_matches
from operator import index

from retrodb.errors import DamagedFileError, NotADatabaseError, UsageError
from retrodb.format.entries import PinEntry
from retrodb.format.json_codec import to_json
from retrodb.format.kinds import kind_of, path_of
from retrodb.format.snapshot import Snapshot, parse_snapshot, snapshot_number, snapshot_path
from retrodb.store.storage import Storage


def snapshot_numbers(storage: Storage) -> list[int]:
    """The numbers of all snapshot files, ascending."""
    numbers = (snapshot_number(path) for path in storage.list("snapshots"))
    return sorted(n for n in numbers if n is not None)


def read_snapshot(storage: Storage, number: int) -> Snapshot:
    """Read one snapshot, or the stub of an expired one. Raises MissingFileError, DamagedFileError, FormatVersionError."""
    path = snapshot_path(number)
    snapshot = parse_snapshot(storage.read(path), where=path)
    if snapshot.number != number:
        raise DamagedFileError(
            f"holds snapshot {snapshot.number}",
            where=path,
            remedy="Restore this file from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'.",
        )
    return snapshot


def read_head(storage: Storage) -> Snapshot:
    """The newest snapshot. Raises NotADatabaseError when there is none."""
    return head_and_last(storage)[0]


def head_and_last(storage: Storage) -> tuple[Snapshot, int]:
    """The newest snapshot, and the largest number that is taken.

    They differ while a copy to this place publishes its snapshot: it first takes the numbers before it with stubs. Where the
    newest snapshot is lost, as the record of its number shows, the newest stub is given: a check says what is missing.

    Raises:
        NotADatabaseError: there is no snapshot, or only the stubs of a first copy.
    """
    numbers = snapshot_numbers(storage)
    if not numbers:
        raise _no_database(storage)
    last = read_snapshot(storage, numbers[-1])
    if last.expired_at is None:
        return last, last.number
    below = (read_snapshot(storage, number) for number in reversed(numbers[:-1]))
    newest = next((snapshot for snapshot in below if snapshot.expired_at is None), None)
    recorded = recorded_head(storage)
    if recorded is not None and (newest is None or recorded > newest.number):
        return last, last.number
    if newest is None:
        what, remedy = "a copy of a database to this place has not ended", "Run 'retrodb copy' again: it continues."
        raise NotADatabaseError(what, where=storage.url, remedy=remedy)
    return newest, last.number


def head_number(storage: Storage) -> int:
    """The number of the newest snapshot, or of a stub that a copy has put above it; no snapshot is read.

    Raises:
        NotADatabaseError: when there is none.
    """
    numbers = snapshot_numbers(storage)
    if not numbers:
        raise _no_database(storage)
    return numbers[-1]


def _no_database(storage: Storage) -> NotADatabaseError:
    remedy = "Create one with 'retrodb init', or check the path."
    return NotADatabaseError("not a retrodb database", where=storage.url, remedy=remedy)


def record_head(storage: Storage, snapshot: Snapshot) -> None:
    """Note outside of the snapshots which one is the newest, so that its loss is visible. One file for each number: no race.

    Killed before it, the record is one commit behind, which says nothing false.
    """
    content = {"number": snapshot.number, "transaction": snapshot.transaction}
    storage.put_if_absent(_head_path(snapshot.number), to_json(content))
    for path in storage.list("heads"):
        if kind_of(path) == "heads" and path < _head_path(snapshot.number):
            storage.delete(path)


def recorded_head(storage: Storage) -> int | None:
    """The largest number that was recorded as the newest snapshot's; None in a database without a record."""
    recorded = [path for path in storage.list("heads") if kind_of(path) == "heads"]
    return int(recorded[-1].rpartition("/")[2].partition(".")[0]) if recorded else None


def _head_path(number: int) -> str:
    return path_of("heads", number=f"{number:020d}")


def read_as_of(storage: Storage, at: int | str | None) -> Snapshot:
    """The newest snapshot, or an older one.

    Args:
        at: its number, or the name of a pin; None is the newest.

    Raises:
        UsageError: there is no such snapshot or pin, or the snapshot has expired.
    """
    if at is None:
        return read_head(storage)
    number = number_of(storage, at)
    name = "" if str(at).isdecimal() else f" (pin '{at}')"
    numbers = snapshot_numbers(storage)
    if number not in numbers:
        have = f"Snapshots {numbers[0]} to {numbers[-1]} exist." if numbers else "There are none."
        raise UsageError(
            f"no snapshot {number}{name}", where=storage.url, remedy=f"{have} 'retrodb snapshots' lists them."
        )
    snapshot = read_snapshot(storage, number)
    if snapshot.expired_at is not None:
        raise UsageError(
            f"snapshot {number}{name} expired on {snapshot.expired_at[:10]}",
            where=storage.url,
            remedy="'retrodb snapshots' lists those that can be read.",
        )
    return snapshot


def number_of(storage: Storage, at: int | str) -> int:
    """The number of a snapshot that is given by its number or by the name of a pin of the newest snapshot.

    Raises:
        UsageError: there is no such pin.
    """
    if not isinstance(at, str):
        return index(at)  # of NumPy, too
    if at.isascii() and at.isdecimal():
        return int(at)
    head = read_head(storage)
    pin = head.entry(PinEntry, at)
    if pin is None:
        raise unknown_pin(storage, head, at)
    return pin.snapshot


def unknown_pin(storage: Storage, head: Snapshot, name: str) -> UsageError:
    """The error for a name that is no pin of the newest snapshot, with the names that are."""
    names = head.names(PinEntry)
    near = get_close_matches(name, names, n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"no pin '{name}'", where=storage.url, remedy=f"There are: {', '.join(names) or 'none'}.{guess}")


def since(storage: Storage, base: int, head: Snapshot) -> list[Snapshot]:
    """The snapshots after `base` up to `head`, oldest first."""
    between = [head]
    while between[-1].parent > base:
        between.append(read_snapshot(storage, between[-1].parent))
    return between[::-1] if between[-1].number > base else []
