"""A worker: it takes posted tasks of a database, as many side by side as it has processes, until it is told to stop.

Workers share nothing but the storage. They may come and go at any time, on any number of machines (`attempts.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import wait
from threading import Event, Lock, Thread
from types import FrameType

from retrodb.engine.attempts import State, StoredError, is_cancelled, sign
from retrodb.engine.posted import LIBRARIES, PostedTasks
from retrodb.engine.run import run_is_open
from retrodb.engine.task_attempt import Outcome, ProcessShare
from retrodb.engine.task_process import ClaimedTask, TaskProcess
from retrodb.engine.task_queue import TaskQueue
from retrodb.engine.worker_tally import worker_name
from retrodb.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_REQUEUE, RetroDBError
from retrodb.memory import anonymous_bytes, default_memory
from retrodb.store.storage import Storage

_SIGNS_PER_LEASE = 5
_POLL_S = 0.1
_FAILURES_IN_A_ROW = 10  # after which a worker ends: more probably its machine is at fault than each of the tasks


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker takes, and with what."""

    processes: int = 1
    threads: int = 1  # of each process
    memory_bytes: int = field(default_factory=default_memory)  # limit of all its processes together
    run: str | None = None  # the beginning of the id of the only run to work on; None is all
    stages: frozenset[str] = frozenset()  # commands whose tasks it takes; empty is all
    gpu: bool = False  # takes only tasks that can use a GPU; others take none that need one
    allows_python: bool = False  # takes tasks with a Python function of the user, such as a tagger
    idle_exit_s: float | None = None  # ends after so long without a task; None stays
    libraries: tuple[str, ...] = LIBRARIES  # packages whose functions it runs
    grace_s: float = 0.0  # to finish tasks after it was told to stop; then they are given back


@dataclass
class _Job:
    """A task that this worker has."""

    posted: PostedTasks
    claimed: ClaimedTask
    signed_s: float  # time of the last sign of life, on the monotonic clock
    log: list[str]
    num_signs: int = 0
    why_stopped: str = ""  # set when somebody cancelled its run


@dataclass
class _Slot:
    """One process, with the task that it runs."""

    process: TaskProcess
    job: _Job | None = None


@dataclass(frozen=True)
class WorkerResult:
    """What a worker did."""

    worker: str
    num_finished: int  # tasks
    num_returned: int  # that it gave back
    num_failed: int
    exit_code: int  # 0; 75 (start it again) after SIGTERM; 130 after SIGINT


