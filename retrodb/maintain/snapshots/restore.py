"""Restore: commit the state of an older snapshot as the newest snapshot.

The older snapshot's manifest is taken over. Three things stay as they are: chunk ids are never given twice, pins and registered
exports stay known because they exist outside of the database, and purged documents stay purged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrodb.errors import MissingFileError, UsageError
from retrodb.format.entries import Entry, ExportEntry, PinEntry
from retrodb.format.snapshot import Snapshot
from retrodb.stages.context import Context
from retrodb.stages.document_lookup import all_ids_files, find_keys_in
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view.purged import purged_keys
from retrodb.view.view import View

STAGE_VERSION = 1
_KEPT_ENTRIES = (f"{PinEntry.kind}/", f"{ExportEntry.kind}/")


@dataclass(frozen=True)
class RestoreResult:
    """What a restore did."""

    snapshot: int  # the newest one now
    restored_snapshot: int  # whose state it has
    num_added_files: int  # live files that were not live before
    num_dropped_files: int  # files that are not live any more
    dry_run: bool = False


@dataclass(frozen=True)
class RestorePlan:
    """A snapshot to restore."""

    newest: View
    restored: View
    entries: dict[str, Entry | None]  # changes to the newest snapshot's entries; None removes one

    @property
    def result(self) -> RestoreResult:
        """The result of a dry run."""
        live, restored = set(self.newest.manifest.paths()), set(self.restored.manifest.paths())
        return RestoreResult(
            snapshot=self.newest.snapshot.number,
            restored_snapshot=self.restored.snapshot.number,
            num_added_files=len(restored - live),
            num_dropped_files=len(live - restored),
            dry_run=True,
        )

    @property
    def changes_nothing(self) -> bool:
        """Whether the newest snapshot has this state already."""
        return self.newest.snapshot.segments == self.restored.snapshot.segments and not self.entries


@dataclass(frozen=True)
class _RestoreRun:
    """Identity of a run."""

    version: int
    restore: int
    base: int  # the newest snapshot


def run_restore(context: Context, at: int | str, *, dry_run: bool = False) -> RestoreResult:
    """Make the state of an older snapshot the newest.

    Args:
        at: number of the snapshot, or the name of a pin.

    Raises:
        UsageError: the snapshot does not exist or expired, or it has a document that was purged later.
        MissingFileError: one of its files is missing.
    """
    plan = plan_restore(context, at)
    return plan.result if dry_run else execute_restore(context, plan)


def plan_restore(context: Context, at: int | str) -> RestorePlan:
    """Plan a restore; arguments and errors are those of `run_restore`."""
    newest, restored = context.view(), context.view(at)
    for path in sorted(set(restored.manifest.paths()) - set(newest.manifest.paths())):
        if not context.storage.exists(path):
            raise MissingFileError(
                f"snapshot {restored.snapshot.number} cannot be restored: one of its files is missing",
                where=path,
                remedy="Restore another snapshot; 'retrodb snapshots' lists them.",
            )
    _refuse_purged(context, newest, restored)
    return RestorePlan(newest, restored, _entry_changes(newest.snapshot, restored.snapshot))


def execute_restore(context: Context, plan: RestorePlan) -> RestoreResult:
    """Commit the older state, unless it is the newest already.

    Raises:
        ConflictError: another command committed since the plan.
    """
    result = replace(plan.result, dry_run=False)
    if plan.changes_nothing:
        return result
    number = plan.restored.snapshot.number
    transaction = Transaction.open(
        context,
        plan.newest,
        "restore",
        conflict_keys.restore(),
        plan=_RestoreRun(STAGE_VERSION, number, plan.newest.snapshot.number),
        arguments={"snapshot": number},
    )
    restored_paths = set(plan.restored.manifest.paths())
    transaction.files += [file for file in plan.newest.manifest.files("purged") if file.path not in restored_paths]
    transaction.entries.update(plan.entries)
    transaction.manifest_of = plan.restored.snapshot
    return replace(result, snapshot=transaction.commit().number)


def _entry_changes(newest: Snapshot, restored: Snapshot) -> dict[str, Entry | None]:
    keys = [key for key in {**newest.entries, **restored.entries} if not key.startswith(_KEPT_ENTRIES)]
    return {
        key: restored.entries.get(key) for key in sorted(keys) if newest.entries.get(key) != restored.entries.get(key)
    }


def _refuse_purged(context: Context, newest: View, restored: View) -> None:
    """Raises UsageError when the older snapshot has a document that was purged later."""
    keys = purged_keys(newest)
    if not len(keys):
        return
    num_purged = sum(len(entries) for _, entries in find_keys_in(context, all_ids_files(restored), keys))
    if num_purged:
        raise UsageError(
            f"snapshot {restored.snapshot.number} has {num_purged} documents that were purged later",
            remedy="Purged documents cannot be restored. That purge was interrupted: run the same 'retrodb purge' again.",
        )
