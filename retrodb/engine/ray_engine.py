"""The engine of commands whose tasks run on a Ray cluster: in actors, of which each keeps what its tasks have loaded."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Generic

from retrodb.engine.attempts import ATTEMPTS_OF_A_TASK, attempts_of, finished_tasks
from retrodb.engine.local import LocalEngine
from retrodb.engine.posted import LIBRARIES, PostedTasks, StoredCommand, posted_tasks, unpost, write_command
from retrodb.engine.progress import Bar
from retrodb.engine.ray_cluster import RayCluster, check_address, connected, require_ray
from retrodb.engine.ray_pool import ActorPool, EndedAttempt
from retrodb.engine.ray_resources import OWN_CLUSTER_BYTES, RAY_BYTES, ProcessNeed, num_places, size_for
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
from retrodb.engine.task_memory import MAIN_MIB, process_bytes
from retrodb.errors import NotEnoughMemory, WorkerDied
from retrodb.memory import MIB, size_text
from retrodb.store.scratch import ScratchStorage
from retrodb.store.storage import Storage

_WAIT_S = 0.5
_LOOK_EVERY_S = 2.0
_NOTE_EVERY_S = 30.0  # that the cluster has no room
_SHRINK_AFTER_S = 10.0  # other work may never leave as much of a node as the first size asks for
_NODE_WITHIN_S = 300.0  # a node with room joins, or none will: clusters that grow by themselves take minutes
_BESIDES_TASKS_BYTES = MAIN_MIB * MIB + RAY_BYTES + OWN_CLUSTER_BYTES  # of the memory limit, with a cluster of its own
_MOST_WAITING = 64  # processes that wait in the cluster's queue, for nodes that join it


class RayEngine(Engine):
    """Runs tasks in processes of a Ray cluster: as many as there is room for, also on nodes that join later."""

    is_remote = True

    def __init__(
        self,
        memory_bytes: int | None = None,
        address: str | None = None,
        command: StoredCommand | None = None,
        libraries: Sequence[str] = LIBRARIES,
    ) -> None:
        """
        Args:
            memory_bytes: limit of this process, and of a cluster that it starts itself; others have their own.
            address: HOST:PORT, "auto" or "local". None is the cluster of the environment (`RAY_ADDRESS`) or of this machine,
                and where there is none, one that is started for the time of a command.
            command: the command line of this process, kept with its runs.
            libraries: packages whose functions run.

        Raises:
            MissingDependency: Ray is not installed.
            UsageError: the address is invalid.
        """
        require_ray()
        if address is not None:
            check_address(address)
        self.memory_bytes, self.command = memory_bytes, command
        self._address, self._libraries = address, tuple(libraries)
        self._commands = 0  # that are inside each other
        self._open = ExitStack()  # what ends with the outermost
        self._cluster: RayCluster | None = None
        self._pool: ActorPool | None = None

    def here(self) -> Engine:
        """This process: small tasks take less time than starting others."""
        return LocalEngine(1, self.memory_bytes)

    @contextmanager
    def running(self, command: str) -> Iterator[None]:
        """The connection and the processes stay until the outermost command ends."""
        self._commands += 1
        try:
            with super().running(command):
                yield
        finally:
            self._commands -= 1
            if self._commands == 0:
                self._cluster = self._pool = None
                self._open.close()

    def _check_memory(self, tasks: Sequence[Task[P, R]], extra_bytes: int, bar: Bar, *, isolated: bool) -> None:
        del tasks, extra_bytes, bar, isolated  # the nodes have their own memory

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
        """Run the tasks on the cluster, and yield them as they end.

        Raises:
            ConflictError: somebody cancelled the run.
            WorkerDied: a task lost too many processes.
            NotEnoughMemory: no node has the memory, or the GPU, of a task.
            RetroDBError: a task failed, or there is no cluster that can be used.
        """
        del isolated  # every task runs in another process
        if isinstance(run.storage, ScratchStorage):  # a dry run, and nobody may write to the database
            yield from self.here().execute(run, tasks, function, bar, extra_bytes=extra_bytes)
            return
        if self.command is not None:
            write_command(run.storage, run.id, self.command)
        unpost(run.storage, run.id)  # what a command that was killed had posted for workers
        if not tasks:
            return
        with nullcontext() if self._commands else self.running(self.asked_by):
            cluster = self._connected(bar)
            posted = posted_tasks(
                run,
                tasks,
                function,
                extra_bytes=extra_bytes,
                lease_s=DEFAULT_LEASE_S,
                asked_by=self.asked_by,
                verify=finished_tasks(run.storage, run.id),
            )
            needed_bytes = process_bytes(tasks, extra_bytes) + RAY_BYTES
            need = ProcessNeed(needed_bytes, int(_takes_gpu(posted, cluster)))
            pool = self._pool_for(run.storage, cluster, need, len(tasks))
            try:
                yield from _Batch(run, tasks, posted, pool, cluster, need, bar).finish()
            except BaseException:
                pool.close()
                raise
            pool.drop_starting()

    def _connected(self, bar: Bar) -> RayCluster:
        if self._cluster is None:
            self._open = ExitStack()
            own_bytes = max(MIB, self.memory_limit - _BESIDES_TASKS_BYTES)
            self._cluster = self._open.enter_context(connected(self._address, own_bytes, bar.note))
        return self._cluster

    def _pool_for(self, storage: Storage, cluster: RayCluster, need: ProcessNeed, num_tasks: int) -> ActorPool:
        """The processes of the tasks before, if they have room for these and leave no CPU idle; otherwise new ones."""
        url = storage.url if "://" in storage.url else os.path.abspath(storage.url)
        size = size_for(cluster.nodes(), need, num_tasks)
        pool = self._pool
        if pool is None or pool.url != url or pool.size.cpus != size.cpus or not pool.size.has_room(need):
            if pool is not None:
                pool.close()
            self._pool = pool = ActorPool(url, size, self._libraries)
            self._open.callback(pool.close)
        return pool


def _takes_gpu(posted: PostedTasks, cluster: RayCluster) -> bool:
    """Whether the tasks run on GPUs: they have to, or they can and the cluster has some."""
    return posted.device == "cuda" or (posted.device == "auto" and any(node.gpus for node in cluster.nodes()))


class _Batch(Generic[P, R]):
    """Tasks of one kind, and the processes that run them."""

    def __init__(
        self,
        run: Run,
        tasks: Sequence[Task[P, R]],
        posted: PostedTasks,
        pool: ActorPool,
        cluster: RayCluster,
        need: ProcessNeed,
        bar: Bar,
    ) -> None:
        self._run, self._pool, self._cluster, self._need, self._bar = run, pool, cluster, need, bar
        self._tasks = {task.id: task for task in tasks}
        self._posted, self._payloads = posted, {task.id: task for task in posted.tasks}
        self._waiting = deque(self._tasks)
        self._suspects: deque[str] = deque()  # lost too many processes; each runs alone, after all others
        self._losses: Counter[str] = Counter()
        earlier = attempts_of(run.storage, run.id)
        self._attempts = Counter({task: earlier[task][-1].number for task in self._tasks if task in earlier})
        self._shown = (0, 0)  # tasks and nodes
        self._looked_s = -float("inf")
        self._noted_s = self._ran_s = self._shrunk_s = time.monotonic()

    def finish(self) -> Iterator[tuple[Task[P, R], TaskRecord[R]]]:
        """Run the tasks, and yield each with its record."""
        self._pool.open(self._run.id)
        while self._waiting or self._suspects or self._pool.num_running:
            self._look()
            self._begin_attempts()
            for ended in self._pool.wait(_WAIT_S):
                if (finished := self._finished(ended)) is not None:
                    yield finished
            self._show()

    def _begin_attempts(self) -> None:
        while self._waiting and self._pool.num_idle:
            self._attempt(self._waiting.popleft())
        if self._suspects and not self._waiting and not self._pool.num_running and self._pool.num_idle:
            self._attempt(self._suspects.popleft())

    def _attempt(self, task: str) -> None:
        self._attempts[task] += 1
        verify = (task,) if task in self._posted.verify else ()
        posted = replace(self._posted, tasks=(self._payloads[task],), verify=verify)
        self._pool.attempt(posted, self._attempts[task])

    def _finished(self, ended: EndedAttempt) -> tuple[Task[P, R], TaskRecord[R]] | None:
        """A task with its record; None if it has to run again."""
        task = ended.task
        if ended.outcome is None:
            self._lost(task)
            return None
        if ended.outcome.error is not None:
            raise ended.outcome.error.error()
        record = recorded(self._run, self._tasks[task])
        if record is None:
            refuse_ended(self._run)
            raise unreadable_record(self._run, task)
        return self._tasks[task], record

    def _lost(self, task: str) -> None:
        self._looked_s = -float("inf")  # for a process in place of the one that died
        self._losses[task] += 1
        if self._losses[task] > ATTEMPTS_OF_A_TASK:
            what = f"task {task} lost its process {self._losses[task]} times"
            remedy = "Run the same command again; nodes with more memory may help."
            raise WorkerDied(what, where=f"run {self._run.id}", remedy=remedy)
        (self._suspects if self._losses[task] == ATTEMPTS_OF_A_TASK else self._waiting).append(task)

    def _look(self) -> None:
        """Look now and then: whether the run is open, and whether the cluster has room for more processes."""
        now = time.monotonic()
        if now - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now
        refuse_cancelled(self._run)
        refuse_ended(self._run)
        if not self._cluster.has_head():
            return
        pool = self._pool
        places = num_places(self._cluster.nodes(), pool.size)
        pool.grow(self._wanted(places))
        if pool.num_ready:
            self._noted_s = self._ran_s = self._shrunk_s = now
            return
        if not places:
            self._refuse_without_room(now)
            return
        if now - self._shrunk_s > _SHRINK_AFTER_S and pool.shrink(self._need):
            self._shrunk_s, self._looked_s = now, -float("inf")
        if now - self._noted_s > _NOTE_EVERY_S:
            self._noted_s = now
            self._bar.note(f"other work has all of the Ray cluster: the tasks wait for a node with {self._need}")

    def _show(self) -> None:
        """Show what runs, when that has changed."""
        running = self._pool.num_running, self._pool.num_nodes
        if running != self._shown:
            self._shown = running
            self._bar.show(f"{running[0]} tasks running on {running[1]} nodes")

    def _wanted(self, places: int) -> int:
        """How many processes the tasks can use: as many as there is room for, and some for nodes that join."""
        unfinished = len(self._waiting) + len(self._suspects) + self._pool.num_running
        spare = 0 if self._cluster.is_own else min(_MOST_WAITING, max(4, self._pool.num_ready))
        return min(unfinished, max(places, self._pool.num_ready) + spare)

    def _refuse_without_room(self, now: float) -> None:
        """Raises NotEnoughMemory when no node has room for a process, and none with room joins for long enough."""
        if self._cluster.is_own or now - self._ran_s > _NODE_WITHIN_S:
            what = f"a task of '{self._posted.stage}' needs a node with {self._need}, and the Ray cluster has none"
            remedy = "Add such a node."
            if self._cluster.is_own and not self._need.gpus:
                remedy = f"Give --memory {size_text(self._need.memory_bytes + _BESIDES_TASKS_BYTES)} or more."
            raise NotEnoughMemory(what, where=f"run {self._run.id}", remedy=remedy)
        if now - self._noted_s > _NOTE_EVERY_S:
            self._noted_s = now
            self._bar.note(f"no node of the Ray cluster has {self._need}: the tasks wait for one that joins")
