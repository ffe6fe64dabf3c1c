"""Keeping snapshots of the source while they are copied: as garbage collection keeps what open runs were planned on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from retrodb.engine.attempts import cancelled_path
from retrodb.engine.run import Run, StoredPlan, forget_run, run_is_open
from retrodb.errors import RetroDBError
from retrodb.format.json_codec import JsonObject, to_json
from retrodb.format.kinds import path_of
from retrodb.store.digest import identity
from retrodb.store.object_urls import is_object_url
from retrodb.store.storage import LocalStorage, Storage
from retrodb.store.temporary import this_machine

COMMAND = "copy"


@contextmanager
def kept_snapshots(source: Storage, numbers: Sequence[int], destination: Storage) -> Iterator[None]:
    """While the block runs, no snapshot of these numbers expires: each has an open run.

    Nothing is kept where nothing can be written. The runs that a killed copy to the same place leaves are ended by the next one.
    """
    place = place_of(destination)
    try:
        with suppress(RetroDBError):  # read-only
            for index, number in enumerate(numbers):
                _open(source, place, index, number)
        yield
    finally:
        with suppress(RetroDBError):
            index = 0
            while run_is_open(source, _run(source, place, index).id):
                forget_run(_run(source, place, index))
                index += 1


def place_of(storage: Storage) -> str:
    """The one name of a place that can be written in several ways."""
    return str(Path(storage.root).resolve()) if isinstance(storage, LocalStorage) else storage.url


def _open(source: Storage, place: str, index: int, number: int) -> None:
    run = _run(source, place, index)
    plan = StoredPlan(run.clock, COMMAND, _plan(place, index), number)
    source.write(path_of("runs", run=run.id, file="plan.json"), to_json(plan))
    source.delete(cancelled_path(run.id))  # a purge has cancelled an earlier copy, which was killed


def _run(source: Storage, place: str, index: int) -> Run:
    clock = datetime.now(UTC).isoformat(timespec="microseconds")
    return Run(source, identity(COMMAND, _plan(place, index)), COMMAND, clock)


def _plan(place: str, index: int) -> JsonObject:
    """What the run's id depends on. The snapshot is not part of it, so that the next copy finds the run.

    Many machines may copy a database to directories of the same path, each to its own.
    """
    return {"destination": place, "machine": "" if is_object_url(place) else this_machine(), "index": index}
