"""Restore: an older snapshot becomes the newest, as one more snapshot.

Its manifest is taken over as it is. Three things stay as they are now: ids that were given stay given, what lies outside of the
database (pins, exports) is known still, and what was purged stays dead.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.engine.run import open_run
from retrodb.errors import MissingFileError, UsageError
from retrodb.format.arrays import map_array
from retrodb.format.entries import Entry
from retrodb.format.snapshot import Snapshot
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.view.purged import is_among, purged_keys
from retrodb.view.view import View

STAGE_VERSION = 1
_KEPT_ENTRIES = ("pin/", "export/")  # what they speak of lies outside, and goes on to


@dataclass(frozen=True)
class RestoreResult:
    """What a restore did."""

    snapshot: int  # that it made, or found to be so already
    restored: int  # the one that it equals now
    added_files: int  # that the head did not name
    dropped_files: int  # that it named and the restored one does not
    dry_run: bool = False


def run_restore(context: Context, number: int, *, dry_run: bool = False) -> RestoreResult:
    """Make the state of an older snapshot the newest.

    Raises:
        UsageError: when there is no such snapshot, it expired, or it holds what was purged since.
        MissingFileError: for a file of it that is gone, by name.
    """
    head, then = context.view(), context.view(number)
    now, wanted = set(head.manifest.paths()), set(then.manifest.paths())
    result = RestoreResult(head.snapshot.number, number, len(wanted - now), len(now - wanted), dry_run)
    for path in sorted(wanted - now):
        if not context.storage.exists(path):
            raise MissingFileError(
                f"snapshot {number} cannot be restored: a file of it is gone",
                where=path,
                remedy="'retrodb snapshots' lists the others.",
            )
    _refuse_purged(head, then)
    entries = _entries(head.snapshot, then.snapshot)
    if dry_run or (head.snapshot.segments == then.snapshot.segments and not entries):
        return result
    plan = {"version": STAGE_VERSION, "restore": number, "base": head.snapshot.number}
    run = open_run(context.storage, "restore", plan, context.clock)
    change = Change(
        transaction=run.id,
        command="restore",
        arguments={"snapshot": number},
        clock=run.clock,
        conflict_keys=conflict_keys.restore(),
        files=[record for record in head.manifest.files("purged") if record.path not in wanted],
        entries=entries,
        manifest_of=then.snapshot,
    )
    snapshot = commit(context.storage, head.snapshot, change)
    return RestoreResult(snapshot.number, number, result.added_files, result.dropped_files)


def _entries(head: Snapshot, then: Snapshot) -> dict[str, Entry | None]:
    """What brings the head's entries to those of the older snapshot; None takes one away."""
    keys = [key for key in {**head.entries, **then.entries} if not key.startswith(_KEPT_ENTRIES)]
    return {key: then.entries.get(key) for key in sorted(keys) if head.entries.get(key) != then.entries.get(key)}


def _refuse_purged(head: View, then: View) -> None:
    """Raises UsageError when the older snapshot has a document that was purged since."""
    never = purged_keys(head)
    if not len(never):
        return
    records = [*then.manifest.files("ids"), *(r for r in then.manifest.files("queries") if r.path.endswith("/ids.npy"))]
    found = sum(int(is_among(map_array(then.files.open(record)), never).sum()) for record in records)
    if found:
        raise UsageError(
            f"snapshot {then.snapshot.number} holds {found} documents that were purged since",
            remedy="What was purged never comes back. Run the same 'retrodb purge' again: it did not end.",
        )
