"""An opened database: what all methods of the facade work with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from retrodb.config import from_mapping
from retrodb.encode.threads import available_cpus, thread_environment
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import make_progress
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.lock import advisory_lock
from retrodb.store.snapshots import head_number
from retrodb.store.storage import Storage, open_storage
from retrodb.view.view import View

P = TypeVar("P")


class DatabaseBase:
    """A database at its place, with the processes that work on it."""

    def __init__(
        self,
        path: str | Path | Storage,
        *,
        workers: int | None = 1,
        progress: bool = False,
        clock: str | None = None,
    ) -> None:
        """Open a database; use `retrodb.open`.

        Args:
            path: a directory, or a storage.
            workers: processes that run tasks, None for one per core; the result does not depend on it.
            progress: whether to show progress on stderr.
            clock: the time that new runs record, ISO 8601; None reads the machine's clock.

        Raises:
            NotADatabaseError, FormatVersionError, DamagedFileError.
        """
        self._context = make_context(path, workers=workers, progress=progress, clock=clock)
        head_number(self._context.storage)  # the head itself is not read: when it is damaged, older versions still open
        self._context.settings()

    @property
    def path(self) -> str:
        """Where the database lies."""
        return self._context.storage.url

    def view(self, as_of: int | None = None) -> View:
        """The newest version of the database, or an older one, to read from in Python."""
        return self._context.view(as_of)

    def _lock(self, own: conflict_keys.ConflictKeys, command: str) -> Any:
        return advisory_lock(self._context.storage, own.lock, command)


def make_context(
    path: str | Path | Storage, *, workers: int | None = 1, progress: bool = False, clock: str | None = None
) -> Context:
    """The context of a place, whether a database is there already or not. Arguments are those of `DatabaseBase`."""
    for name, value in thread_environment().items():  # torch reads them when it is first imported; workers inherit them
        os.environ.setdefault(name, value)
    storage = open_storage(str(path)) if isinstance(path, str | Path) else path
    return Context(storage, LocalEngine(workers or available_cpus()), make_progress(progress), clock)


def params_of(kind: type[P], options: dict[str, Any]) -> P:
    """The parameters of a stage from the options that were given; None means not given."""
    return from_mapping(kind, {k: v for k, v in options.items() if v is not None}, where="options")
