"""The transaction matrix: as the specification prints it, as the conflict keys give it, and as commits really behave."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import retrodb.format
from retrodb.errors import ConflictError
from retrodb.format.snapshot import Snapshot
from retrodb.store.commit import commit
from retrodb.store.conflict_keys import conflicts
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage

from .actions import BETWEEN, LATER

README = Path(retrodb.format.__file__).with_name("README.md")
PAIRS = [(between, later) for between in BETWEEN for later in LATER]


def printed_matrix() -> dict[tuple[str, str], str]:
    """(in between, then) -> what the table of the specification says."""
    [table] = re.findall(r"^\| in between \\ then .*?(?=^\n)", README.read_text(), re.MULTILINE | re.DOTALL)
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().split("\n"))
    return {(row[0], later): said for row in rows for later, said in zip(header[1:], row[1:], strict=True)}


def test_specification_lists_every_pair() -> None:
    assert set(printed_matrix()) == set(PAIRS)


@pytest.mark.parametrize(("between", "later"), PAIRS)
def test_marks_give_what_the_specification_says(between: str, later: str) -> None:
    clash = conflicts(LATER[later]("y").conflict_keys.reads, BETWEEN[between]("x").writes)
    assert printed_matrix()[between, later] == ("plans again" if clash else "rebases")


@pytest.mark.parametrize(("between", "later"), PAIRS)
def test_commits_behave_as_the_specification_says(
    between: str, later: str, storage: LocalStorage, base: Snapshot
) -> None:
    first = commit(storage, base, BETWEEN[between]("x"))
    change = LATER[later]("y")
    if printed_matrix()[between, later] == "plans again":
        with pytest.raises(ConflictError, match=f"snapshot {first.number}") as raised:
            commit(storage, base, change)
        assert "Run the same command again" in str(raised.value)
        assert read_head(storage) == first
        commit(storage, first, change)  # planned again, it goes through
        return
    second = commit(storage, base, change)
    assert (second.number, second.parent) == (first.number + 1, first.number)
    assert read_head(storage) == second
    assert second.entries == {**first.entries, **change.entries}


@pytest.mark.parametrize(("between", "later"), [p for p in PAIRS if p[1] != "compact" and p[0] != "restore"])
def test_rebasing_keeps_both_changes(between: str, later: str, storage: LocalStorage, base: Snapshot) -> None:
    first = commit(storage, base, BETWEEN[between]("x"))
    change = LATER[later]("y")
    try:
        second = commit(storage, base, change)
    except ConflictError:
        return
    dropped = {record.path for record in change.drops}
    paths = set(load_manifest(storage, second).paths())
    assert paths >= set(load_manifest(storage, first).paths()) - dropped
    assert paths >= {record.path for record in change.files}


@pytest.mark.parametrize("later", ["embed", "index", "tag"])
def test_coverage_of_ids_that_a_restore_took_away_is_left_out(
    later: str, storage: LocalStorage, base: Snapshot
) -> None:
    commit(storage, base, BETWEEN["restore"]("x"))
    change = LATER[later]("y")
    manifest = load_manifest(storage, commit(storage, base, change))
    left = [record.path for record in change.files if record.path in manifest.paths()]
    assert left == [record.path for record in change.files if record.path.endswith("-one")]


@pytest.mark.parametrize("later", ["embed", "index", "tag", "dedup"])
def test_coverage_of_ids_that_a_compaction_moved_into_another_shard_stays(
    later: str, storage: LocalStorage, base: Snapshot
) -> None:
    commit(storage, base, BETWEEN["compact"]("x"))
    change = LATER[later]("y")
    manifest = load_manifest(storage, commit(storage, base, change))
    assert {record.path for record in change.files} <= set(manifest.paths())
    assert manifest.screened_ranges("t@1") == ([(0, 200)] if later == "dedup" else [])
