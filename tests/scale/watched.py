"""A storage that notes which files are read, and whether a command or one of its tasks reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import Bar
from retrodb.engine.run import Run, run_task
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.store.scratch import ScratchStorage
from retrodb.store.storage import LocalStorage

RECORDS = {
    "retrodb.toml",
    "tokenizer.json",
    "snapshots",
    "manifests",
    "rows",
    "heads",
    "runs",
    "locks",
    "tmp",
    "recipe.toml",
}
"""Folders and files that are records themselves: reading all of them is what planning costs."""


@dataclass
class Reads:
    """Which files were read, by their kind. A file that is read twice counts once for each reader."""

    planning: set[str] = field(default_factory=set)  # by the command
    tasks: list[set[str]] = field(default_factory=list)  # by each of its tasks
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file

    def planned(self) -> Counter[str]:
        """Files that the command itself opened."""
        return _by_kind(self.planning)

    def in_tasks(self) -> Counter[str]:
        """Files that its tasks opened, all tasks together."""
        return sum((_by_kind(paths) for paths in self.tasks), Counter())

    def planned_bytes(self) -> Counter[str]:
        """Size of the files that the command itself opened."""
        sizes: Counter[str] = Counter()
        for path in self.planning:
            sizes[_kind(path)] += self.sizes[path]
        return sizes


def _kind(path: str) -> str:
    return path.partition("/")[0]


def _by_kind(paths: Iterable[str]) -> Counter[str]:
    return Counter(_kind(path) for path in paths if _kind(path) not in RECORDS)


class WatchedStorage(LocalStorage):
    """A local storage that notes what is read through it. Every instance is another place, so that no view is cached."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads = Reads()
        self._task: set[str] | None = None

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def read(self, path: str) -> bytes:
        data = super().read(path)
        self._note(path, len(data))
        return data

    def local(self, path: str) -> Path:
        found = super().local(path)
        self._note(path, found.stat().st_size)
        return found

    def read_pieces(self, path: str) -> Iterator[bytes]:
        self._note(path, self.stat(path).size_bytes)
        yield from super().read_pieces(path)

    @contextmanager
    def task(self) -> Iterator[None]:
        """What is read now, a task reads."""
        self._task = set()
        self.reads.tasks.append(self._task)
        try:
            yield
        finally:
            self._task = None

    def _note(self, path: str, size: int) -> None:
        (self.reads.planning if self._task is None else self._task).add(path)
        self.reads.sizes[path] = size


def watch_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in this process, also those that want one to themselves, and are told apart from their command."""

    def execute(
        engine: LocalEngine,
        run: Run,
        tasks: Sequence[Task[P, R]],
        function: TaskFunction[P, R],
        bar: Bar,
        *,
        isolated: bool = False,
        extra_bytes: int = 0,
    ) -> Iterable[tuple[Task[P, R], TaskRecord[R]]]:
        for task in tasks:
            storage = run.storage._base if isinstance(run.storage, ScratchStorage) else run.storage
            with storage.task() if isinstance(storage, WatchedStorage) else nullcontext():
                record = run_task(run, task, function)
            yield task, record

    monkeypatch.setattr(LocalEngine, "execute", execute)
