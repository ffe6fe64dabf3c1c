"""An open database: the base class of all methods of `Database`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from retrodb.config import from_mapping
from retrodb.encode.threads import available_cpus, thread_environment
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import make_progress
from retrodb.stages.context import Context
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.lock import advisory_lock
from retrodb.store.snapshots import head_number
from retrodb.store.storage import Storage, open_storage
from retrodb.view.view import View

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = TypeVar("P", bound="DataclassInstance")
Options = TypeVar("Options")


class DatabaseBase:
    """A database at a path, with the processes that work on it."""

    def __init__(
        self,
        path: str | Path | Storage,
        *,
        workers: int | None = 1,
        progress: bool = False,
        clock: str | None = None,
    ) -> None:
        """Open a database. `retrodb.open` does the same.

        Args:
            path: a directory, or a storage.
            workers: number of processes that run tasks. None starts one per core. The result does not depend on it.
            progress: show progress on stderr.
            clock: the time that new runs record, in ISO 8601. None reads the system clock.

        Raises:
            NotADatabaseError: there is no database at this path.
            FormatVersionError: a newer retrodb wrote it.
            DamagedFileError: its settings are damaged.
        """
        self._context = make_context(path, workers=workers, progress=progress, clock=clock)
        head_number(self._context.storage)  # does not read the snapshot: with a damaged head, older ones still open
        self._context.settings()

    @property
    def path(self) -> str:
        """The path of the database."""
        return self._context.storage.url

    def view(self, as_of: int | None = None) -> View:
        """The newest snapshot, or an older one, to read from in Python."""
        return self._context.view(as_of)

    def _lock(self, keys: ConflictKeys, command: str) -> AbstractContextManager[None]:
        return advisory_lock(self._context.storage, keys.lock, command)


def make_context(
    path: str | Path | Storage, *, workers: int | None = 1, progress: bool = False, clock: str | None = None
) -> Context:
    """The context of a path, with or without a database. Arguments are those of `DatabaseBase`."""
    for name, value in thread_environment().items():  # torch reads them when it is first imported; workers inherit them
        os.environ.setdefault(name, value)
    storage = open_storage(str(path)) if isinstance(path, str | Path) else path
    return Context(storage, LocalEngine(workers or available_cpus()), make_progress(progress), clock)


def params_of(kind: type[P], options: Mapping[str, object]) -> P:
    """The parameters of a stage from its options. None means that an option was not given.

    Raises:
        ConfigError: for an unknown option, or a value of the wrong type.
    """
    return from_mapping(kind, {key: value for key, value in options.items() if value is not None}, where="options")


def options_of(kind: type[Options], params: DataclassInstance) -> Options:
    """The options in `retrodb.options` that give these parameters. Fields that are no option of this kind are left out."""
    import msgspec

    return msgspec.convert({name: getattr(params, name) for name in kind.__annotations__}, kind)
