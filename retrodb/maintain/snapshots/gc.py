"""Collection as a command: what expires, what is deleted now and what later, and which runs never ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson

from retrodb.errors import MissingFileError, UsageError
from retrodb.format.kinds import path_of
from retrodb.stages.context import Context
from retrodb.store.gc import DEFAULT_GRACE, execute_collection, plan_collection
from retrodb.store.storage import Storage

KEEP_SNAPSHOTS = 10


@dataclass(frozen=True)
class OpenRun:
    """A run that planned and never committed: interrupted, failed, or still at work."""

    run: str
    command: str
    clock: str  # when it was planned
    last_work: str  # when it wrote its last file
    files: int
    size_bytes: int
    abandoned: bool  # whether this collection counts it as ended


@dataclass(frozen=True)
class GcResult:
    """What a collection did."""

    expired: tuple[int, ...]  # snapshots that became stubs
    deleted: int  # files that nothing needed for longer than the grace
    deleted_bytes: int
    marked: int  # files that nothing needs now, and that a later collection deletes
    marked_bytes: int
    open_runs: tuple[OpenRun, ...]
    dry_run: bool = False


def run_gc(
    context: Context,
    *,
    grace: timedelta = DEFAULT_GRACE,
    keep_snapshots: int = KEEP_SNAPSHOTS,
    abandon_runs: timedelta | None = None,
    dry_run: bool = False,
) -> GcResult:
    """Let old snapshots expire, and delete what nothing needs.

    Args:
        grace: how long a file has been known to be unneeded before it is deleted.
        keep_snapshots: how many of the newest stay readable; pinned ones stay besides.
        abandon_runs: open runs that wrote nothing for so long are given up; None gives up none.

    Raises:
        UsageError: for a number or a time that cannot be meant.
        DamagedFileError, MissingFileError: for a snapshot, segment or record that does not read; nothing is deleted then.
    """
    if grace < timedelta(0) or (abandon_runs is not None and abandon_runs < timedelta(0)):
        raise UsageError("a time below zero", remedy="Give one such as 7d, 12h or 0s.")
    storage = context.storage
    now = datetime.fromisoformat(context.clock) if context.clock else datetime.now(UTC)
    first = plan_collection(storage, keep_snapshots, now, grace)
    runs = [_open_run(storage, run, now, abandon_runs) for run in first.open_runs]
    abandoned = frozenset(run.run for run in runs if run.abandoned)
    plan = plan_collection(storage, keep_snapshots, now, grace, abandoned=abandoned) if abandoned else first
    result = GcResult(
        expired=plan.expire,
        deleted=len(plan.delete),
        deleted_bytes=_size(storage, plan.delete),
        marked=len(plan.marked),
        marked_bytes=_size(storage, plan.marked),
        open_runs=tuple(runs),
        dry_run=dry_run,
    )
    if not dry_run:
        execute_collection(storage, plan)
    return result


def _open_run(storage: Storage, run: str, now: datetime, abandon: timedelta | None) -> OpenRun:
    paths = storage.list(f"runs/{run}")
    plan = path_of("runs", run=run, file="plan.json")
    try:
        planned = orjson.loads(storage.read(plan)) if storage.exists(plan) else {}
    except orjson.JSONDecodeError:  # torn by a crash: then nothing but its age is known
        planned = {}
    times = [storage.local(path).stat().st_mtime for path in paths]
    last_work = datetime.fromtimestamp(max(times, default=0.0), UTC)
    return OpenRun(
        run=run,
        command=planned.get("command", ""),
        clock=planned.get("clock", ""),
        last_work=last_work.isoformat(timespec="seconds"),
        files=len(paths),
        size_bytes=_size(storage, paths),
        abandoned=abandon is not None and now - last_work > abandon,
    )


def _size(storage: Storage, paths: Iterable[str]) -> int:
    """The bytes of files; one that went away meanwhile has none."""
    total = 0
    for path in paths:
        try:
            total += storage.local(path).stat().st_size
        except (MissingFileError, FileNotFoundError):
            continue
    return total
