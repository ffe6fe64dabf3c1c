"""A run: one planned command, its clock, and the completion records from which it continues.

The run's id hashes the plan without its clock. The same command on the same state is the same run: it finds the earlier
plan, takes its clock, verifies the finished tasks, runs the others, and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from retrodb.engine.attempts import cancelled_path, is_cancelled
from retrodb.engine.blas_threads import one_blas_thread
from retrodb.engine.progress import Bar, Progress
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord, dump_record, parse_record
from retrodb.engine.task_memory import MAIN_MIB, process_bytes
from retrodb.engine.worker_tally import WorkerTally
from retrodb.errors import ConflictError, DamagedFileError, MissingFileError, NotADatabaseError, RetroDBError
from retrodb.format.json_codec import JsonValue, from_json, to_json, to_plain
from retrodb.format.kinds import path_of
from retrodb.memory import MIB, PROCESS_MEMORY, require_memory, size_text
from retrodb.store.digest import identity
from retrodb.store.snapshots import head_number
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles

DEFAULT_LEASE_S = 30.0
"""Tasks of a worker that shows no sign of life for so long are given to others."""


@dataclass(frozen=True)
class Run:
    """An opened run."""

    storage: Storage
    id: str  # also the transaction of its commit
    command: str
    clock: str  # UTC, ISO 8601 with microseconds


@dataclass(frozen=True)
class StoredPlan:
    """`plan.json` of a run."""

    clock: str
    command: str
    plan: JsonValue
    snapshot: int | None = None  # the newest one when the run was planned; collection keeps it while the run is open


def open_run(storage: Storage, command: str, plan: object, clock: str | None = None) -> Run:
    """Open the run of a plan, new or interrupted.

    Args:
        plan: a dataclass or plain values that say all that the run will do, without any time in them.
        clock: time of a new run; None reads the machine's clock, once.

    Raises:
        DamagedFileError: when the plan of an interrupted run cannot be read.
    """
    run_id = identity(command, to_plain(plan))
    path = path_of("runs", run=run_id, file="plan.json")
    now = clock or datetime.now(UTC).isoformat(timespec="microseconds")
    if storage.exists(path):
        storage.delete(cancelled_path(run_id))  # to give the same command again means to go on
    else:
        storage.put_if_absent(path, to_json(StoredPlan(now, command, to_plain(plan), _newest_snapshot(storage))))
    remedy = "Delete this folder and run the command again."
    kept = from_json(StoredPlan, storage.read(path), where=path, remedy=remedy).clock
    return Run(storage, run_id, command, kept)


def _newest_snapshot(storage: Storage) -> int | None:
    try:
        return head_number(storage)
    except NotADatabaseError:  # it is being created
        return None


def read_plan(storage: Storage, run_id: str) -> StoredPlan | None:
    """The plan of a run; None when there is none, or a crash tore it."""
    path = path_of("runs", run=run_id, file="plan.json")
    try:
        return from_json(StoredPlan, storage.read(path), where=path) if storage.exists(path) else None
    except DamagedFileError:
        return None


def run_exists(storage: Storage, command: str, plan: object) -> bool:
    """Whether a run of this plan was opened before."""
    return storage.exists(path_of("runs", run=identity(command, to_plain(plan)), file="plan.json"))


def run_is_open(storage: Storage, run_id: str) -> bool:
    """Whether the folder of a run is there: it is not once the run was forgotten, or collected."""
    return storage.exists(path_of("runs", run=run_id, file="plan.json"))


def forget_run(run: Run) -> None:
    """Delete the folder of a run that ends without a commit: otherwise it would count as interrupted for ever.

    The plan is deleted last, so that a run that is interrupted here is found again by its command.
    """
    plan = path_of("runs", run=run.id, file="plan.json")
    for path in run.storage.list(f"queue/{run.id}"):
        run.storage.delete(path)
    for path in sorted(run.storage.list(plan.rpartition("/")[0]), key=plan.__eq__):
        run.storage.delete(path)
    run.storage.remove_empty_folders("runs")


@contextmanager
def passing_run(storage: Storage, command: str, plan: object, clock: str | None = None) -> Iterator[Run]:
    """A run whose tasks only answer a question of its command; it is forgotten when the block has the answer.

    Raises:
        ConflictError: as of `shared_run`.
    """
    with shared_run(storage, command, plan, clock) as run:
        yield run
    forget_run(run)


@contextmanager
def shared_run(storage: Storage, command: str, plan: object, clock: str | None = None) -> Iterator[Run]:
    """A run whose tasks only answer a question, which another process may ask too. It stays, with what is known of the answer.

    Raises:
        ConflictError: another process had the same question, and its answer, and deleted the run.
    """
    run = open_run(storage, command, plan, clock)
    try:
        yield run
    except MissingFileError as error:
        if run_exists(storage, command, plan):
            raise
        forget_run(run)
        raise ConflictError(
            f"another process did the same work ('{command}') and deleted its files",
            where=f"run {run.id}",
            remedy="Run the same command again.",
        ) from error


class Engine:
    """Base of the engines: skips finished tasks, runs the others, returns the records in the order of the tasks."""

    memory_bytes: int | None = None  # limit of all processes together; None is that of this process
    asked_by = ""  # the command that the user gave and that runs now, such as "embed"
    is_remote = (
        False  # whether other machines run the tasks, which reach the database, and no folder of this machine alone
    )

    @property
    def memory_limit(self) -> int:
        """The limit of the anonymous memory of all processes together, in bytes."""
        return PROCESS_MEMORY.limit_bytes if self.memory_bytes is None else self.memory_bytes

    def num_processes(self, tasks: Sequence[Task[P, R]], process_bytes: int) -> int:
        """How many processes run the tasks side by side, each with so much memory; this one alone, unless a subclass differs."""
        del tasks, process_bytes
        return 1

    def with_processes(self, count: int) -> Engine:
        """An engine for tasks of which `count` keep the machine busy; this one, unless a subclass differs."""
        del count
        return self

    def here(self) -> Engine:
        """An engine for tasks that are so small that starting a process takes longer; this one, unless a subclass differs."""
        return self

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """A block in which a command that the user gave runs, such as "embed"; others can run inside it."""
        before, self.asked_by = self.asked_by, command
        try:
            yield
        finally:
            self.asked_by = before

    @contextmanager
    def sharing_processes(self) -> Iterator[Engine]:
        """An engine that starts its processes once for all its runs in the block; this one, unless a subclass differs."""
        yield self

    def run(
        self,
        run: Run,
        tasks: Sequence[Task[P, R]],
        function: TaskFunction[P, R],
        progress: Progress,
        *,
        isolated: bool = False,
        extra_bytes: int = 0,
        unit: str = "",
        rate_of: str = "",
    ) -> list[TaskRecord[R]]:
        """Run the unfinished tasks of a run.

        Args:
            isolated: run in other processes even with one worker: a native crash must not end this process.
            extra_bytes: what every task holds in addition to what `TASK_MEMORY` says, such as the weights of a model.
            unit: of the tasks' weights, for progress.
            rate_of: the name of a count whose rate is shown next to the bar.

        Returns:
            One record per task, in the order of the tasks, whichever ended first.

        Raises:
            NotEnoughMemory: one process alone needs more than the memory limit. No task was started.
            WorkerDied: a process ended without an error; finished tasks are kept.
            ConflictError: somebody cancelled the run.
        """
        earlier = {task.id: record for task in tasks if (record := recorded(run, task)) is not None}
        done = dict[str, TaskRecord[R]]()
        if sum(map(_output_bytes, earlier.values())) <= _VERIFIED_HERE_BYTES:  # else the processes verify them
            done = {id_: record for id_, record in earlier.items() if _is_whole(run, record)}
            earlier = done
        total = sum(task.weight for task in tasks)
        with progress.stage(run.command, total, unit) as bar:
            if earlier:
                verified = "verified" if done else "are verified first"
                bar.note(f"{len(earlier)} of {len(tasks)} tasks were finished earlier and {verified}")
            bar.advance(sum(task.weight for task in tasks if task.id in done))
            pending = [task for task in tasks if task.id not in done]
            self._check_memory(pending, extra_bytes, bar, isolated=isolated)
            execution = self.execute(run, pending, function, bar, isolated=isolated, extra_bytes=extra_bytes)
            with closing(execution):  # after an error here, nothing goes on elsewhere
                for task, record in execution:
                    done[task.id] = record
                    self._count_work(record)
                    bar.count(rate_of, record.counts.get(rate_of, 0))
                    bar.advance(task.weight)
                    refuse_cancelled(run)
        return [done[task.id] for task in tasks]

    @cached_property
    def work(self) -> dict[str, WorkerTally]:
        """What workers have done for this engine, by their names. Who wants the work of one command empties it before."""
        return {}

    def _count_work(self, record: TaskRecord[R]) -> None:
        if record.worker:
            self.work[record.worker] = self.work.get(record.worker, WorkerTally()) + WorkerTally(1, record.elapsed_s)

    def _check_memory(self, tasks: Sequence[Task[P, R]], extra_bytes: int, bar: Bar, *, isolated: bool) -> None:
        if not tasks:
            return
        needed = process_bytes(tasks, extra_bytes)
        least = needed + (MAIN_MIB * MIB if isolated else 0)
        require_memory(f"a task of '{tasks[0].kind.stage}'", least, self.memory_limit)
        wanted, allowed = (self.num_processes(tasks, size) for size in (0, needed))
        if allowed < wanted:
            bar.note(f"{allowed} of {wanted} processes fit into {size_text(self.memory_limit)} of memory")

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
        """Run tasks and yield them as they end; engines differ only here. This one uses no other process."""
        del bar, isolated, extra_bytes
        for task in tasks:
            yield task, run_task(run, task, function)


def refuse_cancelled(run: Run) -> None:
    """Raises ConflictError when somebody cancelled a run."""
    if is_cancelled(run.storage, run.id):
        what, remedy = f"this '{run.command}' was cancelled", "Run the same command again to continue it."
        raise ConflictError(what, where=f"run {run.id}", remedy=remedy)


def refuse_ended(run: Run) -> None:
    """Raises ConflictError when somebody deleted the folder of a run."""
    if not run_is_open(run.storage, run.id):
        what, remedy = "another process ended this run and deleted its files", "Run the same command again."
        raise ConflictError(what, where=f"run {run.id}", remedy=remedy)


def run_task(run: Run, task: Task[P, R], function: TaskFunction[P, R]) -> TaskRecord[R]:
    """Run one task and store its completion record, unless it ended earlier and its outputs are whole."""
    if (earlier := finished(run, task)) is not None:
        return earlier
    with one_blas_thread():
        record = function(run.storage, task, run.clock)
    run.storage.write(record_path(run.id, task.id), dump_record(record))
    return record


def finished(run: Run, task: Task[P, R]) -> TaskRecord[R] | None:
    """The record of a task that ended earlier, if all its outputs exist and are verified; None when it must run."""
    record = recorded(run, task)
    return record if record is not None and _is_whole(run, record) else None


_VERIFIED_HERE_BYTES = 256 << 20  # outputs of finished tasks that the process of the command reads: a tenth of a second


def recorded(run: Run, task: Task[P, R]) -> TaskRecord[R] | None:
    """The record of a task that ended earlier; None where there is none, or a crash tore it."""
    path = record_path(run.id, task.id)
    if not run.storage.exists(path):
        return None
    try:
        return parse_record(run.storage.read(path), task.kind.result, where=path)
    except RetroDBError:
        return None


def _output_bytes(record: TaskRecord[R]) -> int:
    return sum(file.digest.size_bytes for file in record.files)


def _is_whole(run: Run, record: TaskRecord[R]) -> bool:
    """Whether all outputs of a task exist, with the bytes that they had. Otherwise it has to run again."""
    files = VerifiedFiles(run.storage)
    try:
        for file in record.files:
            files.verify(file)
            files.rows(file)
    except RetroDBError:
        return False  # damaged, or collected
    return True


def record_path(run_id: str, task_id: str) -> str:
    """Where the completion record of a task of a run is."""
    return path_of("runs", run=run_id, file=f"tasks/{task_id}.json")


def unreadable_record(run: Run, task: str) -> DamagedFileError:
    """The error that the completion record of a task is damaged."""
    remedy = "Delete this file, then run the same command again."
    return DamagedFileError("damaged completion record", where=record_path(run.id, task), remedy=remedy)


def add_counts(records: Iterable[TaskRecord[R]]) -> dict[str, int]:
    """The counts of all records, added up."""
    totals: dict[str, int] = {}
    for record in records:
        for name, count in record.counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals
