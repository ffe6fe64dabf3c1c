"""What a worker may take next: posted tasks that nobody has begun, and tasks whose attempts have ended without a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from retrodb.engine.attempts import (
    Attempt,
    History,
    Watch,
    attempts_of,
    claim,
    is_cancelled,
    num_retries,
    read_claim,
)
from retrodb.engine.posted import PostedTasks, ended_tasks, library_version, read_posted
from retrodb.engine.run import run_is_open
from retrodb.engine.task_memory import memory_of
from retrodb.engine.task_process import ClaimedTask
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.memory import size_text
from retrodb.store.digest import identity
from retrodb.store.storage import Storage

_LIST_EVERY_S = 0.1  # at most so often a worker without work lists what there is; the longer it waits, the less often
_LIST_LESS_OFTEN = 1.2
_LIST_AT_LEAST_EVERY_S = 2.0
_OTHERS_FIRST_S = 3.0  # a task that failed here may end elsewhere
_CLAIMS_IN_VAIN = 8  # after which the list of free tasks is out of date
_MOST_OF_THE_TIME = 10  # a worker waits so many times as long as listing the tasks of a large run took


class TaskQueue:
    """The posted tasks of a database, as one worker sees them."""

    def __init__(
        self,
        storage: Storage,
        worker: str,
        memory_bytes: int,
        *,
        run: str | None = None,
        stages: frozenset[str] = frozenset(),
        has_gpu: bool = False,
        allows_python: bool = False,
        note: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            worker: a name that no other worker has.
            memory_bytes: that a task may take.
            run: takes tasks of this run only, by the beginning of its id.
            stages: takes tasks of these commands only; empty is all.
            has_gpu: takes only tasks that can use a GPU; without one, none that need one.
            allows_python: takes tasks with a Python function that is not of this library.
            note: is told once why tasks cannot be taken.
        """
        self._storage, self._worker, self._memory_bytes = storage, worker, memory_bytes
        self._run, self._stages, self._has_gpu, self._allows_python = run, stages, has_gpu, allows_python
        self._note, self._clock = note, clock
        self._batches: dict[str, _Batch | None] = {}  # None: not for this worker
        self._listed_s, self._wait_s = -float("inf"), 0.0

    @property
    def is_open(self) -> bool:
        """Whether there were tasks for this worker when they were last listed; others may have all of them."""
        return any(self._batches.values())

    def next(self) -> tuple[PostedTasks, ClaimedTask] | None:
        """The next task, which is this worker's from now on; None when there is nothing to do now."""
        for batch in self._open_batches():
            if (claimed := batch.next()) is not None:
                self._wait_s = 0.0
                return batch.posted, claimed
        return None

    def _open_batches(self) -> Iterator[_Batch]:
        now = self._clock()
        if now - self._listed_s >= self._wait_s:
            self._listed_s = now
            self._wait_s = min(max(_LIST_EVERY_S, _LIST_LESS_OFTEN * self._wait_s), _LIST_AT_LEAST_EVERY_S)
            paths = self._storage.list("queue")
            self._batches = {
                path: self._batches[path] if path in self._batches else self._batch(path) for path in paths
            }
        yield from filter(None, list(self._batches.values()))

    def failed(self, claimed: ClaimedTask) -> None:
        """Leave a task that failed here to other workers for some time."""
        if (batch := self._batches.get(claimed.posted)) is not None:
            batch.leave(claimed.attempt.task)

    def _batch(self, path: str) -> _Batch | None:
        """The tasks at a path; None if they are not for this worker."""
        if self._run is not None and not path.startswith(f"queue/{self._run}"):
            return None
        try:
            posted = read_posted(self._storage, path)
        except MissingFileError:  # its command ended this moment
            return None
        except DamagedFileError as error:
            self._note(str(error))
            return None
        if posted.library != library_version():
            self._note(f"run {posted.run[:12]} is of retrodb {posted.library}, and this worker is {library_version()}")
            return None
        if posted.needs_python and not self._allows_python:
            self._note(f"run {posted.run[:12]} needs workers that may run Python functions of the user")
            return None
        if self._stages and posted.asked_by not in self._stages:
            return None
        if posted.device not in (("cuda", "auto") if self._has_gpu else ("cpu", "auto")):
            return None
        return _Batch(self._storage, posted, self._worker, self._memory_bytes, self._note, self._clock)


