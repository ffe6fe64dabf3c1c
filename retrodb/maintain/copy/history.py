"""Whether two places have the same database: the snapshots of one must be those of the other, as far as it has them.

A number means the same snapshot in every copy. So a commit that was made in one place only shows as a number that has two
meanings, or that only one place has. A copy over it would hide it, and is refused.
"""

from __future__ import annotations

from bisect import bisect_left

from retrodb.errors import ConflictError, DamagedFileError, MissingFileError
from retrodb.format.snapshot import Snapshot, snapshot_path
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage

_REMEDY = "A copy would hide it. Copy to another place, or delete the database there if nobody needs it."


def is_same_commit(first: Snapshot, second: Snapshot) -> bool:
    """Whether two snapshots come from one commit, also when one of them is the stub of an expired one.

    Pins are not compared: a copy has those of its snapshot that were set later.
    """
    return first.stub("") == second.stub("")


def refuse_other_history(source: Storage, destination: Storage) -> None:
    """Find out whether the destination is an earlier or incomplete copy of the source. It reads one snapshot of each.

    Raises:
        ConflictError: it is another database, or it has a commit that the source does not have.
    """
    ours, theirs = snapshot_numbers(source), snapshot_numbers(destination)
    if theirs and not (theirs[-1] in ours and _is_same(source, destination, theirs[-1])):
        raise history_error(source, destination)


def history_error(source: Storage, destination: Storage) -> ConflictError:
    """The error for a destination that is no copy of the source, which names the first snapshot that differs."""
    ours, theirs = snapshot_numbers(source), snapshot_numbers(destination)
    common = sorted(set(ours) & set(theirs))
    index = bisect_left(common, True, key=lambda number: not _is_same(source, destination, number))
    if index == 0:
        what = f"this is another database than {source.url}"
        remedy = "Copy to a new place, or to an earlier copy of the same database."
        return ConflictError(what, where=destination.url, remedy=remedy)
    number = common[index] if index < len(common) else min(set(theirs) - set(ours), default=theirs[-1])
    own = read_there(destination, number)
    what = f"its snapshot {number} ({own.command}, {own.clock[:19]}) is not in {source.url}"
    return ConflictError(what, where=destination.url, remedy=_REMEDY)


def read_there(destination: Storage, number: int) -> Snapshot:
    """A snapshot of the destination. Raises MissingFileError, DamagedFileError, FormatVersionError."""
    try:
        return read_snapshot(destination, number)
    except MissingFileError:
        raise
    except DamagedFileError as error:  # it may be a commit that only the destination has
        where = f"{destination.url}/{snapshot_path(number)}"
        remedy = "If nothing but copies was written there, delete this file and copy again."
        raise DamagedFileError("damaged snapshot", where=where, remedy=remedy) from error


def _is_same(source: Storage, destination: Storage, number: int) -> bool:
    return is_same_commit(read_snapshot(source, number), read_there(destination, number))
