"""Tasks in processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext

from retrodb.engine.run import Engine, Run, run_task
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.errors import WorkerDied
from retrodb.store.open_storage import open_storage


class LocalEngine(Engine):
    """Runs tasks one after another in this process, or in `workers` spawned ones.

    Processes are spawned and not forked: a FAISS search in a forked child hangs.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._shared: ProcessPoolExecutor | None = None  # of a block that shares processes

    def with_processes(self, count: int) -> Engine:
        """An engine with `count` processes; with one, tasks run one after another in this process."""
        return LocalEngine(count)

    @contextmanager
    def sharing_processes(self) -> Iterator[Engine]:
        """An engine whose processes start when they are first needed, and stay until the block ends."""
        engine = LocalEngine(self.workers)
        with _new_pool(self.workers) as engine._shared:
            yield engine

    def execute(
        self, run: Run, tasks: Sequence[Task[P, R]], function: TaskFunction[P, R], *, isolated: bool = False
    ) -> Iterable[tuple[Task[P, R], TaskRecord[R]]]:
        """Run the tasks; with one worker, or one task, in this process unless they have to be isolated."""
        workers = min(self.workers, len(tasks))
        if workers == 0 or (workers == 1 and not isolated):
            yield from super().execute(run, tasks, function)
            return
        with _new_pool(workers) if self._shared is None else nullcontext(self._shared) as pool:
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


def _new_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _run_elsewhere(
    url: str, run_id: str, command: str, clock: str, task: Task[P, R], function: TaskFunction[P, R]
) -> TaskRecord[R]:
    return run_task(Run(open_storage(url), run_id, command, clock), task, function)
