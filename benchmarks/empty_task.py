"""A task that does nothing, for `bench_workers.py`. Workers import it by its module."""

from __future__ import annotations

from dataclasses import dataclass

from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.store.storage import Storage


@dataclass(frozen=True)
class Number:
    """The payload."""

    number: int


NOTHING = TaskKind[Number, NoResult]("nothing", 1, NoResult)


def run_nothing(storage: Storage, task: Task[Number, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Do nothing."""
    del storage, clock
    return TaskRecord(task.id)
