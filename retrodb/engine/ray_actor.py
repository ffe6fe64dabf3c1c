"""What runs on the nodes of a Ray cluster: a process that makes attempts at tasks, one after another.

What tasks load (an encoder, parts of an index, a codebook) stays in the caches of the process. Payloads come as arguments and
outcomes go back; all data goes through the storage.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO

from retrodb.encode.threads import thread_environment
from retrodb.engine.attempts import Attempt, StoredError, claim, sign
from retrodb.engine.posted import PostedTasks, library_version
from retrodb.engine.run import run_is_open
from retrodb.engine.task_attempt import Outcome, ProcessShare, run_attempt
from retrodb.engine.task_process import end_with_parent
from retrodb.engine.worker_tally import worker_name
from retrodb.errors import RetroDBError
from retrodb.memory import PROCESS_MEMORY
from retrodb.store.digest import identity
from retrodb.store.open_files import raise_limit_of_open_files
from retrodb.store.open_storage import open_storage

_SEES_WITHIN_S = 3.0  # a network file system shows new files that late
_LOG_CHARACTERS = 1 << 16  # of what a task printed that are kept: its end


class TaskActor:
    """A process of a Ray cluster."""

    def __init__(self, url: str, share: ProcessShare, *, has_gpu: bool) -> None:
        end_with_parent()  # which is the node's process of Ray
        if not has_gpu:  # whatever the node has: Ray has given it to nobody, or to another process
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        for name, value in thread_environment().items():
            os.environ.setdefault(name, value)
        raise_limit_of_open_files()
        PROCESS_MEMORY.begin(share.memory_bytes)
        self._name = worker_name(socket.gethostname(), os.getpid(), "ray")
        self._url, self._share = url, replace(share, worker=self._name)

    def begin(self, run: str) -> tuple[str, str, StoredError | None]:
        """The node's name, its version of the library, and why it cannot run tasks of the run."""
        try:
            self._storage = open_storage(self._url)
            until_s = time.monotonic() + _SEES_WITHIN_S
            while not run_is_open(self._storage, run):
                if time.monotonic() > until_s:
                    remedy = "Put it in an object store, or on a file system that all nodes see at this path."
                    raise RetroDBError("the database is not there", where=self._url, remedy=remedy)
                time.sleep(0.2)
        except RetroDBError as error:
            return socket.gethostname(), library_version(), StoredError.of(error)
        return socket.gethostname(), library_version(), None

    def attempt(self, posted: PostedTasks, number: int) -> Outcome:
        """Make an attempt at the only task that is posted. Its number is the first free one from a given number."""
        try:
            return self._attempt(posted, number)
        except RetroDBError as error:  # the storage takes no claim, or no log
            return Outcome("failed", StoredError.of(error))

    def _attempt(self, posted: PostedTasks, number: int) -> Outcome:
        [task] = posted.tasks
        attempt = Attempt(posted.run, task.id, number)
        while not claim(self._storage, attempt, self._name, output := _output(attempt), _now()):
            attempt = replace(attempt, number=attempt.number + 1)
        printed = StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            outcome = run_attempt(self._storage, posted, 0, attempt, output, self._share)
        if outcome.state == "failed":
            self._storage.write(attempt.log_path, printed.getvalue()[-_LOG_CHARACTERS:].encode(errors="replace"))
            sign(self._storage, attempt, 1, "failed", outcome.error)
        return outcome


def _output(attempt: Attempt) -> str:
    """The id that names the outputs of an attempt. The one before it may still be running where its node is cut off."""
    return attempt.task if attempt.number == 1 else identity(attempt.task, attempt.number)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
