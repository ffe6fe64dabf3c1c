"""Keys with ranges of chunk ids: two merges of index parts conflict only where their ranges overlap."""

from __future__ import annotations

import pytest

from retrodb.format.records import ChunkRange
from retrodb.store.conflict_keys import (
    ConflictKeys,
    compact,
    conflicts,
    drop_space,
    edit,
    embed,
    index,
    ingest,
    merge,
    neighbours,
    retrain,
)

BASE = [ChunkRange(0, 100), ChunkRange(1 << 33, 50)]


def clash(later: ConflictKeys, earlier: ConflictKeys) -> frozenset[str]:
    return conflicts(later.reads, earlier.writes)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([ChunkRange(0, 100)], True),
        ([ChunkRange(99, 1)], True),
        ([ChunkRange(100, 50)], False),
        ([ChunkRange(10, 20), ChunkRange(200, 20)], True),
        ([ChunkRange((1 << 33) + 49, 5)], True),
        ([ChunkRange((1 << 33) + 50, 5)], False),
        ([], False),
    ],
)
def test_merges_conflict_where_their_ranges_overlap(ranges: list[ChunkRange], expected: bool) -> None:
    assert bool(clash(merge("default", ranges), merge("default", BASE))) == expected
    assert bool(clash(merge("default", BASE), merge("default", ranges))) == expected


def test_a_conflict_names_the_key_that_was_read() -> None:
    assert clash(merge("a", [ChunkRange(90, 30)]), merge("a", BASE)) == {"parts/a@90-120"}


def test_merges_of_different_spaces_never_conflict() -> None:
    assert not clash(merge("default", BASE), merge("second", BASE))
    assert not clash(merge("default", BASE), merge("default@0-100", BASE))


def test_a_new_codebook_conflicts_with_new_parts_and_merges_of_its_space_only() -> None:
    assert clash(retrain("default"), ConflictKeys(frozenset(), frozenset({"drift/default"})))
    assert clash(retrain("default"), merge("default", BASE))
    assert not clash(retrain("second"), merge("default", BASE))
    assert not clash(retrain("default"), merge("default", []))


@pytest.mark.parametrize(
    "earlier",
    [
        embed("second"),
        index("second"),
        retrain("second"),
        merge("second", BASE),
        neighbours("new", "second"),
        compact(),
    ],
)
def test_dropping_a_space_plans_again_after_a_commit_that_gave_it_files(earlier: ConflictKeys) -> None:
    assert clash(drop_space("second"), earlier)
    assert earlier == compact() or not clash(drop_space("third"), earlier)


def test_dropping_a_table_and_editing_it_plan_again_after_each_other() -> None:
    assert clash(drop_space("second", ["t"]), edit("t"))
    assert clash(edit("t"), drop_space("second", ["t"]))
    assert not clash(edit("other"), drop_space("second", ["t"]))


def test_dropping_a_space_goes_with_new_documents() -> None:
    assert not clash(drop_space("second"), ingest("a"))
    assert not clash(embed("second"), embed("second"))
