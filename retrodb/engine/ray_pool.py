"""The processes of a command on a Ray cluster: they start where there is room, run tasks, and are replaced when they die."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from retrodb.engine.attempts import StoredError
from retrodb.engine.posted import PostedTasks, library_version
from retrodb.engine.ray_actor import TaskActor
from retrodb.engine.ray_resources import RAY_BYTES, ProcessNeed, ProcessSize
from retrodb.engine.task_attempt import Outcome, ProcessShare
from retrodb.errors import RetroDBError, WorkerDied

if TYPE_CHECKING:
    from typing import TypeAlias

    from ray import ObjectRef
    from ray.actor import ActorHandle

    _Ref: TypeAlias = "ObjectRef[tuple[str, str, StoredError | None]] | ObjectRef[Outcome]"

_ROUNDS_IN_VAIN = 10  # of starts, after which more processes would die too


@dataclass(eq=False)
class _Process:
    """An actor."""

    handle: ActorHandle[TaskActor]
    round: int  # in which it was started
    node: str = ""  # its name, once the process has begun


@dataclass(frozen=True)
class EndedAttempt:
    """An attempt that has ended; without an outcome, its process is lost."""

    task: str
    outcome: Outcome | None


class ActorPool:
    """Processes of one size, for tasks of one database."""

    def __init__(self, url: str, size: ProcessSize, libraries: Sequence[str]) -> None:
        """
        Args:
            url: of the database.
            libraries: packages whose functions run.
        """
        self.url, self.size = url, size
        self._libraries, self._run = libraries, ""
        self._starting: dict[_Ref, _Process] = {}
        self._idle: list[_Process] = []
        self._busy: dict[_Ref, tuple[_Process, str]] = {}  # with the task
        self._round = 0  # of starts
        self._rounds_in_vain: set[int] = set()  # since a process began

    @property
    def num_ready(self) -> int:
        """Processes that run tasks, or could."""
        return len(self._idle) + len(self._busy)

    @property
    def num_idle(self) -> int:
        """Processes that could run tasks."""
        return len(self._idle)

    @property
    def num_running(self) -> int:
        """Tasks that run."""
        return len(self._busy)

    @property
    def num_nodes(self) -> int:
        """Nodes whose processes run tasks."""
        return len({process.node for process, _ in self._busy.values()})

    def open(self, run: str) -> None:
        """Begin with the tasks of a run. Each process says first that it is alive and has the database."""
        self._run = run
        idle, self._idle = self._idle, []
        for process in idle:
            self._begin(process)

    def grow(self, wanted: int) -> None:
        """Start processes until there are so many. Those for which the cluster has no room wait in its queue."""
        import ray

        self._round += 1
        for _ in range(wanted - self.num_ready - len(self._starting)):
            size = self.size
            actor = ray.remote(TaskActor).options(
                num_cpus=size.cpus,
                num_gpus=size.gpus,
                memory=size.memory_bytes,
                max_restarts=0,  # a task that is lost gets another attempt, with a number of its own
                max_task_retries=0,
            )
            share = ProcessShare(size.cpus, size.memory_bytes - RAY_BYTES, self._libraries)
            handle = actor.remote(self.url, share, has_gpu=size.gpus > 0)
            self._begin(_Process(cast("ActorHandle[TaskActor]", handle), self._round))

    def attempt(self, posted: PostedTasks, number: int) -> None:
        """Let an idle process make an attempt at the only task that is posted."""
        process = self._idle.pop()
        self._busy[process.handle.attempt.remote(posted, number)] = process, posted.tasks[0].id

    def wait(self, timeout_s: float) -> list[EndedAttempt]:
        """The attempts that have ended, after a time without any.

        Raises:
            RetroDBError: a node lacks the library or has another version, or does not see the database.
            WorkerDied: processes die one after another before they run a task.
        """
        import ray

        refs = [*self._busy, *self._starting]
        if not refs:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [ended for ref in ready for ended in self._ended(ref)]

    def shrink(self, need: ProcessNeed) -> bool:
        """Ask for half of the room, if that is enough for the tasks, when no process has begun. Whether it was more."""
        smaller = self.size.half(need)
        if smaller == self.size:
            return False
        self.drop_starting()
        self.size = smaller
        return True

    def drop_starting(self) -> None:
        """Wait no longer for processes that have not begun."""
        for process in self._starting.values():
            _kill(process)
        self._starting = {}

    def close(self) -> None:
        """End all processes, with their tasks."""
        self.drop_starting()
        for process in [*self._idle, *(process for process, _ in self._busy.values())]:
            _kill(process)
        self._idle, self._busy = [], {}

    def _begin(self, process: _Process) -> None:
        self._starting[process.handle.begin.remote(self._run)] = process

    def _ended(self, ref: _Ref) -> Iterator[EndedAttempt]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        process, task = self._busy.pop(ref) if ref in self._busy else (self._starting.pop(ref), None)
        try:
            value = ray.get(ref)
        except RayTaskError as error:  # a defect of ours
            _kill(process)
            what = f"internal error on node {process.node}: {type(error.cause).__name__}: {error.cause}"
            raise RetroDBError(what, remedy="Ray's logs of this node have the place.") from None
        except RayError as error:
            _kill(process)  # it may be alive, on a node that is cut off
            if task is not None:
                yield EndedAttempt(task, None)
                self.open(self._run)  # others may have been on the same node
            elif not process.node:
                self._did_not_begin(process, error)
            return
        self._idle.append(process)
        if isinstance(value, Outcome):
            assert task is not None, "a process that begins gives no outcome"
            yield EndedAttempt(task, value)
        else:
            self._rounds_in_vain.clear()
            process.node, version, reason = value
            _check(process.node, version, reason)

    def _did_not_begin(self, process: _Process, error: Exception) -> None:
        """Raises RetroDBError where another process would not begin either."""
        text = str(error)
        if (missing := re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text)) is not None:
            node = re.search(r"ip=([\w.:]+)", text)
            what = f"this node has no Python module '{missing[1]}'"
            remedy = "Install the same version of retrodb on all nodes, where the Python of Ray finds it."
            raise RetroDBError(what, where=f"node {node[1]}" if node else None, remedy=remedy)
        last = text.strip().rpartition("\n")[2]
        if getattr(error, "actor_init_failed", False):
            raise RetroDBError(f"a process cannot begin on the Ray cluster ({last})", remedy="Look at its node.")
        self._rounds_in_vain.add(process.round)
        if len(self._rounds_in_vain) >= _ROUNDS_IN_VAIN:
            what = f"processes on the Ray cluster die before they run a task ({last})"
            raise WorkerDied(what, remedy="Look at the nodes of the Ray cluster: they may have too little memory.")


def _check(node: str, version: str, reason: StoredError | None) -> None:
    """Raises RetroDBError for a node that cannot run tasks, or whose processes would do something else than is asked of them."""
    if version != library_version():
        what = f"this node has retrodb {version}, and this command is {library_version()}"
        raise RetroDBError(what, where=f"node {node}", remedy="Install the same version on all nodes.")
    if reason is not None:
        raise replace(reason, what=f"{reason.what} (on node {node})").error()


def _kill(process: _Process) -> None:
    import ray
    from ray.exceptions import RayError

    with suppress(RayError, ValueError):  # it has ended
        ray.kill(process.handle)
