"""How far the tasks of a run are that wait for workers, how fast they end, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from retrodb.engine.attempts import attempts_of, finished_tasks, read_claim
from retrodb.engine.posted import PostedTask
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.maintain.runs import find_run, posted_of
from retrodb.stages.context import Context
from retrodb.store.storage import Storage


@dataclass(frozen=True)
class RunProgress:
    """The tasks of a run that are posted now. Later steps of its command may post more."""

    run: str
    stages: tuple[str, ...]  # kinds of these tasks
    num_tasks: int
    num_finished: int
    done_fraction: float  # of their work, as tasks weigh it
    tasks_per_s: float | None  # since the first of them began; None: none has ended
    left_s: float | None  # at the same rate of work


def run_progress(context: Context, run: str) -> RunProgress:
    """The progress of a run.

    Args:
        run: the beginning of its id.

    Raises:
        UsageError: there is no such run, or there are several.
    """
    storage, run = context.storage, find_run(context.storage, run)
    posted = list(posted_of(storage, run))
    tasks = {task.id: task for batch in posted for task in batch.tasks}
    finished = tasks.keys() & finished_tasks(storage, run)
    work, done = _weight(tasks.values()), _weight(tasks[task] for task in finished)
    spent_s = _spent_s(storage, run, finished)
    return RunProgress(
        run=run,
        stages=tuple(sorted({batch.stage for batch in posted})),
        num_tasks=len(tasks),
        num_finished=len(finished),
        done_fraction=done / work if work else 0.0,
        tasks_per_s=len(finished) / spent_s if spent_s else None,
        left_s=(work - done) * spent_s / done if spent_s and done else None,
    )


def _weight(tasks: Iterable[PostedTask]) -> int:
    """The work of tasks; each has some, also those of kinds that have no weight."""
    return sum(1 + task.weight for task in tasks)


def _spent_s(storage: Storage, run: str, finished: Collection[str]) -> float | None:
    """Seconds from the first claim of a finished task until now, by the clocks of workers and of this machine: for people only.

    None where no task has ended.
    """
    starts = []
    attempts = attempts_of(storage, run)
    for task in finished:
        for attempt in attempts.get(task, ()):
            with suppress(MissingFileError, DamagedFileError, ValueError):
                started = datetime.fromisoformat(read_claim(storage, attempt).started_at)
                starts.append(started if started.tzinfo else started.replace(tzinfo=UTC))
    if not starts:
        return None
    return max(1e-3, (datetime.now(UTC) - min(starts)).total_seconds())
