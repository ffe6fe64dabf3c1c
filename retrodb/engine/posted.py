"""Tasks as a file that workers on other machines read: the function's name, and payloads and arguments in their JSON form.

A worker runs functions of this library only. What it needs to know of a function is in its signature:
`(storage, task: Task[Payload, Result], clock, *, arguments)`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from typing import get_args, get_type_hints

from retrodb.engine.attempts import finished_tasks
from retrodb.engine.run import Run
from retrodb.engine.task import P, R, Task, TaskFunction, TaskKind
from retrodb.errors import RetroDBError
from retrodb.format.json_codec import JsonObject, JsonValue, from_json, from_plain, to_json, to_plain, to_plain_object
from retrodb.format.kinds import path_of
from retrodb.store.storage import Storage

LIBRARIES = ("retrodb",)
"""The packages whose functions a worker runs. Tasks read and write the files that they name, with the rights of the worker: only
those should be able to write to a database who may do that."""


@dataclass(frozen=True)
class PostedTask:
    """One task."""

    id: str
    payload: JsonValue
    weight: int


@dataclass(frozen=True)
class PostedTasks:
    """Tasks of one run and one kind, in `queue/{run}/{id}.json`."""

    id: str  # of this posting: the same tasks posted again have another one
    library: str  # version of the library that posted them
    asked_by: str  # command that the user gave, such as "embed"
    run: str
    command: str  # name of the run
    clock: str  # of the run
    stage: str
    version: int  # of the kind of tasks
    function: str  # module:name
    arguments: JsonObject  # keyword arguments of the function
    extra_bytes: int  # see `Engine.run`
    folder: str  # current folder of the command, which relative paths start from
    lease_s: float  # an attempt whose owner shows no sign of life for so long is lost
    tasks: tuple[PostedTask, ...]
    verify: tuple[str, ...] = ()  # ids of tasks that ended earlier, and count once a worker has verified their outputs

    @property
    def needs_python(self) -> bool:
        """Whether they run a Python function that is not of this library, such as a tagger of the user's."""
        return any(isinstance(value, Mapping) and value.get("python") is not None for value in self.arguments.values())

    @property
    def device(self) -> str:
        """What they compute on: "cpu", "cuda", or "auto" for both; the device in the arguments of their function."""
        values = [
            self.arguments.get("device"),
            *(v.get("device") for v in self.arguments.values() if isinstance(v, Mapping)),
        ]
        device = next((value for value in values if isinstance(value, str)), "cpu").partition(":")[0]
        return "auto" if device == "mps" else device

    @property
    def path(self) -> str:
        """Where they are stored."""
        return path_of("queue", run=self.run, task=self.id)


@dataclass(frozen=True)
class StoredCommand:
    """The command line that planned a run: the same one again waits for it, and commits."""

    names: tuple[str, ...]  # of the command, such as ("queries", "add")
    arguments: tuple[str, ...]  # the others, without the database
    folder: str  # that relative paths start from


@dataclass(frozen=True)
class _Signature:
    """The types of a function of tasks."""

    payload: type[object]
    result: type[object]
    arguments: Mapping[str, type[object]]


def posted_tasks(
    run: Run,
    tasks: Sequence[Task[P, R]],
    function: TaskFunction[P, R],
    *,
    extra_bytes: int,
    lease_s: float,
    asked_by: str = "",
    verify: Collection[str] = (),
) -> PostedTasks:
    """Tasks of one kind, as they are posted."""
    arguments = function.keywords if isinstance(function, partial) else {}
    plain = function.func if isinstance(function, partial) else function
    name = f"{plain.__module__}:{plain.__qualname__}"
    kind = tasks[0].kind
    return PostedTasks(
        id=uuid.uuid4().hex,
        library=library_version(),
        asked_by=asked_by or run.command,
        run=run.id,
        command=run.command,
        clock=run.clock,
        stage=kind.stage,
        version=kind.version,
        function=name,
        arguments=to_plain_object(arguments),
        extra_bytes=extra_bytes,
        folder=os.getcwd(),
        lease_s=lease_s,
        tasks=tuple(PostedTask(task.id, to_plain(task.payload), task.weight) for task in tasks),
        verify=tuple(task.id for task in tasks if task.id in verify),
    )


