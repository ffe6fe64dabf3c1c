"""Tasks and their completion records.

A task is a small description; running it reads and writes storage and returns a record of its outputs. Its id hashes the
stage, the stage's version, its payload and the digests of its inputs, so equal work has equal names on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from retrodb.format.json_codec import JsonValue, from_json, from_plain, to_json, to_plain
from retrodb.format.records import FileRecord
from retrodb.store.digest import identity
from retrodb.store.storage import Storage

P = TypeVar("P")  # the payload of a kind of tasks: a frozen dataclass
R = TypeVar("R")  # what its completion records carry to the commit: a frozen dataclass


@dataclass(frozen=True)
class NoResult:
    """The result of tasks that leave nothing but files and counts."""


@dataclass(frozen=True)
class TaskKind(Generic[P, R]):
    """A kind of tasks: one module constant of each stage."""

    stage: str  # such as "embed"
    version: int  # raised when equal payloads give other outputs than before
    result: type[R]  # read from completion records

    def task(self, payload: P, inputs: Sequence[str] = (), weight: int = 1) -> Task[P, R]:
        """A task whose id hashes all that its output depends on; `inputs` are digests."""
        return Task(identity(self.stage, self.version, to_plain(payload), list(inputs)), self, payload, weight)


@dataclass(frozen=True)
class Task(Generic[P, R]):
    """One unit of work of a stage."""

    id: str  # 32 hexadecimal digits
    kind: TaskKind[P, R]
    payload: P  # everything the work depends on, in addition to its input files
    weight: int = 1  # its part of the work, in the progress unit of the stage (bytes, chunks, rows)


@dataclass(frozen=True)
class TaskRecord(Generic[R]):
    """The completion record of a finished task, stored next to the run's plan."""

    task: str  # id of the task
    files: tuple[FileRecord, ...] = ()  # published outputs
    result: R = NoResult()  # type: ignore[assignment]  # frozen
    counts: Mapping[str, int] = field(default_factory=dict)  # added up over tasks for the report
    worker: str = field(default="", compare=False)  # that ran the task; "" for a process of the command
    elapsed_s: float = field(default=0.0, compare=False)  # that the worker took


TaskFunction: TypeAlias = Callable[[Storage, Task[P, R], str], TaskRecord[R]]
"""Runs one task of a stage: a module-level function, so that another process can import it. The last argument is the
run's clock, the only time that may enter its outputs."""


@dataclass(frozen=True)
class _StoredRecord:
    task: str
    files: tuple[FileRecord, ...]
    result: JsonValue
    counts: dict[str, int]
    worker: str = ""
    elapsed_s: float = 0.0


def dump_record(record: TaskRecord[R]) -> bytes:
    """The JSON bytes of a completion record."""
    return to_json(record)


def parse_record(data: bytes, kind: type[R], *, where: str) -> TaskRecord[R]:
    """Read a completion record.

    Raises:
        DamagedFileError: when it is torn or of another kind.
    """
    stored = from_json(_StoredRecord, data, where=where)
    result = from_plain(kind, stored.result, where=where)
    return TaskRecord(stored.task, stored.files, result, stored.counts, stored.worker, stored.elapsed_s)
