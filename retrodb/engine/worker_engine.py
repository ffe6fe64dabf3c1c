"""The engine of commands whose tasks are run by workers on other machines: it posts tasks, waits, and reads their records."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Generic

from retrodb.engine.attempts import (
    ATTEMPTS_OF_A_TASK,
    Attempt,
    History,
    Watch,
    allow_retries,
    attempts_of,
    finished_tasks,
    num_retries,
    read_claim,
    read_sign,
    sign,
)
from retrodb.engine.local import LocalEngine
from retrodb.engine.posted import (
    PostedTasks,
    StoredCommand,
    ended_tasks,
    posted_tasks,
    unpost,
    write_command,
    write_posted,
)
from retrodb.engine.progress import Bar
from retrodb.engine.run import (
    DEFAULT_LEASE_S,
    Engine,
    Run,
    recorded,
    refuse_cancelled,
    refuse_ended,
    unreadable_record,
)
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.errors import DamagedFileError, MissingFileError, RetroDBError, WorkerDied
from retrodb.store.scratch import ScratchStorage

_POLL_S, _MOST_POLL_S = 0.05, 1.0
_POLLED_FRACTION = 0.05  # of the time since a task ended last: its successors are posted late by that
_NOTE_EVERY_S = 30.0  # that there is no worker
_LOOK_EVERY_S = 2.0  # at the attempts, whose number is that of the tasks


class WorkerEngine(Engine):
    """Posts tasks for the workers of a database (`retrodb work`), on this machine and on others, and waits for them."""

    is_remote = True

    def __init__(
        self,
        memory_bytes: int | None = None,
        lease_s: float = DEFAULT_LEASE_S,
        command: StoredCommand | None = None,
    ) -> None:
        """
        Args:
            memory_bytes: limit of this process; workers have their own.
            lease_s: a worker that shows no sign of life for so long has lost its tasks.
            command: the command line of this process, kept with its runs.
        """
        self.memory_bytes, self.lease_s, self.command = memory_bytes, lease_s, command

    def here(self) -> Engine:
        """This process: to post small tasks would take longer."""
        return LocalEngine(1, self.memory_bytes)

    def _check_memory(self, tasks: Sequence[Task[P, R]], extra_bytes: int, bar: Bar, *, isolated: bool) -> None:
        del tasks, extra_bytes, bar, isolated  # each worker takes the tasks that it has memory for

    def execute(
        self,
        run: Run,
        tasks: Sequence[Task[P, R]],
        function: TaskFunction[P, R],
        bar: Bar,
        *,
        isolated: bool = False,
        extra_bytes: int = 0,
    ) -> Generator[tuple[Task[P, R], TaskRecord[R]]]:
        """Post the tasks and yield them as workers finish them.

        Raises:
            ConflictError: somebody cancelled the run.
            WorkerDied: a task lost too many workers.
            RetroDBError: a task failed too often; the error is the last one's.
        """
        del isolated  # a worker runs every task in another process
        if isinstance(run.storage, ScratchStorage):  # a dry run, and nobody may write to the database
            yield from self.here().execute(run, tasks, function, bar, extra_bytes=extra_bytes)
            return
        if self.command is not None:
            write_command(run.storage, run.id, self.command)
        unpost(run.storage, run.id)  # what a command that was killed had posted; one that waits posts its tasks again
        if tasks:
            yield from _Posted(run, tasks, self.lease_s, bar).finish(function, extra_bytes, self.asked_by)


class _Posted(Generic[P, R]):
    """Tasks that this process posted, and waits for."""

    def __init__(self, run: Run, tasks: Sequence[Task[P, R]], lease_s: float, bar: Bar) -> None:
        self._run, self._storage, self._bar = run, run.storage, bar
        self._tasks = {task.id: task for task in tasks}
        self._lease_s, self._watch = lease_s, Watch(run.storage, lease_s)
        self._workers: dict[Attempt, str] = {}
        self._looked_s, self._waits_since_s = -float("inf"), time.monotonic()

    def finish(
        self, function: TaskFunction[P, R], extra_bytes: int, asked_by: str
    ) -> Iterator[tuple[Task[P, R], TaskRecord[R]]]:
        """Post the tasks, and yield each with its record."""
        storage, run = self._storage, self._run
        self._allow_retries()
        posted = posted_tasks(
            run,
            list(self._tasks.values()),
            function,
            extra_bytes=extra_bytes,
            lease_s=self._lease_s,
            asked_by=asked_by,
            verify=_earlier(run, self._tasks),
        )
        write_posted(storage, posted)
        what = f"{len(posted.tasks)} tasks of '{posted.asked_by}' ({posted.stage})"
        self._bar.note(f"run {run.id[:12]}: {what} wait for workers (retrodb work)")
        try:
            yield from self._records(posted)
        except (RetroDBError, GeneratorExit):
            storage.delete(posted.path)
            raise
        storage.delete(posted.path)
        storage.remove_empty_folders("queue")

    def _records(self, posted: PostedTasks) -> Iterator[tuple[Task[P, R], TaskRecord[R]]]:
        """The tasks with their records, as they come."""
        storage, run = self._storage, self._run
        pending, ended_s = dict(self._tasks), time.monotonic()
        while pending:
            done = sorted(ended_tasks(storage, posted) & pending.keys())
            for task_id in done:
                task = pending.pop(task_id)
                record = recorded(run, task)
                if record is None:
                    raise unreadable_record(run, task_id)
                yield task, record
            if not done:
                self._look(posted, sorted(pending))
            now = time.monotonic()
            ended_s = now if done else ended_s
            if pending:
                time.sleep(min(max(_POLL_S, _POLLED_FRACTION * (now - ended_s)), _MOST_POLL_S))

    def _allow_retries(self) -> None:
        """Let tasks that an earlier command gave up be tried again."""
        retries = num_retries(self._storage, self._run.id)
        attempts = attempts_of(self._storage, self._run.id)
        histories = [History.of(self._watch, task, attempts[task]) for task in self._tasks if task in attempts]
        if any(history.is_exhausted(retries) for history in histories):
            allow_retries(self._storage, self._run.id)

    def _look(self, posted: PostedTasks, pending: Sequence[str]) -> None:
        """Look at the attempts, now and then: who is at work, and which tasks nobody will finish."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        refuse_cancelled(self._run)
        refuse_ended(self._run)
        run = self._run.id
        if not self._storage.exists(
            posted.path
        ):  # another process gave the same command, and took it for what was left
            write_posted(self._storage, posted)
        attempts, retries = attempts_of(self._storage, run), num_retries(self._storage, run)
        histories = [History.of(self._watch, task, attempts[task]) for task in pending if task in attempts]
        for history in histories:
            if history.is_set_aside(retries):
                raise _error_of(self._run, history)
        running = [history.attempts[-1] for history in histories if history.is_running]
        names = {self._worker_of(attempt) for attempt in running}
        self._bar.show(f"{len(names)} workers, {len(running)} tasks running")
        if running:
            self._waits_since_s = time.monotonic()
        elif time.monotonic() - self._waits_since_s > _NOTE_EVERY_S:
            self._waits_since_s = time.monotonic()
            self._bar.note(f"no worker has a task of run {run[:12]}: start some with 'retrodb work DB'")

    def _worker_of(self, attempt: Attempt) -> str:
        if attempt not in self._workers:
            try:
                self._workers[attempt] = read_claim(self._storage, attempt).worker
            except (MissingFileError, DamagedFileError):  # torn by a crash of its machine
                return ""
        return self._workers[attempt]


def _earlier(run: Run, tasks: Collection[str]) -> set[str]:
    """The tasks that ended earlier. Their last attempts are given back, so that a worker verifies the outputs at once."""
    earlier = finished_tasks(run.storage, run.id).intersection(tasks)
    for task, attempts in attempts_of(run.storage, run.id).items():
        if task in earlier:
            sign(run.storage, attempts[-1], read_sign(run.storage, attempts[-1]).count + 1, "returned")
    return earlier


def _error_of(run: Run, history: History) -> RetroDBError:
    """Why nobody tries a task again."""
    failed = [read_sign(run.storage, attempt).error for attempt in history.attempts]
    errors = [error for error in failed if error is not None]
    if errors and history.num_failed >= ATTEMPTS_OF_A_TASK:
        return errors[-1].error()
    has_died = history.states.count("died") == history.num_lost
    what = f"task {history.task} lost its {'process' if has_died else 'worker'} {history.num_lost} times"
    where, remedy = (
        f"run {run.id}, {history.attempts[-1].log_path}",
        "Run the same command again; workers with more memory may help.",
    )
    return (WorkerDied if has_died else RetroDBError)(what, where=where, remedy=remedy)