def ended_tasks(storage: Storage, posted: PostedTasks) -> set[str]:
    """The ids of the tasks of a run that have ended: those that ended earlier only if they have been verified."""
    finished = finished_tasks(storage, posted.run)
    if not posted.verify:
        return finished
    prefix = f"{posted.id}-"
    names = (path.rpartition("/")[2] for path in storage.list(path_of("runs", run=posted.run, file="verified")))
    verified = {name.removeprefix(prefix).removesuffix(".json") for name in names if name.startswith(prefix)}
    return finished - (set(posted.verify) - verified)


def mark_verified(storage: Storage, posted: PostedTasks, task: str) -> None:
    """Let a task that ended earlier count."""
    storage.write(path_of("runs", run=posted.run, file=f"verified/{posted.id}-{task}.json"), b"{}")


@cache
def library_version() -> str:
    """The version of this library, as it was installed."""
    return version("retrodb")


def read_posted(storage: Storage, path: str) -> PostedTasks:
    """Posted tasks. Raises MissingFileError, DamagedFileError."""
    return from_json(PostedTasks, storage.read(path), where=path)


def write_posted(storage: Storage, posted: PostedTasks) -> None:
    """Post tasks."""
    storage.write(posted.path, to_json(posted))


def unpost(storage: Storage, run: str) -> None:
    """Workers take no further tasks of a run."""
    for path in storage.list(f"queue/{run}"):
        storage.delete(path)
    storage.remove_empty_folders("queue")


def write_command(storage: Storage, run: str, command: StoredCommand) -> None:
    """Keep the command line of a run."""
    storage.write(path_of("runs", run=run, file="command.json"), to_json(command))


def read_command(storage: Storage, run: str) -> StoredCommand | None:
    """The command line of a run; None if it was planned by other means. Raises DamagedFileError."""
    path = path_of("runs", run=run, file="command.json")
    return from_json(StoredCommand, storage.read(path), where=path) if storage.exists(path) else None


def task_of(posted: PostedTasks, number: int, libraries: Sequence[str] = LIBRARIES) -> Task[object, object]:
    """One of the tasks.

    Raises:
        DamagedFileError: its payload is not one of this version of the library.
    """
    signature, task = _signature(_function(posted.function, libraries)), posted.tasks[number]
    kind: TaskKind[object, object] = TaskKind(posted.stage, posted.version, signature.result)
    return Task(task.id, kind, from_plain(signature.payload, task.payload, where=posted.path), task.weight)


def function_of(
    posted: PostedTasks, own: Mapping[str, object], libraries: Sequence[str] = LIBRARIES
) -> TaskFunction[object, object]:
    """The function of the tasks with its arguments.

    Args:
        own: what this worker decides itself, such as threads: arguments, or fields of them, of these names.
        libraries: whose functions may run.

    Raises:
        DamagedFileError: an argument is not one of this version of the library.
    """
    function = _function(posted.function, libraries)
    signature = _signature(function)
    arguments = {
        name: from_plain(kind, posted.arguments[name], where=posted.path)
        for name, kind in signature.arguments.items()
        if name in posted.arguments
    }
    arguments = {name: _with_fields(value, own) for name, value in arguments.items()}
    arguments |= {name: value for name, value in own.items() if name in signature.arguments}
    return partial(function, **arguments)


def _with_fields(value: object, own: Mapping[str, object]) -> object:
    """A dataclass with other values of the fields that it has; any other value as it is."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    names = {field.name for field in fields(value)}
    return replace(value, **{name: new for name, new in own.items() if name in names})


@cache
def _signature(function: TaskFunction[object, object]) -> _Signature:
    hints = get_type_hints(function)
    payload, result = get_args(hints["task"])
    others = {key: hint for key, hint in hints.items() if key not in ("storage", "task", "clock", "return")}
    return _Signature(payload, result, others)


def _function(name: str, libraries: Sequence[str]) -> TaskFunction[object, object]:
    """The function that has a name.

    Raises:
        RetroDBError: there is none: another version of the library posted the tasks.
    """
    module, _, attribute = name.partition(":")
    try:
        if module.partition(".")[0] not in libraries:
            raise ImportError(module)
        function: TaskFunction[object, object] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RetroDBError(
            f"this version of retrodb has no tasks '{name}'",
            remedy="Install on the workers the version of the command that posted them.",
        ) from error
    return function
