"""Collection as a command: expire old snapshots, delete unneeded files, and list the runs that never ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from retrodb.engine.run import read_plan
from retrodb.errors import UsageError
from retrodb.stages.context import Context
from retrodb.store.collection import DEFAULT_GRACE, CollectionPlan, collected_stats, execute_collection, plan_collection
from retrodb.store.storage import FileStat, Storage

KEEP_SNAPSHOTS = 10


@dataclass(frozen=True)
class OpenRun:
    """A run without a commit: interrupted, failed, or still at work."""

    run: str
    command: str
    clock: str  # when it was planned
    last_write: str  # when it wrote its last file
    num_files: int
    size_bytes: int
    is_abandoned: bool  # whether this collection treats it as ended


@dataclass(frozen=True)
class GcResult:
    """What a collection did."""

    expired_snapshots: tuple[int, ...]
    num_deleted_files: int  # unneeded for longer than the grace period
    deleted_bytes: int
    num_marked_files: int  # unneeded now; a later collection deletes them
    marked_bytes: int
    open_runs: tuple[OpenRun, ...]
    dry_run: bool = False


@dataclass(frozen=True)
class GcPlan:
    """What a collection would do."""

    collection: CollectionPlan
    result: GcResult  # of a dry run


def run_gc(
    context: Context,
    *,
    grace: timedelta = DEFAULT_GRACE,
    keep_snapshots: int = KEEP_SNAPSHOTS,
    abandon_runs: timedelta | None = None,
    dry_run: bool = False,
) -> GcResult:
    """Expire old snapshots, and delete unneeded files.

    Args:
        grace: delete a file once it has been marked as unneeded for this long.
        keep_snapshots: number of the newest snapshots that stay readable. Pinned snapshots stay readable too.
        abandon_runs: treat open runs that wrote nothing for this long as ended; None keeps the files of all open runs.

    Raises:
        UsageError: for an invalid number or time.
        DamagedFileError, MissingFileError: a snapshot, segment or record cannot be read. Nothing is deleted then.
    """
    plan = plan_gc(context, grace=grace, keep_snapshots=keep_snapshots, abandon_runs=abandon_runs)
    return plan.result if dry_run else execute_gc(context, plan)


def plan_gc(
    context: Context,
    *,
    grace: timedelta = DEFAULT_GRACE,
    keep_snapshots: int = KEEP_SNAPSHOTS,
    abandon_runs: timedelta | None = None,
) -> GcPlan:
    """Plan a collection; arguments and errors are those of `run_gc`."""
    if grace < timedelta(0) or (abandon_runs is not None and abandon_runs < timedelta(0)):
        raise UsageError("a time below zero", remedy="Give one such as 7d, 12h or 0s.")
    storage = context.storage
    now = datetime.fromisoformat(context.clock) if context.clock else datetime.now(UTC)
    collection = plan_collection(storage, keep_snapshots, now, grace)
    runs = [_open_run(storage, run, now, abandon_runs) for run in collection.open_runs]
    if abandoned := frozenset(run.run for run in runs if run.is_abandoned):
        collection = plan_collection(storage, keep_snapshots, now, grace, abandoned=abandoned)
    stats = collected_stats(storage)
    result = GcResult(
        expired_snapshots=collection.expire,
        num_deleted_files=len(collection.delete),
        deleted_bytes=_size_bytes(stats, collection.delete),
        num_marked_files=len(collection.marked),
        marked_bytes=_size_bytes(stats, collection.marked),
        open_runs=tuple(runs),
        dry_run=True,
    )
    return GcPlan(collection, result)


def execute_gc(context: Context, plan: GcPlan) -> GcResult:
    """Expire and delete what was planned and is still unneeded, and remove the folders of runs that became empty."""
    execute_collection(context.storage, plan.collection)
    context.storage.remove_empty_folders("runs")
    context.storage.forget_copies()
    return replace(plan.result, dry_run=False)


def _open_run(storage: Storage, run: str, now: datetime, abandon_runs: timedelta | None) -> OpenRun:
    stats = storage.stats(f"runs/{run}")
    plan = read_plan(storage, run)
    last_write = datetime.fromtimestamp(max((stat.modified_s for stat in stats.values()), default=0.0), UTC)
    return OpenRun(
        run=run,
        command="" if plan is None else plan.command,
        clock="" if plan is None else plan.clock,
        last_write=last_write.isoformat(timespec="seconds"),
        num_files=len(stats),
        size_bytes=_size_bytes(stats, stats),
        is_abandoned=abandon_runs is not None and now - last_write > abandon_runs,
    )


def _size_bytes(stats: Mapping[str, FileStat], paths: Iterable[str]) -> int:
    """The size of files; a file that another command deleted counts as empty."""
    return sum(stats[path].size_bytes for path in paths if path in stats)
