"""Commands for workers on several machines, and for the runs that they work on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrodb.encode.threads import available_cpus
from retrodb.engine.posted import StoredCommand
from retrodb.engine.ray_engine import RayEngine
from retrodb.engine.worker_engine import WorkerEngine
from retrodb.errors import UsageError
from retrodb.facade.base import DatabaseBase
from retrodb.facade.command_memory import TASK_COMMANDS

if TYPE_CHECKING:
    from retrodb.engine.worker import WorkerResult
    from retrodb.maintain.run_progress import RunProgress
    from retrodb.maintain.runs import AttemptDetails, RunChange, RunSummary, TaskLog


class RunCommands(DatabaseBase):
    """Commands for workers and runs."""

    def work(
        self,
        *,
        run: str | None = None,
        stages: Sequence[str] = (),
        gpu: bool = False,
        allow_python: bool = False,
        workers: int | None = 1,
        idle_exit_s: float | None = None,
        grace_s: float = 0.0,
    ) -> WorkerResult:
        """Run tasks that commands with the engine "workers" have posted, until a signal, or until there are none for some time.

        SIGTERM lets the tasks end within the grace period, and gives the others back.

        Args:
            run: the beginning of the id of the only run to work on. None is all.
            stages: take tasks of these commands only, such as "embed". Empty is all.
            gpu: take only tasks that can use a GPU.
            allow_python: take tasks with a Python function of the user, such as a tagger. Then everybody who can write to the
                database can run any code here.
            workers: number of tasks side by side, in processes of their own. None is one per core.
            idle_exit_s: end after so many seconds without a task. None stays.
            grace_s: seconds to finish tasks after SIGTERM.

        Raises:
            UsageError: a command that has no tasks.
        """
        from retrodb.engine.worker import Worker, WorkerOptions

        for name in stages:
            if name not in TASK_COMMANDS:
                raise UsageError(f"'{name}' is no command with tasks", remedy=f"There are: {', '.join(TASK_COMMANDS)}.")
        processes = workers or available_cpus()
        options = WorkerOptions(
            processes=processes,
            threads=max(1, available_cpus() // processes),
            memory_bytes=self._engine.memory_limit,
            run=run,
            stages=frozenset(stages),
            gpu=gpu,
            allows_python=allow_python,
            idle_exit_s=idle_exit_s,
            grace_s=grace_s,
        )
        return Worker(self._context.storage, options, lambda text: print(text, file=sys.stderr, flush=True)).run()

    def keep_command_line(self, names: Sequence[str], arguments: Sequence[str], path: str) -> None:
        """Keep a command line with the runs whose tasks other machines run, so that `retrodb runs commit` can run it again.

        Args:
            names: of the command.
            arguments: all words after `retrodb`.
            path: the database, which is one of them, or comes from the environment.
        """
        others = list(arguments)
        for word in (*names, path):
            if word in others:
                others.remove(word)
        if isinstance(self._engine, WorkerEngine | RayEngine):
            self._engine.command = StoredCommand(tuple(names), tuple(others), os.getcwd())

    def runs(self) -> list[RunSummary]:
        """The runs that have not committed, the oldest first."""
        from retrodb.maintain.runs import list_runs

        return list(list_runs(self._context))

    def run_progress(self, run: str) -> RunProgress:
        """How many of the tasks of a run that are posted now have ended, their rate, and the time that is left.

        Args:
            run: the beginning of its id.

        Raises:
            UsageError: there is no such run, or there are several.
        """
        from retrodb.maintain.run_progress import run_progress

        return run_progress(self._context, run)

    def show_run(self, run: str) -> list[AttemptDetails]:
        """The attempts at the tasks of a run.

        Args:
            run: the beginning of its id.
        """
        from retrodb.maintain.runs import show_run

        return show_run(self._context, run)

    def run_log(self, run: str, task: str) -> TaskLog:
        """What the attempts at a task printed.

        Args:
            run: the beginning of the run's id.
            task: the beginning of the task's id.
        """
        from retrodb.maintain.runs import read_log

        return read_log(self._context, run, task)

    def retry_run(self, run: str) -> RunChange:
        """Allow further attempts at the tasks of a run that failed too often, or lost too many workers.

        Args:
            run: the beginning of its id.
        """
        from retrodb.maintain.runs import retry_run

        return retry_run(self._context, run)

    def cancel_run(self, run: str) -> RunChange:
        """End a run. Workers stop its tasks, and a command that waits for it ends.

        Args:
            run: the beginning of its id.
        """
        from retrodb.maintain.runs import cancel_run

        return cancel_run(self._context, run)

    def command_of_run(self, run: str) -> tuple[tuple[str, ...], str]:
        """The command line that planned a run, for this database and without `retrodb`, and the folder that it was given in.

        Args:
            run: the beginning of its id.

        Raises:
            UsageError: it is not known, or no command that has tasks.
        """
        from retrodb.maintain.runs import command_of_run

        command = command_of_run(self._context, run)
        if not command.names or command.names[0] not in (*TASK_COMMANDS, "update"):
            remedy = "Run the command yourself."
            raise UsageError(f"'{' '.join(command.names)}' is no command with tasks", where=f"run {run}", remedy=remedy)
        path = self.path if "://" in self.path else os.path.abspath(self.path)
        return (*command.names, path, *command.arguments), command.folder
