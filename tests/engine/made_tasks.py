"""Tasks of the tests of workers: they write a file, wait, fail, or end their process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import InputError
from retrodb.store.publish import publish
from retrodb.store.storage import Storage


@dataclass(frozen=True)
class Work:
    """What a task does."""

    number: int
    seconds: float = 0.0
    fails: int = 0  # of its attempts
    dies: int = 0


@dataclass(frozen=True)
class Square:
    """What a task found."""

    number: int
    threads: int


WORK = TaskKind[Work, Square]("work", 1, Square)


def run_work(storage: Storage, task: Task[Work, Square], clock: str, *, threads: int = 1) -> TaskRecord[Square]:
    """Write the square of a number. Each attempt leaves a trace."""
    work = task.payload
    attempt = len(storage.list(f"runs/traces/{work.number}"))
    storage.write(f"runs/traces/{work.number}/{attempt}-{os.getpid()}", b"")
    print(f"attempt {attempt} at {work.number} in {os.getcwd()}")
    time.sleep(work.seconds)
    if attempt < work.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt < work.dies + work.fails:
        raise InputError(f"{work.number} fails", where="made", remedy="Wait.")
    file = publish(
        storage, "rejects", f"rejects/{task.id}.parquet", lambda local: _write(local, f"{clock} {work.number}")
    )
    return TaskRecord(task.id, (file,), Square(work.number**2, threads), {"done": 1})


@dataclass(frozen=True)
class Devices:
    """The GPUs that a task sees, and how many it may use."""

    visible: str
    gpus: int


LOOK = TaskKind[Work, Devices]("look", 1, Devices)


def run_look(
    storage: Storage, task: Task[Work, Devices], clock: str, *, device: str, gpus: int = 0
) -> TaskRecord[Devices]:
    """See which GPUs there are."""
    del storage, clock, device
    return TaskRecord(task.id, (), Devices(os.environ.get("CUDA_VISIBLE_DEVICES", "all"), gpus))


def _write(path: os.PathLike[str], text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
