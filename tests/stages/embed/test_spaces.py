"""Several spaces: adding, dropping and changing the default do not change the other spaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import ConflictError, MissingStep, UsageError
from retrodb.store.commit import commit

Make = Callable[..., Database]


@pytest.fixture
def two_spaces(make_database: Make) -> Database:
    database = make_database({"a": made_text(1, 300), "b": made_text(2, 200)})
    for space, encoder in (("default", None), ("wide", "hashing:64")):
        database.embed(space=space, encoder=encoder)
        database.index(space=space)
        database.neighbours(space=None if space == "default" else space)
    return database


def digests(database: Database) -> dict[str, bytes]:
    return {
        r.path: r.digest.sha256
        for kind in ("vectors", "parts", "neighbours", "codebooks", "chunks")
        for r in database.view().manifest.files(kind)
    }


def test_dropping_a_space_changes_no_byte_of_the_others(two_spaces: Database) -> None:
    before = digests(two_spaces)
    result = two_spaces.drop_space("wide", with_tables=True)
    assert result.dropped_tables == ["self-wide"]
    left = digests(two_spaces)
    assert left == {path: digest for path, digest in before.items() if "wide" not in path}
    assert len(before) - len(left) <= result.num_dropped_files
    assert [space.space for space in two_spaces.spaces()] == ["default"]
    assert two_spaces.check(read_data=True).damaged == ()
    two_spaces.embed(space="wide", encoder="hashing:16")
    assert [space.dimension for space in two_spaces.spaces()] == [32, 16]


def test_the_default_space_and_spaces_with_tables_are_not_dropped(two_spaces: Database) -> None:
    with pytest.raises(UsageError, match="'default' is the default space"):
        two_spaces.drop_space("default")
    with pytest.raises(UsageError, match=r"tables depend on space 'wide': self-wide. Add --with-tables"):
        two_spaces.drop_space("wide")
    with pytest.raises(UsageError, match="no space 'none'"):
        two_spaces.drop_space("none")
    assert two_spaces.drop_space("wide", with_tables=True, dry_run=True).num_dropped_files > 0
    assert len(two_spaces.spaces()) == 2


def test_a_table_of_a_space_that_was_dropped_meanwhile_is_not_committed(
    two_spaces: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop_first(*arguments: Any) -> Any:
        monkeypatch.undo()  # the drop commits too
        retrodb.open(two_spaces.path).drop_space("wide", with_tables=True)
        return commit(*arguments)

    monkeypatch.setattr("retrodb.stages.transaction.commit", drop_first)
    with pytest.raises(ConflictError):
        two_spaces.neighbours(space="wide", table="late")
    assert [table.table for table in two_spaces.stats().tables] == ["self"]


def test_setting_the_default_space_is_one_commit(two_spaces: Database) -> None:
    before = two_spaces.view().snapshot.number
    result = two_spaces.set_default_space("wide")
    assert result.snapshot == before + 1
    assert two_spaces.search(["ka lo"], k=1)
    assert two_spaces.view().snapshot.default_space == "wide"
    assert two_spaces.view(before).snapshot.default_space == "default"
    assert two_spaces.set_default_space("wide").snapshot == before + 1, "it is the default already"
    two_spaces.drop_space("default", with_tables=True)
    assert [(space.space, space.is_default) for space in two_spaces.spaces()] == [("wide", True)]


def test_only_a_complete_space_can_become_the_default(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"a": made_text(1, 300)})
    database.embed()
    database.embed(space="next", encoder="hashing:64")
    with pytest.raises(MissingStep, match="not indexed"):
        database.set_default_space("next")
    database.index(space="next")
    database.ingest([write_documents(tmp_path / "more.jsonl", {"c": made_text(3, 100)})], source="other")
    with pytest.raises(MissingStep, match="does not have all chunks yet"):
        database.set_default_space("next")