class Worker:
    """A worker of a database."""

    def __init__(
        self, storage: Storage, options: WorkerOptions, note: Callable[[str], None] = lambda text: None
    ) -> None:
        """
        Args:
            note: is told what the worker does.
        """
        self._storage, self._options, self._note = storage, options, note
        self.name = worker_name(socket.gethostname(), os.getpid(), uuid.uuid4().hex[:8])
        each_bytes = (options.memory_bytes - anonymous_bytes()) // options.processes
        url = storage.url if "://" in storage.url else os.path.abspath(storage.url)  # tasks change the current folder
        share = ProcessShare(options.threads, each_bytes, options.libraries, self.name)
        self._slots = [_Slot(TaskProcess(url, share)) for _ in range(options.processes)]
        self._queue = TaskQueue(
            storage,
            self.name,
            each_bytes,
            run=options.run,
            stages=options.stages,
            has_gpu=options.gpu,
            allows_python=options.allows_python,
            note=note,
        )
        self._stop: tuple[signal.Signals, float] | None = None  # what told it to stop, and when
        self._ended: Counter[str] = Counter()  # attempts, by how they ended
        self._failures = 0  # in a row
        self._signing = Lock()  # nobody signs for a job that has ended

    def run(self) -> WorkerResult:
        """Work until a signal, or until there was nothing to do for long enough."""
        code = self._work()
        return WorkerResult(
            self.name,
            self._ended["finished"],
            self._ended["returned"],
            self._ended["failed"] + self._ended["died"],
            code,
        )

    def _work(self) -> int:
        worked_s = time.monotonic()
        with self._signals(), self._signs_of_life():
            try:
                while True:
                    is_busy, now = any(slot.job for slot in self._slots), time.monotonic()
                    if self._stop is not None and (not is_busy or now - self._stop[1] >= self._grace_s):
                        return self._stopped(self._stop[0])
                    if is_busy:
                        worked_s = now
                    elif self._options.idle_exit_s is not None and now - worked_s >= self._options.idle_exit_s:
                        return EXIT_OK
                    if self._failures >= _FAILURES_IN_A_ROW and not is_busy:
                        self._note(f"{self._failures} tasks failed one after another, so this worker ends")
                        return EXIT_ERROR
                    self._step()
            finally:
                for slot in self._slots:
                    with suppress(RetroDBError):  # the storage does not answer: others wait for the lease
                        if slot.job is not None:
                            self._give_back(slot, slot.job, "the worker ended")
                    slot.process.close()

    @property
    def _grace_s(self) -> float:
        return 0.0 if self._stop is None or self._stop[0] == signal.SIGINT else self._options.grace_s

    def _step(self) -> None:
        """Finish what has ended, show signs of life, begin what can begin, and wait a moment."""
        for slot in self._slots:
            if slot.job is not None:
                outcome = slot.process.outcome()
                if outcome is not None:
                    self._end(slot, slot.job, outcome)
                elif slot.job.why_stopped:
                    self._give_back(slot, slot.job, slot.job.why_stopped)
        for slot in self._slots:
            if slot.job is None and self._takes_tasks and (found := self._queue.next()) is not None:
                self._begin(slot, *found)
        connections = [slot.process.connection for slot in self._slots if slot.job is not None]
        is_waiting = len(connections) < len(self._slots) and self._queue.is_open  # for tasks that others have
        timeout_s = _POLL_S / 10 if is_waiting else _POLL_S
        wait(connections, timeout_s) if connections else time.sleep(timeout_s)

    def _begin(self, slot: _Slot, posted: PostedTasks, claimed: ClaimedTask) -> None:
        """Begin a task."""
        attempt = claimed.attempt
        log = [f"{_now()} {self.name}: attempt {attempt.number} at '{posted.stage}' task {attempt.task}"]
        slot.job = _Job(posted, claimed, time.monotonic(), log)
        slot.process.begin(claimed)

    @property
    def _takes_tasks(self) -> bool:
        return self._stop is None and self._failures < _FAILURES_IN_A_ROW

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Signs of life are written by a thread: a storage that answers slowly must not make tasks count as lost."""
        has_ended = Event()

        def show_life() -> None:
            while not has_ended.wait(_POLL_S):
                for slot in self._slots:
                    if (job := slot.job) is not None:
                        with suppress(RetroDBError):  # the next sign may get through
                            self._show_life(slot, job)

        thread = Thread(target=show_life, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            has_ended.set()
            thread.join()

    def _show_life(self, slot: _Slot, job: _Job) -> None:
        """Write a sign of life when it is time, and see whether the run was cancelled."""
        now = time.monotonic()
        if now - job.signed_s < job.posted.lease_s / _SIGNS_PER_LEASE:
            return
        if is_cancelled(self._storage, job.posted.run) or not run_is_open(self._storage, job.posted.run):
            job.why_stopped = "the run was cancelled"
            return
        with self._signing:
            if slot.job is job:
                job.num_signs, job.signed_s = job.num_signs + 1, now
                sign(self._storage, job.claimed.attempt, job.num_signs, "running")

    def _end(self, slot: _Slot, job: _Job, outcome: Outcome) -> None:
        job.log.append(outcome.log)
        self._ended[outcome.state] += 1
        if outcome.state in ("finished", "returned"):
            self._failures = 0
            self._close(slot, job, outcome.state, None if outcome.state == "finished" else "returned")
            return
        what = "its process died" if outcome.error is None else str(outcome.error.error())
        self._note(f"task {job.claimed.attempt.task} {outcome.state}: {what}")
        self._failures += 1
        if outcome.state == "failed":
            self._queue.failed(job.claimed)
        self._close(slot, job, outcome.state, "died" if outcome.state == "died" else "failed", outcome.error)

    def _give_back(self, slot: _Slot, job: _Job, why: str) -> None:
        """Stop a task. Another worker begins it at once."""
        self._ended["returned"] += 1
        job.log.append(slot.process.kill())
        self._note(f"task {job.claimed.attempt.task} is given back: {why}")
        self._close(slot, job, f"given back: {why}", "returned")

    def _close(self, slot: _Slot, job: _Job, text: str, state: State | None, error: StoredError | None = None) -> None:
        """Write the log, and say how the attempt ended if there is no completion record."""
        attempt = job.claimed.attempt
        with self._signing:
            slot.job = None
        if not run_is_open(self._storage, job.posted.run):  # its command has ended, and nothing is left of it
            for path in (attempt.path, attempt.sign_path):
                self._storage.delete(path)
            self._storage.remove_empty_folders("runs")
            return
        log = "\n".join(line.rstrip("\n") for line in [*job.log, f"{_now()} {text}"] if line)
        self._storage.write(attempt.log_path, f"{log}\n".encode())
        if state is not None:
            sign(self._storage, attempt, job.num_signs + 1, state, error)

    def _stopped(self, told: signal.Signals) -> int:
        """Give back what is not finished. Gives the exit code."""
        for slot in self._slots:
            if slot.job is not None:
                self._give_back(slot, slot.job, f"the worker got {told.name}")
        return EXIT_INTERRUPTED if told == signal.SIGINT else EXIT_REQUEUE

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT tell the worker to stop; a second one does not wait for the grace period."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            since = time.monotonic() if self._stop is None else -float("inf")
            self._stop = signal.Signals(number), since

        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
