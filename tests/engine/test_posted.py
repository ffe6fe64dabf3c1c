"""Tasks as files: every task of the library can be posted, and no other function can be named."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import get_args, get_type_hints

import msgspec
import pytest

import retrodb
from engine.made_tasks import WORK, Square, Work, run_work
from retrodb.engine.posted import PostedTasks, function_of, posted_tasks, read_posted, task_of, write_posted
from retrodb.engine.run import Run
from retrodb.engine.task import NoResult, Task, TaskFunction, TaskKind, TaskRecord
from retrodb.errors import DamagedFileError, RetroDBError
from retrodb.store.storage import LocalStorage, Storage


@dataclass(frozen=True)
class Device:
    """What a task may use."""

    device: str
    threads: int = 1


@dataclass(frozen=True)
class Nothing:
    """The payload of a task without one."""


NOTHING = TaskKind[Nothing, NoResult]("nothing", 1, NoResult)


def run_nothing(
    storage: Storage, task: Task[Nothing, NoResult], clock: str, *, hardware: Device
) -> TaskRecord[NoResult]:
    return TaskRecord(task.id, counts={"threads": hardware.threads})


def posted(storage: LocalStorage) -> PostedTasks:
    run = Run(storage, "a" * 32, "made", "2026-01-01")
    tasks = [WORK.task(Work(number), weight=number) for number in range(1, 4)]
    return posted_tasks(run, tasks, partial(run_work, threads=7), extra_bytes=5, lease_s=3.0)


def task_functions() -> Iterator[TaskFunction[object, object]]:
    for module in walk_packages(retrodb.__path__, "retrodb."):
        loaded = import_module(module.name)
        for function in filter(inspect.isfunction, vars(loaded).values()):
            first = list(inspect.signature(function).parameters)[:3]
            if function.__module__ == module.name and first == ["storage", "task", "clock"]:
                yield function


def test_payloads_results_and_arguments_of_every_task_have_a_json_form() -> None:
    functions = list(task_functions())
    assert len(functions) > 60
    for function in functions:
        hints = get_type_hints(function)
        kinds = [
            *get_args(hints["task"]),
            *(hints[name] for name in hints if name not in ("storage", "task", "return")),
        ]
        for kind in kinds:
            msgspec.json.Decoder(kind)  # raises TypeError for a type that it cannot read


def test_posted_tasks_come_back_as_they_were(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    tasks = posted(storage)
    write_posted(storage, tasks)
    read = read_posted(storage, tasks.path)
    assert read == tasks
    again = [task_of(read, number, ["engine"]) for number in range(3)]
    assert [task.payload for task in again] == [Work(1), Work(2), Work(3)]
    assert [(task.id, task.weight, task.kind) for task in again] == [
        (task.id, task.weight, WORK) for task in (WORK.task(Work(number), weight=number) for number in range(1, 4))
    ]


def test_a_worker_decides_its_threads(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    record = function_of(posted(storage), {"threads": 2, "memory_bytes": 9}, ["engine"])(
        storage, WORK.task(Work(3)), "now"
    )
    assert record.result == Square(9, 2)
    run = Run(storage, "a" * 32, "made", "2026-01-01")
    tasks = posted_tasks(
        run, [NOTHING.task(Nothing())], partial(run_nothing, hardware=Device("cuda:1")), extra_bytes=0, lease_s=1
    )
    assert tasks.device == "cuda"
    assert posted(storage).device == "cpu"
    assert function_of(tasks, {"threads": 5}, ["engine"])(storage, task_of(tasks, 0, ["engine"]), "").counts == {
        "threads": 5
    }


@pytest.mark.parametrize(
    "name", ["os:system", "engine.made_tasks:run_work", "retrodb.engine.run:no_such", "retrodb.nowhere:f", "x"]
)
def test_a_worker_runs_functions_of_this_library_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(RetroDBError, match="this version of retrodb has no tasks"):
        function_of(replace(posted(LocalStorage(tmp_path)), function=name), {})


def test_a_payload_of_another_version_is_refused(tmp_path: Path) -> None:
    tasks = posted(LocalStorage(tmp_path))
    wrong = replace(tasks, tasks=(replace(tasks.tasks[0], payload={"number": "one"}),))
    with pytest.raises(DamagedFileError, match="queue/"):
        task_of(wrong, 0, ["engine"])


def test_the_same_tasks_posted_again_are_other_ones_for_workers(tmp_path: Path) -> None:
    """Their arguments may differ, and workers keep what they have read."""
    assert posted(LocalStorage(tmp_path)).path != posted(LocalStorage(tmp_path)).path


def test_a_tagger_of_the_user_is_known_as_python(tmp_path: Path) -> None:
    tasks = posted(LocalStorage(tmp_path))
    assert not tasks.needs_python
    assert replace(tasks, arguments={"params": {"python": "subprocess:run"}}).needs_python
    assert not replace(tasks, arguments={"params": {"python": None, "regex": "a"}}).needs_python
