"""A copy brings no purged document back, and says where the destination may still have some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_documents import made_text

import retrodb
from retrodb.database import Database
from retrodb.errors import ConflictError

from .test_copy import add, collect, contents

Make = Callable[..., Database]
PURGED = "later"


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Snapshot 1 has the name old and not the document to purge, which snapshot 3 has."""
    database = make_database({f"d{number}": made_text(number, 150) for number in range(4)})
    database.pin(1, name="old")
    assert add(database, tmp_path, PURGED) == 3
    return database


def documents(database: Database, at: int | None = None) -> set[object]:
    return {row[0] for row in database.sql("select doc_id from documents", as_of=at).rows}


@pytest.mark.parametrize("options", [{"snapshot": 3}, {"since": 1}])
def test_a_backup_never_brings_a_purged_document_back(
    options: dict[str, int], database: Database, tmp_path: Path
) -> None:
    for number in (1, 3):
        database.copy_to(tmp_path / "backup", snapshot=number)
    database.purge([PURGED])
    database.copy_to(tmp_path / "backup")
    backup = retrodb.open(tmp_path / "backup")
    assert PURGED in documents(backup, 3)
    before = contents(tmp_path / "backup")
    with pytest.raises(ConflictError, match=r"snapshot 3 has documents that were purged later\. A copy would bring"):
        backup.copy_to(database.path, **options)  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="purged later"):
        backup.copy_to(tmp_path / "new", snapshot=3)
    assert contents(tmp_path / "backup") == before
    assert not (tmp_path / "new").exists()
    assert backup.copy_to(database.path).num_files == 0
    assert backup.copy_to(tmp_path / "new", snapshot="old").new_snapshots == (1,)
    assert PURGED not in documents(retrodb.open(tmp_path / "new"))


def test_every_copy_says_it_until_the_purged_documents_are_gone(database: Database, tmp_path: Path) -> None:
    for number in (1, 3):
        database.copy_to(tmp_path / "copy", snapshot=number)
    database.purge([PURGED])
    for _ in range(3):
        assert database.copy_to(tmp_path / "copy").purges
    collect(tmp_path / "copy")
    result = database.copy_to(tmp_path / "copy")
    assert (result.purges, result.num_other_files > 0) == ((), True), "snapshot 1 never had the document"
    assert retrodb.open(tmp_path / "copy").view("old").snapshot.number == 1


def test_files_that_a_killed_first_copy_left_are_reported(database: Database, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    database.copy_to(place)
    for path in (*(place / "snapshots").iterdir(), *(place / "heads").iterdir()):
        path.unlink()
    database.purge([PURGED])
    for _ in range(2):
        assert database.copy_to(place).purges
    collect(place)
    result = database.copy_to(place)
    assert (result.purges, result.num_other_files) == ((), 0)
