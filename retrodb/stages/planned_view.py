"""The snapshot that a command planned on, as its tasks open it: a payload names the snapshot, and no file of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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


@lru_cache(maxsize=1)
def planned_view(storage: Storage, snapshot: PlannedSnapshot) -> View:
    """The planned snapshot, opened once per process."""
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    return View(storage, settings, read_snapshot(storage, snapshot.number))
