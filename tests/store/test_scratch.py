"""The storage of dry runs: other processes open it by its URL, and write nothing to do so."""

from __future__ import annotations

from pathlib import Path

from retrodb.store.open_storage import open_storage
from retrodb.store.scratch import ScratchStorage
from retrodb.store.storage import LocalStorage


def test_another_process_opens_it_without_writing(tmp_path: Path) -> None:
    """A file that is written again is empty for a moment, in which a second process would read another database."""
    database = LocalStorage(tmp_path / "db")
    database.write("documents/a", b"stored")
    (tmp_path / "scratch").mkdir()
    scratch = ScratchStorage.create(tmp_path / "scratch", database)
    scratch.write("runs/a", b"made")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").rglob("*")}
    opened = open_storage(scratch.url)
    assert opened == scratch
    assert (opened.read("documents/a"), opened.read("runs/a")) == (b"stored", b"made")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").rglob("*")} == before
    assert not database.exists("runs/a")
