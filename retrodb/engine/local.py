"""Tasks in processes of this machine."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from retrodb.engine.progress import Bar
from retrodb.engine.run import Engine, Run, run_task
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.engine.task_memory import MAIN_MIB, process_bytes
from retrodb.errors import WorkerDied
from retrodb.memory import MIB, PROCESS_MEMORY, anonymous_bytes
from retrodb.store.open_storage import open_storage

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


class LocalEngine(Engine):
    """Runs tasks one after another in this process, or in spawned ones: `workers` of them, or as many as the memory is for.

    Processes are spawned and not forked: a FAISS search in a forked child hangs.
    """

    def __init__(self, workers: int = 1, memory_bytes: int | None = None) -> None:
        """
        Args:
            memory_bytes: limit of the anonymous memory of all processes together; None is that of this process.
        """
        self.workers, self.memory_bytes = workers, memory_bytes
        self._shared: _SharedPool | None = None  # of a block that shares processes

    def with_processes(self, count: int) -> Engine:
        """An engine with `count` processes; with one, tasks run one after another in this process."""
        return LocalEngine(count, self.memory_bytes)

    def here(self) -> Engine:
        """This process runs the tasks, one after another."""
        return self.with_processes(1)

    @contextmanager
    def sharing_processes(self) -> Iterator[Engine]:
        """An engine whose processes start when they are first needed, and stay until the block ends.

        They are started again where later tasks need more memory, or can use more processes.
        """
        engine = LocalEngine(self.workers, self.memory_bytes)
        with closing(_SharedPool()) as engine._shared:
            yield engine

    def num_processes(self, tasks: Sequence[Task[P, R]], process_bytes: int) -> int:
        """How many processes run the tasks side by side, when each needs so much memory next to this one."""
        wanted = min(self.workers, len(tasks))
        if not process_bytes:
            return wanted
        return max(1, min(wanted, (self.memory_limit - _memory_of_this_process()) // process_bytes))

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
        """Run the tasks; with one process, or one task, in this process unless they have to be isolated."""
        needed = process_bytes(tasks, extra_bytes)
        processes = self.num_processes(tasks, needed) if tasks else 0
        is_running = self._shared is not None and self._shared.has_room(needed)
        if processes == 0 or (processes == 1 and not isolated and not is_running):
            if self._shared is not None:
                self._shared.close()  # what its processes hold counts too
            yield from super().execute(run, tasks, function, bar)
        else:
            yield from self._execute_elsewhere(run, tasks, function, processes, needed)

    def _execute_elsewhere(
        self, run: Run, tasks: Sequence[Task[P, R]], function: TaskFunction[P, R], processes: int, needed: int
    ) -> Iterator[tuple[Task[P, R], TaskRecord[R]]]:
        """Run the tasks in so many processes, which need so many bytes each."""
        from concurrent.futures import FIRST_COMPLETED, wait
        from concurrent.futures.process import BrokenProcessPool

        each_bytes = (self.memory_limit - _memory_of_this_process()) // processes
        with (
            _new_pool(processes, each_bytes)
            if self._shared is None
            else self._shared.pool(processes, each_bytes, needed) as pool
        ):
            pending = {
                pool.submit(_run_elsewhere, run.storage.url, run.id, run.command, run.clock, task, function): task
                for task in tasks
            }
            try:
                while pending:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        yield pending.pop(future), future.result()
            except BrokenProcessPool as error:
                raise WorkerDied(
                    "a worker process died",
                    where=f"run {run.id}",
                    remedy="Run the same command again; fewer --workers need less memory.",
                ) from error
            finally:
                for future in pending:
                    future.cancel()


class _SharedPool:
    """The processes of a block that shares them. They are started when they are first needed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._processes, self._each_bytes = 0, 0

    def has_room(self, needed_bytes: int) -> bool:
        """Whether processes run, and each may use so much memory."""
        return self._pool is not None and needed_bytes <= self._each_bytes

    @contextmanager
    def pool(self, processes: int, each_bytes: int, needed_bytes: int) -> Iterator[ProcessPoolExecutor]:
        """The processes that run already if they are as many, and each may use as much memory as is needed, else new ones."""
        if self._pool is None or self._processes < processes or not self.has_room(needed_bytes):
            self.close()
            self._pool, self._processes, self._each_bytes = _new_pool(processes, each_bytes), processes, each_bytes
        yield self._pool

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None


def _memory_of_this_process() -> int:
    """Memory of the process of the command while others run its tasks."""
    return max(MAIN_MIB * MIB, anonymous_bytes())


def _new_pool(processes: int, each_bytes: int) -> ProcessPoolExecutor:
    import multiprocessing  # here, because most commands start no process
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _begin_worker, (each_bytes,))


def _begin_worker(memory_bytes: int) -> None:
    PROCESS_MEMORY.begin(memory_bytes)


def _run_elsewhere(
    url: str, run_id: str, command: str, clock: str, task: Task[P, R], function: TaskFunction[P, R]
) -> TaskRecord[R]:
    return run_task(Run(open_storage(url), run_id, command, clock), task, function)