class _Batch:
    """Tasks that were posted together."""

    def __init__(
        self,
        storage: Storage,
        posted: PostedTasks,
        worker: str,
        memory_bytes: int,
        note: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._storage, self.posted, self._worker, self._clock = storage, posted, worker, clock
        self._watch = Watch(storage, posted.lease_s, clock)
        self._numbers = {task.id: number for number, task in enumerate(posted.tasks)}
        self._fresh: list[str] = []  # tasks that nobody had begun when they were listed; the last is next
        self._list_again_s = -float("inf")
        self._left: dict[str, float] = {}  # tasks that failed here, and until when others have the first turn
        self._order = self._tasks_in_order(memory_bytes, note)

    def next(self) -> ClaimedTask | None:
        """Claim a task."""
        if (claimed := self._next_fresh()) is not None:
            return claimed
        if self._clock() < self._list_again_s:
            return None
        run, started_s = self.posted.run, self._clock()
        ended, attempts = ended_tasks(self._storage, self.posted), attempts_of(self._storage, run)
        self._list_again_s = self._clock() + max(_LIST_EVERY_S, _MOST_OF_THE_TIME * (self._clock() - started_s))
        if is_cancelled(self._storage, run) or not self._is_open():
            return None
        unfinished = [task for task in self._order if task not in ended]
        self._fresh = [task for task in unfinished if task not in attempts]
        if (claimed := self._next_fresh()) is not None:
            return claimed
        return self._next_again(
            [History.of(self._watch, task, attempts[task]) for task in unfinished if task in attempts]
        )

    def leave(self, task: str) -> None:
        """Leave a task to others for some time."""
        self._left[task] = self._clock() + _OTHERS_FIRST_S

    def _next_fresh(self) -> ClaimedTask | None:
        for _ in range(_CLAIMS_IN_VAIN):
            if not self._fresh:
                return None
            task = self._fresh.pop()
            if (claimed := self._claim(Attempt(self.posted.run, task, 1), task)) is not None:
                return claimed
        self._fresh = []  # others have them
        return None

    def _next_again(self, histories: list[History]) -> ClaimedTask | None:
        """Claim a task whose attempts have ended. Those that lost too many workers come last, one at a time."""
        retries = num_retries(self._storage, self.posted.run)
        left = [history for history in histories if not history.is_set_aside(retries)]
        waiting = [history for history in left if not history.is_running]
        for history in waiting:
            if self._left.get(history.task, 0.0) > self._clock():
                continue
            if not history.is_suspect(retries) and (claimed := self._claim_again(history)) is not None:
                return claimed
        if len(waiting) == len(left) and all(history.is_suspect(retries) for history in left):
            for history in sorted(waiting, key=lambda history: history.task)[:1]:
                return self._claim_again(history)
        return None

    def _claim_again(self, history: History) -> ClaimedTask | None:
        last = history.attempts[-1]
        try:
            output = history.next_output(read_claim(self._storage, last))
        except (MissingFileError, DamagedFileError):  # it was deleted, or torn by a crash of the machine
            output = identity(history.task, last.number + 1)
        return self._claim(Attempt(self.posted.run, history.task, last.number + 1), output)

    def _claim(self, attempt: Attempt, output: str) -> ClaimedTask | None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if not claim(self._storage, attempt, self._worker, output, now):
            return None
        if not self._is_open():  # its command has ended since the tasks were listed
            self._storage.delete(attempt.path)
            self._fresh = []
            return None
        return ClaimedTask(self.posted.path, self._numbers[attempt.task], attempt, output)

    def _is_open(self) -> bool:
        """Whether a command waits for the tasks, or will when it is run again."""
        return self._storage.exists(self.posted.path) and run_is_open(self._storage, self.posted.run)

    def _tasks_in_order(self, memory_bytes: int, note: Callable[[str], None]) -> list[str]:
        """The tasks that fit into the memory of this worker; each worker begins at another place."""
        needed = [
            memory_of(self.posted.stage).of_task(task.weight, self.posted.extra_bytes) for task in self.posted.tasks
        ]
        fitting = [task.id for task, size in zip(self.posted.tasks, needed, strict=True) if size <= memory_bytes]
        if len(fitting) < len(needed):
            note(
                f"{len(needed) - len(fitting)} of {len(needed)} tasks of '{self.posted.stage}' need up to "
                f"{size_text(max(needed))}; a task may take {size_text(memory_bytes)} here. Start a worker with more "
                "--memory, or with fewer --workers."
            )
        start = int(identity(self._worker, self.posted.path)[:8], 16) % max(1, len(fitting))
        return [*fitting[start:], *fitting[:start]]
