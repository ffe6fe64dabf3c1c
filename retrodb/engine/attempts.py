"""Attempts at tasks by workers that share nothing but the storage: claims, signs of life, and what became of each.

*Attempt n* of a task belongs to the worker that creates its key (`put_if_absent`, and nothing else, decides). The owner writes
signs of life to a key of its own. Whoever watches one that does not change for the lease, **on the watcher's own monotonic
clock**, may claim attempt n + 1: no clock of another machine is ever read. The first completion record of a task counts,
so an attempt that was given up too early does no harm: its outputs have other names, and become garbage.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from retrodb.errors import DamagedFileError, MissingFileError, RetroDBError
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.store.digest import identity
from retrodb.store.storage import Storage

ATTEMPTS_OF_A_TASK = 3
"""A task that is lost so often runs once more, alone and last. One that fails so often ends its run."""

State = Literal["running", "returned", "failed", "died"]
"""Of an attempt, as its worker says: given back, ended by an error, or its process ended without a word."""


@dataclass(frozen=True)
class StoredError:
    """An error of a task, as its worker stores it."""

    kind: str  # its class, as module:name
    what: str
    where: str | None
    remedy: str | None

    @staticmethod
    def of(error: RetroDBError) -> StoredError:
        """An error."""
        kind = next(filter(_is_plain, type(error).__mro__))
        return StoredError(f"{kind.__module__}:{kind.__name__}", error.what, error.where, error.remedy)

    def error(self) -> RetroDBError:
        """The error again; of a class that this version does not know, the base class."""
        module, _, name = self.kind.partition(":")
        found: object = None
        if module.partition(".")[0] == "retrodb":
            with suppress(ImportError):
                found = getattr(import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, RetroDBError) and _is_plain(found):
            kind: type[RetroDBError] = found
            return kind(self.what, where=self.where, remedy=self.remedy)
        return RetroDBError(self.what, where=self.where, remedy=self.remedy)


def _is_plain(kind: type[object]) -> bool:
    """Whether an error of this class is made as a RetroDBError is."""
    if not issubclass(kind, RetroDBError):
        return False
    own = kind.__mro__[: kind.__mro__.index(RetroDBError)]
    return not any("__init__" in vars(base) for base in own)


@dataclass(frozen=True)
class Claim:
    """Who has an attempt."""

    worker: str  # machine, process and a random number
    output: str  # id that the outputs of the attempt are named by, in place of the task's
    started_at: str  # by the worker's clock: for people only, no decision depends on it


@dataclass(frozen=True)
class LifeSign:
    """The last sign of life of an attempt."""

    count: int  # changes with each
    state: State
    error: StoredError | None = None  # of a failed attempt


@dataclass(frozen=True)
class Attempt:
    """An attempt at a task of a run."""

    run: str
    task: str
    number: int  # from 1

    @property
    def path(self) -> str:
        """The key that its owner created."""
        return path_of("runs", run=self.run, file=f"attempts/{self.task}-{self.number}.json")

    @property
    def sign_path(self) -> str:
        """The key that its owner writes to."""
        return path_of("runs", run=self.run, file=f"signs/{self.task}-{self.number}.json")

    @property
    def log_path(self) -> str:
        """What its worker has to say."""
        return path_of("runs", run=self.run, file=f"logs/{self.task}-{self.number}.txt")


def attempts_of(storage: Storage, run: str) -> dict[str, list[Attempt]]:
    """The attempts of each task of a run, by their numbers."""
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for path in storage.list(path_of("runs", run=run, file="attempts")):
        if match := _ATTEMPT.fullmatch(path.rpartition("/")[2]):
            attempts[match[1]].append(Attempt(run, match[1], int(match[2])))
    for of_task in attempts.values():
        of_task.sort(key=lambda attempt: attempt.number)
    return attempts


_ATTEMPT = re.compile(r"([0-9a-f]+)-(\d+)\.json")


def claim(storage: Storage, attempt: Attempt, worker: str, output: str, now: str) -> bool:
    """Whether the attempt is this worker's from now on."""
    return storage.put_if_absent(attempt.path, to_json(Claim(worker, output, now)))


def read_claim(storage: Storage, attempt: Attempt) -> Claim:
    """Who has an attempt. Raises MissingFileError, DamagedFileError."""
    return from_json(Claim, storage.read(attempt.path), where=attempt.path)


