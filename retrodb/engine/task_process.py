"""The process in which a worker runs its tasks: native code that crashes, or takes too much memory, ends this process alone."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from retrodb.engine.attempts import Attempt
from retrodb.engine.posted import PostedTasks, read_posted
from retrodb.engine.task_attempt import Outcome, ProcessShare, run_attempt
from retrodb.errors import MissingFileError
from retrodb.memory import PROCESS_MEMORY
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from typing import TypeAlias

    _Pipe: TypeAlias = "Connection[object, object]"

_LOG_BYTES = 1 << 16  # of what a task printed that are kept: its end


@dataclass(frozen=True)
class ClaimedTask:
    """A task that a worker has claimed."""

    posted: str  # path of the tasks
    number: int  # among them
    attempt: Attempt
    output: str  # id that names its outputs


class TaskProcess:
    """A process that runs one task after another; started when it is first needed, and again after it died."""

    def __init__(self, url: str, share: ProcessShare) -> None:
        self._start = url, share
        self._folder = TemporaryDirectory(prefix="retrodb-work-")
        self._log = Path(self._folder.name) / "log"
        self._process: SpawnProcess | None = None
        self._connection: _Pipe | None = None

    @property
    def connection(self) -> _Pipe:
        """Is ready when a task has ended, or the process."""
        assert self._connection is not None, "a task was started"
        return self._connection

    def begin(self, task: ClaimedTask) -> None:
        """Begin a task."""
        if self._process is None or not self._process.is_alive():
            self.kill()
            context = get_context("spawn")  # a FAISS search in a forked process hangs
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, *self._start, str(self._log)))
            self._process.start()
            theirs.close()
        self._log.write_bytes(b"")
        with suppress(OSError):  # it died this moment, which `outcome` says
            self.connection.send(task)

    def outcome(self) -> Outcome | None:
        """How the task ended; None while it runs."""
        try:
            if not self.connection.poll():
                return None
            outcome = self.connection.recv()
        except (EOFError, OSError):
            return Outcome("died", log=self._printed())
        assert isinstance(outcome, Outcome), "the process sends nothing else"
        return replace(outcome, log=self._printed())

    def kill(self) -> str:
        """End the process at once, with its task. Gives what the task printed."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.connection.close()
        self._process = None
        return self._printed()

    def close(self) -> None:
        """End the process, and forget what it printed."""
        self.kill()
        self._folder.cleanup()

    def _printed(self) -> str:
        try:
            with self._log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _serve(connection: _Pipe, url: str, share: ProcessShare, log: str) -> None:
    """Run the tasks that come through a connection, until it is closed."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's whole group; the worker decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _print_to(log)
    PROCESS_MEMORY.begin(share.memory_bytes)
    storage = open_storage(url)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        assert isinstance(task, ClaimedTask), "the worker sends nothing else"
        connection.send(_run(storage, task, share))


def _run(storage: Storage, claimed: ClaimedTask, share: ProcessShare) -> Outcome:
    try:
        posted = _posted(storage, claimed.posted)
    except MissingFileError:  # its command has ended
        return Outcome("returned")
    return run_attempt(storage, posted, claimed.number, claimed.attempt, claimed.output, share)


@lru_cache(maxsize=2)
def _posted(storage: Storage, path: str) -> PostedTasks:
    return read_posted(storage, path)


def _print_to(log: str) -> None:
    """Send all that this process and its libraries print to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def end_with_parent() -> None:
    """Let the system end this process when its parent ends in any way, where it can (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
