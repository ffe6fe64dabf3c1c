"""The snapshot that a command planned on, as its tasks open it: a payload names the snapshot, and no file of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakValueDictionary

from retrodb.format.settings import parse_settings
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import Storage
from retrodb.view.view import View


@dataclass(frozen=True)
class PlannedSnapshot:
    """The snapshot that a task reads. The transaction distinguishes a database that was re-created at the same path."""

    number: int
    transaction: str

    @staticmethod
    def of(view: View) -> PlannedSnapshot:
        """The snapshot of a view."""
        return PlannedSnapshot(view.snapshot.number, view.snapshot.transaction)


_OF_THIS_PROCESS: WeakValueDictionary[tuple[Storage, PlannedSnapshot], View] = WeakValueDictionary()


def share_view(view: View) -> View:
    """Let the tasks that this process runs use a view of a stored snapshot, as long as somebody else does."""
    _OF_THIS_PROCESS[view.storage, PlannedSnapshot.of(view)] = view
    return view


def planned_view(storage: Storage, snapshot: PlannedSnapshot) -> View:
    """The planned snapshot: the view of this process's command, or one that is opened once per process."""
    view = _OF_THIS_PROCESS.get((storage, snapshot))
    return open_planned(storage, snapshot) if view is None else view


@lru_cache(maxsize=1)
def open_planned(storage: Storage, snapshot: PlannedSnapshot) -> View:
    """The planned snapshot, opened for tasks alone."""
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    return View(storage, settings, read_snapshot(storage, snapshot.number))
