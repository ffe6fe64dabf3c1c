"""An open database: the base class of all methods of `Database`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from retrodb.config import from_mapping
from retrodb.encode.threads import available_cpus, thread_environment
from retrodb.engine.local import LocalEngine
from retrodb.engine.progress import make_progress
from retrodb.engine.run import DEFAULT_LEASE_S, Engine
from retrodb.errors import NotADatabaseError, UsageError
from retrodb.facade.command_memory import limited
from retrodb.facade.guard import guarded
from retrodb.format.entries import SpaceEntry
from retrodb.memory import default_memory
from retrodb.stages.context import Context
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.lock import advisory_lock
from retrodb.store.object_urls import is_object_url
from retrodb.store.open_files import raise_limit_of_open_files
from retrodb.store.open_storage import open_storage
from retrodb.store.scratch import ScratchStorage, is_read_only
from retrodb.store.snapshots import head_number
from retrodb.store.storage import LocalStorage, Storage
from retrodb.view.view import View

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = TypeVar("P", bound="DataclassInstance")
Options = TypeVar("Options")


class DatabaseBase:
    """A database at a path, with the processes that work on it."""

    def __init_subclass__(cls) -> None:
        """Every public method checks its arguments (`guard.py`), and keeps the memory limit (`command_memory.py`)."""
        super().__init_subclass__()
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                setattr(cls, name, guarded(limited(method)))

    @guarded
    def __init__(
        self,
        path: str | Path | Storage,
        *,
        workers: int | None = 1,
        memory_bytes: int | None = None,
        progress: bool = False,
        clock: str | None = None,
        engine: str = "local",
        lease_s: float | None = None,
        ray_address: str | None = None,
    ) -> None:
        """Open a database. `retrodb.open` does the same.

        Args:
            path: a directory, or a storage.
            workers: number of processes that run tasks. None starts one per core. The result does not depend on it.
            memory_bytes: limit of the anonymous memory of all processes together; mapped files do not count. None is half of
                the machine's memory. The result does not depend on it.
            progress: show progress on stderr.
            clock: the time that new runs record, in ISO 8601. None reads the system clock.
            engine: "local" runs tasks in processes of this machine. "workers" posts them for `retrodb work` processes, on this
                machine or on others, and waits. "ray" runs them on a Ray cluster. The result does not depend on it.
            lease_s: tasks of a worker that shows no sign of life for so many seconds are given to others. None is 30.
            ray_address: HOST:PORT of the Ray cluster, "auto" for one of this machine, or "local" to start one. None is that of
                RAY_ADDRESS or of this machine, and where there is none, one that runs as long as a command.

        Raises:
            UsageError: the memory limit is not positive, there is no such engine, or the address is invalid.
            MissingDependency: Ray is not installed.
            NotADatabaseError: there is no database at this path.
            FormatVersionError: a newer retrodb wrote it.
            DamagedFileError: its settings are damaged.
        """
        self._context = make_context(
            path,
            workers=workers,
            memory_bytes=memory_bytes,
            progress=progress,
            clock=clock,
            engine=engine,
            lease_s=lease_s,
            ray_address=ray_address,
        )
        head_number(self._context.storage)  # does not read the snapshot: with a damaged head, older ones still open
        self._context.settings()

    @property
    def _engine(self) -> Engine:
        """Runs the tasks of commands, within the memory limit."""
        return self._context.engine

    @property
    def path(self) -> str:
        """The path of the database."""
        return self._context.storage.url

    def view(self, as_of: int | str | None = None) -> View:
        """The newest snapshot, or an older one, to read from in Python.

        Args:
            as_of: number of the snapshot, or the name of a pin. It means the same in every method.
        """
        return self._context.view(as_of)

    @contextmanager
    def _planning(self, dry_run: bool) -> Iterator[Context]:
        """The context of a command. On a read-only file system, the work of a dry run goes to a temporary folder."""
        storage = self._context.storage
        if not (dry_run and isinstance(storage, LocalStorage) and is_read_only(storage)):
            yield self._context
            return
        with TemporaryDirectory(prefix="retrodb-dry-run-") as folder:
            yield replace(self._context, storage=ScratchStorage.create(Path(folder), storage))

    def _check_space(self, space: str | None, as_of: int | str | None = None) -> None:
        """Raises UsageError for a space that does not exist, with the names of those that do."""
        names = self.view(as_of).snapshot.names(SpaceEntry)
        if space is not None and names and space not in names:
            near = get_close_matches(space, names, n=1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"there is no space '{space}'", remedy=f"There are: {', '.join(names)}.{guess}")

    def _lock(self, keys: ConflictKeys, command: str) -> AbstractContextManager[None]:
        return advisory_lock(self._context.storage, keys.lock, command)


def make_context(
    path: str | Path | Storage,
    *,
    workers: int | None = 1,
    memory_bytes: int | None = None,
    progress: bool = False,
    clock: str | None = None,
    engine: str = "local",
    lease_s: float | None = None,
    ray_address: str | None = None,
) -> Context:
    """The context of a path, with or without a database. Arguments are those of `DatabaseBase`."""
    if memory_bytes is not None and memory_bytes <= 0:
        raise UsageError(f"the memory limit must be positive, and is {memory_bytes:,} bytes")
    for name, value in thread_environment().items():  # torch reads them when it is first imported; workers inherit them
        os.environ.setdefault(name, value)
    raise_limit_of_open_files()
    storage = storage_at(path)
    limit_bytes = memory_bytes or default_memory()
    return Context(
        storage,
        _engine_of(engine, workers, limit_bytes, DEFAULT_LEASE_S if lease_s is None else lease_s, ray_address),
        make_progress(progress),
        clock,
    )


def _engine_of(name: str, workers: int | None, memory_bytes: int, lease_s: float, ray_address: str | None) -> Engine:
    if name == "local":
        return LocalEngine(workers or available_cpus(), memory_bytes)
    if name == "ray":
        from retrodb.engine.ray_engine import RayEngine

        return RayEngine(memory_bytes, ray_address)
    if name != "workers":
        raise UsageError(f"there is no engine '{name}'", remedy="Use 'local', 'workers' or 'ray'.")
    if not 0 < lease_s < float("inf"):
        raise UsageError(
            f"a lease of {lease_s} s", remedy="Give the seconds after which a silent worker counts as lost."
        )
    from retrodb.engine.worker_engine import WorkerEngine

    return WorkerEngine(memory_bytes, lease_s)


def storage_at(path: str | Path | Storage) -> Storage:
    """The storage at a path, with or without a database.

    Raises:
        UsageError: the path is empty.
        NotADatabaseError: the path leads to a file, or through one.
    """
    if not isinstance(path, str | Path):
        return path
    if not str(path).strip() or (isinstance(path, Path) and not path.parts):
        raise UsageError("the path of the database is empty", remedy="Write '.' for the current directory.")
    if isinstance(path, Path) and is_object_url(str(path).replace(":/", "://", 1)):
        remedy = "Give the URL as a text: a Path has only one '/' after the scheme."
        raise UsageError("this is the URL of an object store as a Path", where=str(path), remedy=remedy)
    storage = open_storage(str(path))
    if isinstance(storage, LocalStorage):
        existing = next((place for place in (storage.root, *storage.root.parents) if os.path.lexists(place)), None)
        if existing is not None and not existing.is_dir():
            what = "is a file, and not the directory of a database"
            raise NotADatabaseError(f"this {what}", where=str(existing), remedy="Check the path.")
    return storage


@contextmanager
def made_directory(storage: Storage) -> Iterator[None]:
    """The directory of a new database. It is removed again if an error ends the block before anything is in it.

    Raises:
        UsageError: it cannot be made.
    """
    if not isinstance(storage, LocalStorage) or storage.root.exists():
        yield
        return
    missing = [place for place in (storage.root, *storage.root.parents) if not place.exists()]
    try:
        storage.root.mkdir(parents=True)
    except OSError as error:
        remedy = "Choose a directory that you may write to."
        what = f"no directory can be made here ({error.strerror or error})"
        raise UsageError(what, where=str(storage.root), remedy=remedy) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for place in missing:
                place.rmdir()
        raise


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
