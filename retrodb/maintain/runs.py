"""Runs that have not committed: what they wait for, who is at work on them, and what became of each attempt."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from statistics import median

from retrodb.engine.attempts import (
    Attempt,
    Claim,
    History,
    Watch,
    allow_retries,
    attempts_of,
    cancelled_path,
    finished_tasks,
    is_cancelled,
    read_claim,
    read_sign,
)
from retrodb.engine.posted import PostedTasks, StoredCommand, read_command, read_posted
from retrodb.engine.run import DEFAULT_LEASE_S, read_plan, record_path
from retrodb.errors import DamagedFileError, MissingFileError, UsageError
from retrodb.stages.context import Context
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage

_LOOK_EVERY_S = 0.5  # at workers that have to stop
_STRAGGLER = 3  # a task that takes so many times as long as the median of the finished ones
_READERS = 16  # threads that read the files of attempts
_LEAST_FINISHED = 3  # tasks that have to be finished before any is a straggler


@dataclass(frozen=True)
class RunSummary:
    """A run that has not committed."""

    run: str
    command: str
    clock: str  # when it was planned
    state: str  # "posted": its tasks wait for workers; "cancelled"; or "open": at work on one machine, interrupted, or failed
    snapshot: int | None  # that it was planned on, and that garbage collection keeps for it
    num_tasks: int  # that are posted
    num_finished: int  # of them; of a run that is not posted, all that have ended
    num_running: int  # that a worker has
    num_workers: int  # that have them
    num_failed: int  # attempts that ended with an error, or without a word


@dataclass(frozen=True)
class AttemptDetails:
    """What became of one attempt at a task of a run."""

    task: str
    attempt: int
    state: str  # "running", "finished", "returned" by its worker, "failed", "died" with its process, or "lost"
    worker: str
    started_at: str  # by the clock of the worker
    elapsed_s: float | None  # until now, or the end
    is_straggler: bool  # whether it takes much longer than the tasks that are finished
    error: str | None
    log: str  # path of what the task printed


@dataclass(frozen=True)
class TaskLog:
    """What the attempts at a task printed."""

    task: str
    text: str


@dataclass(frozen=True)
class RunChange:
    """A run that was cancelled, or whose tasks may be tried again."""

    run: str
    command: str
    state: str


def list_runs(context: Context) -> Iterator[RunSummary]:
    """All runs that have not committed, the oldest first."""
    storage = context.storage
    runs = [(plan.clock, run) for run in open_runs(storage) if (plan := read_plan(storage, run)) is not None]
    for _, run in sorted(runs):
        yield _summary(storage, run)


def open_runs(storage: Storage) -> list[str]:
    """The ids of the runs whose folders are there and that no snapshot carries."""
    committed = {read_snapshot(storage, number).transaction for number in snapshot_numbers(storage)}
    runs = {path.split("/")[1] for path in storage.list("runs")}
    return sorted(runs - committed)


def show_run(context: Context, run: str) -> list[AttemptDetails]:
    """The attempts at the tasks of a run, by the time when they began.

    Args:
        run: the beginning of its id.

    Raises:
        UsageError: there is no such run, or there are several.
    """
    storage, run = context.storage, find_run(context.storage, run)
    finished, attempts = finished_tasks(storage, run), attempts_of(storage, run)
    last = {of_task[-1] for of_task in attempts.values()}

    def read(attempt: Attempt) -> AttemptDetails:
        return _details(storage, attempt, attempt in last, attempt.task in finished)

    with ThreadPoolExecutor(_READERS) as pool:  # an object store answers many small requests at a time
        details = list(pool.map(read, chain.from_iterable(attempts.values())))
    known = [each.elapsed_s for each in details if each.state == "finished" and each.elapsed_s is not None]
    if len(known) >= _LEAST_FINISHED:
        limit_s = _STRAGGLER * median(known)
        details = [
            replace(each, is_straggler=each.state == "running" and (each.elapsed_s or 0) > limit_s) for each in details
        ]
    return sorted(details, key=lambda attempt: (attempt.started_at, attempt.task, attempt.attempt))


def read_log(context: Context, run: str, task: str) -> TaskLog:
    """What the attempts at a task printed, one after the other.

    Args:
        run: the beginning of its id.
        task: the beginning of the task's id.

    Raises:
        UsageError: there is no such run or task, or there are several.
    """
    storage, run = context.storage, find_run(context.storage, run)
    attempts = attempts_of(storage, run)
    found = _only([name for name in attempts if name.startswith(task)], "task", task, "retrodb runs show DB RUN")
    texts = []
    for attempt in attempts[found]:
        with suppress(MissingFileError):  # it is running, or its worker died
            texts.append(storage.read(attempt.log_path).decode(errors="replace"))
    return TaskLog(found, "".join(texts))


def retry_run(context: Context, run: str) -> RunChange:
    """Allow further attempts at the tasks of a run that failed too often, or lost too many workers. Raises UsageError."""
    storage, run = context.storage, find_run(context.storage, run)
    allow_retries(storage, run)
    return _change(storage, run)


def cancel_run(context: Context, run: str) -> RunChange:
    """End a run: workers stop its tasks, and a command that waits for it ends. Raises UsageError."""
    storage, run = context.storage, find_run(context.storage, run)
    cancel(storage, run)
    return _change(storage, run)


def cancel(storage: Storage, run: str) -> None:
    """Cancel a run by its id."""
    storage.write(cancelled_path(run), b"{}")
    for path in storage.list(f"queue/{run}"):
        storage.delete(path)
    storage.remove_empty_folders("queue")


def wait_for_attempts(storage: Storage, run: str) -> None:
    """Wait until no worker is at work on a run that was cancelled: each has given its task back, or counts as lost."""
    watch = Watch(storage, DEFAULT_LEASE_S)
    while True:
        finished, attempts = finished_tasks(storage, run), attempts_of(storage, run)
        unfinished = [History.of(watch, task, of_task) for task, of_task in attempts.items() if task not in finished]
        if not any(history.is_running for history in unfinished):
            return
        time.sleep(_LOOK_EVERY_S)


def command_of_run(context: Context, run: str) -> StoredCommand:
    """The command line that planned a run.

    Raises:
        UsageError: there is no such run, or it was planned by other means.
    """
    run = find_run(context.storage, run)
    command = read_command(context.storage, run)
    if command is None:
        raise UsageError(
            "no command line is known of this run",
            where=f"run {run}",
            remedy="Run the same command or Python call again: it continues the run.",
        )
    return command


def find_run(storage: Storage, prefix: str) -> str:
    """The id of the open run that begins so. Raises UsageError: there is none, or there are several."""
    matching = [run for run in open_runs(storage) if run.startswith(prefix)]
    return _only(matching, "open run", prefix, "retrodb runs list DB")


def _only(found: list[str], noun: str, prefix: str, command: str) -> str:
    if not found:
        raise UsageError(f"there is no {noun} '{prefix}'", remedy=f"'{command}' lists them.")
    if len(found) > 1:
        raise UsageError(f"there are {len(found)} of them: {noun} '{prefix}'", remedy="Give more of its id.")
    return found[0]


def _summary(storage: Storage, run: str) -> RunSummary:
    plan, posted = read_plan(storage, run), list(posted_of(storage, run))
    tasks = {task.id for batch in posted for task in batch.tasks}
    finished, attempts = finished_tasks(storage, run), attempts_of(storage, run)
    watch = Watch(storage, float("inf"))
    histories = [History.of(watch, task, attempts[task]) for task in tasks - finished if task in attempts]
    running = [history.attempts[-1] for history in histories if history.is_running]
    return RunSummary(
        run=run,
        command="" if plan is None else plan.command,
        clock="" if plan is None else plan.clock,
        state=_state(storage, run, posted),
        snapshot=None if plan is None else plan.snapshot,
        num_tasks=len(tasks),
        num_finished=len(tasks & finished) if posted else len(finished),
        num_running=len(running),
        num_workers=len({_worker(storage, attempt) for attempt in running}),
        num_failed=sum(history.num_failed + history.num_lost for history in histories),
    )


def posted_of(storage: Storage, run: str) -> Iterator[PostedTasks]:
    """The tasks of a run that wait for workers."""
    for path in storage.list(f"queue/{run}"):
        with suppress(MissingFileError, DamagedFileError):  # the command ended this moment
            yield read_posted(storage, path)


def _state(storage: Storage, run: str, posted: Iterable[PostedTasks]) -> str:
    if is_cancelled(storage, run):
        return "cancelled"
    return "posted" if list(posted) else "open"


def _change(storage: Storage, run: str) -> RunChange:
    plan = read_plan(storage, run)
    return RunChange(run, "" if plan is None else plan.command, _state(storage, run, posted_of(storage, run)))


def _details(storage: Storage, attempt: Attempt, is_last: bool, is_finished: bool) -> AttemptDetails:
    sign, claim = read_sign(storage, attempt), _claim(storage, attempt)
    state: str = sign.state
    if state == "running":
        state = "lost" if not is_last else "finished" if is_finished else "running"
    started_at = "" if claim is None else claim.started_at
    return AttemptDetails(
        task=attempt.task,
        attempt=attempt.number,
        state=state,
        worker="" if claim is None else claim.worker,
        started_at=started_at,
        elapsed_s=_elapsed_s(storage, attempt, started_at, state),
        is_straggler=False,
        error=None if sign.error is None else str(sign.error.error()),
        log=attempt.log_path,
    )


def _elapsed_s(storage: Storage, attempt: Attempt, started_at: str, state: str) -> float | None:
    """How long an attempt has been at work, by the clocks of its worker and of the storage: for people only."""
    if state not in ("running", "finished"):
        return None
    try:
        started, now = datetime.fromisoformat(started_at), datetime.now(UTC)
        if state == "finished":
            now = datetime.fromtimestamp(storage.stat(record_path(attempt.run, attempt.task)).modified_s, UTC)
        return round(max(0.0, (now - started).total_seconds()), 1)
    except (MissingFileError, ValueError, TypeError):  # a time without its zone
        return None


def _claim(storage: Storage, attempt: Attempt) -> Claim | None:
    try:
        return read_claim(storage, attempt)
    except (MissingFileError, DamagedFileError):
        return None


def _worker(storage: Storage, attempt: Attempt) -> str:
    claim = _claim(storage, attempt)
    return "" if claim is None else claim.worker
