"""While a copy runs, the source keeps its snapshot, whatever became of an earlier copy to the same place."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from made_documents import made_text

from retrodb.database import Database
from retrodb.maintain.copy import keep
from retrodb.maintain.copy.keep import kept_snapshots
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import LocalStorage

from .test_copy import collect

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    """Snapshots 0 and 1, and 2 that has another state."""
    database = make_database({f"d{number}": made_text(number, 150) for number in range(4)})
    database.filter(doc_ids=["d1"])
    return database


def die(source: LocalStorage, destination: str) -> None:
    """Begin a copy that is killed."""
    with suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep, "forget_run", lambda run: None)
        patch.setattr(keep, "run_is_open", lambda storage, run: False)
        with kept_snapshots(source, [1], open_storage(destination)):
            raise KeyboardInterrupt


def test_a_copy_keeps_its_snapshot_although_a_killed_one_was_cancelled(database: Database, tmp_path: Path) -> None:
    source, place = LocalStorage(database.path), str(tmp_path / "copy")
    die(source, place)
    [run] = database.runs()
    database.cancel_run(run.run)
    with kept_snapshots(source, [1], open_storage(place)):
        assert [run.state for run in database.runs()] == ["open"]
        assert 1 not in collect(database.path)
    assert database.runs() == []
    assert 1 in collect(database.path)


def test_a_place_that_is_written_in_another_way_is_the_same(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LocalStorage(database.path)
    monkeypatch.chdir(tmp_path)
    os.symlink(tmp_path, tmp_path / "link")
    for spelling in ("copy", "./copy/", "link/copy", f"file://{tmp_path}/copy"):
        die(source, spelling)
    assert len(database.runs()) == 1
    with kept_snapshots(source, [1], open_storage(str(tmp_path / "copy"))):
        pass
    assert database.runs() == []


def test_a_copy_of_another_machine_to_its_own_directory_does_not_end_this_one(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = LocalStorage(database.path), LocalStorage(tmp_path / "copy")
    with kept_snapshots(source, [1], destination):
        monkeypatch.setattr(keep, "this_machine", lambda: "another")
        with kept_snapshots(source, [1], destination):
            assert len(database.runs()) == 2
        monkeypatch.undo()
        assert 1 not in collect(database.path)
    assert database.runs() == []
