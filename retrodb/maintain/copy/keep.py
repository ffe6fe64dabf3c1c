"""Keeping snapshots of the source while they are copied: as garbage collection keeps what open runs were planned on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from retrodb.engine.run import Run, StoredPlan, forget_run, run_is_open
from retrodb.errors import RetroDBError
from retrodb.format.json_codec import JsonObject, to_json
from retrodb.format.kinds import path_of
from retrodb.store.digest import identity
from retrodb.store.storage import Storage

COMMAND = "copy"


@contextmanager
def kept_snapshots(source: Storage, numbers: Sequence[int], destination: str) -> Iterator[None]:
    """While the block runs, no snapshot of these numbers expires: each has an open run.

    Nothing is kept where nothing can be written. The runs that a killed copy to the same place leaves are ended by the next one.
    """
    try:
        with suppress(RetroDBError):  # read-only
            for index, number in enumerate(numbers):
                _open(source, destination, index, number)
        yield
    finally:
        with suppress(RetroDBError):
            index = 0
            while run_is_open(source, _run(source, destination, index).id):
                forget_run(_run(source, destination, index))
                index += 1


def _open(source: Storage, destination: str, index: int, number: int) -> None:
    run = _run(source, destination, index)
    plan = StoredPlan(run.clock, COMMAND, _plan(destination, index), number)
    source.write(path_of("runs", run=run.id, file="plan.json"), to_json(plan))


def _run(source: Storage, destination: str, index: int) -> Run:
    clock = datetime.now(UTC).isoformat(timespec="microseconds")
    return Run(source, identity(COMMAND, _plan(destination, index)), COMMAND, clock)


def _plan(destination: str, index: int) -> JsonObject:
    """What the run's id depends on. The snapshot is not part of it, so that the next copy finds the run."""
    return {"destination": destination, "index": index}