def sign(storage: Storage, attempt: Attempt, count: int, state: State, error: StoredError | None = None) -> None:
    """Write a sign of life."""
    storage.write(attempt.sign_path, to_json(LifeSign(count, state, error)))


def read_sign(storage: Storage, attempt: Attempt) -> LifeSign:
    """The last sign of life; one that counts 0 where there is none yet."""
    try:
        return from_json(LifeSign, storage.read(attempt.sign_path), where=attempt.sign_path)
    except MissingFileError:
        return LifeSign(0, "running")
    except DamagedFileError:
        return LifeSign(-1, "running")  # torn by a crash of the machine: no sign of life


@dataclass
class Watch:
    """What one process saw of the attempts of others."""

    storage: Storage
    lease_s: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Attempt, tuple[LifeSign, float]] = field(default_factory=dict)

    def state(self, attempt: Attempt) -> State | Literal["lost"]:
        """What is known of an attempt; it is lost when it showed no sign of life for the lease, since this watch first saw it."""
        asked_s = self.clock()
        sign = read_sign(self.storage, attempt)
        if sign.state != "running":
            return sign.state
        known, since = self._seen.get(attempt, (None, asked_s))
        if known != sign:
            self._seen[attempt] = sign, self.clock()
            return "running"
        return "lost" if asked_s - since > self.lease_s else "running"


@dataclass(frozen=True)
class History:
    """The attempts at one task, as a watch sees them."""

    task: str
    attempts: Sequence[Attempt]
    states: Sequence[State | Literal["lost"]]

    @staticmethod
    def of(watch: Watch, task: str, attempts: Sequence[Attempt]) -> History:
        """The history of a task. Each attempt but the newest has ended."""
        return History(task, attempts, [watch.state(attempt) for attempt in attempts])

    @property
    def is_running(self) -> bool:
        """Whether somebody is at work on the task."""
        return bool(self.states) and self.states[-1] == "running"

    @property
    def num_lost(self) -> int:
        """Attempts that ended without a word. One that was given back is not lost, nor is the newest if it may be alive."""
        return sum(state in ("lost", "died", "running") for state in self.states) - self.is_running

    @property
    def num_failed(self) -> int:
        """Attempts that ended with an error."""
        return sum(state == "failed" for state in self.states)

    def is_suspect(self, retries: int) -> bool:
        """Whether the task lost so many workers that it runs alone, after all others."""
        return self.num_lost >= ATTEMPTS_OF_A_TASK * (1 + retries)

    def is_set_aside(self, retries: int) -> bool:
        """Whether nobody tries the task again."""
        most = ATTEMPTS_OF_A_TASK * (1 + retries)
        return not self.is_running and (self.num_lost > most or self.num_failed >= most)

    def is_exhausted(self, retries: int) -> bool:
        """Whether the task has had all attempts that it may have, although the last one may be running."""
        most = ATTEMPTS_OF_A_TASK * (1 + retries)
        return self.is_set_aside(retries) or self.num_failed + self.num_lost + self.is_running > most

    def next_output(self, last: Claim | None) -> str:
        """The id that names the outputs of the next attempt, after a last one.

        After an attempt that has ended for certain, its unfinished outputs can be used. A worker that says nothing may still
        be at work, so the next one writes elsewhere.
        """
        if last is None:
            return self.task
        return identity(self.task, len(self.attempts) + 1) if self.states[-1] == "lost" else last.output


def num_retries(storage: Storage, run: str) -> int:
    """How often somebody asked for further attempts at the tasks that were set aside."""
    return len(storage.list(path_of("runs", run=run, file="retries")))


def allow_retries(storage: Storage, run: str) -> None:
    """Allow further attempts at the tasks of a run that were set aside."""
    storage.write(path_of("runs", run=run, file=f"retries/{num_retries(storage, run) + 1}.json"), b"{}")


def finished_tasks(storage: Storage, run: str) -> set[str]:
    """The ids of the tasks of a run that have completion records."""
    paths: Iterable[str] = storage.list(path_of("runs", run=run, file="tasks"))
    return {path.rpartition("/")[2].removesuffix(".json") for path in paths}


def is_cancelled(storage: Storage, run: str) -> bool:
    """Whether somebody cancelled a run."""
    return storage.exists(cancelled_path(run))


def cancelled_path(run: str) -> str:
    """The file that says that a run was cancelled."""
    return path_of("runs", run=run, file="cancelled.json")
