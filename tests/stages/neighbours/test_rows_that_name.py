"""The rows that name some chunks are those that a scan of all rows finds, and a repair gives the same table either way."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents
from marked import mark

import retrodb
from retrodb.database import Database
from retrodb.errors import MissingFileError
from retrodb.format.arrays import Int64Array
from retrodb.format.parquet import read_table
from retrodb.format.records import ChunkRange
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.view import naming
from retrodb.view.naming import NamedPairs, named_chunks, naming_path, rows_that_name
from retrodb.view.neighbour_table import NeighbourTable

from .test_repair_neighbours import fold, up_to_date

Make = Callable[..., Database]
TABLES = ("self", "exact", "mine")


def scanned(table: NeighbourTable, ids: Int64Array, first: int, count: int) -> Int64Array:
    """The rows of a range that name a chunk, by reading all of them."""
    rows = table.all_rows_in(first, count)
    return rows[np.isin(table.stored(rows)[0], ids).any(axis=1)]


def assert_found(database: Database, chosen: list[int]) -> None:
    """All lookups give what a scan gives, and `named_chunks` gives no chunk too few."""
    view = database.view()
    end = view.snapshot.next_chunk
    dead = np.flatnonzero(~view.chunks.is_live(np.arange(end)))
    for name in TABLES:
        table = NeighbourTable(view, name)
        spans = [*table.spans(), ChunkRange(5, 20)]
        for ids in (dead, np.unique([number * 7 % end for number in chosen]), np.arange(end), dead[:0]):
            for span in spans:
                np.testing.assert_array_equal(table.rows_that_name(ids, *span), scanned(table, ids, *span))
        named = [np.empty(0, np.int64)]
        named += [ids for span in spans for ids in table.named_chunks(*span, lambda first, last: True)]
        stored = np.unique(table.stored(table.all_rows())[0])
        assert not len(np.setdiff1d(stored[stored >= 0], np.concatenate(named)))


def contents(database: Database) -> list[tuple[str, str, str]]:
    files = database.view().manifest.all_files()
    return [(file.kind, file.path, file.digest.sha256.hex()) for file in files]


def repair_both_ways(root: Path) -> None:
    """Repair a database with all rows read, and a copy of it without: files and results are the same."""
    copy = Path(shutil.copytree(root, root.with_name("copy")))
    clock = "2027-01-01T00:00:00.000000+00:00"
    results = []
    with pytest.MonkeyPatch.context() as patch:
        results.append(up_to_date(retrodb.open(copy, clock=clock)).repair_neighbours())
        patch.setattr(NeighbourTable, "rows_that_name", scanned)
        results.append(up_to_date(retrodb.open(root, clock=clock)).repair_neighbours())
    assert results[0] == results[1]
    assert contents(retrodb.open(copy)) == contents(retrodb.open(root))
    shutil.rmtree(copy)


STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["delete", "undelete"]), st.lists(st.integers(0, 90), min_size=1, max_size=25)),
    st.tuples(st.sampled_from(["near-duplicates", "edit", "repair", "repair", "fold"]), st.just([3])),
)


@settings(max_examples=5, deadline=None)
@given(history=st.lists(STEPS, min_size=2, max_size=6), group_pairs=st.sampled_from([3, 50, 1 << 15]))
def test_lookups_and_repairs_equal_those_of_a_scan(
    made_tokenizer: Path, history: list[tuple[str, list[int]]], group_pairs: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr("retrodb.view.naming.GROUP_PAIRS", group_pairs)
        patch.setattr("retrodb.stages.neighbours.table_rows.TASK_ROWS", 64)
        database = retrodb.create(folder / "db", tokenizer=str(made_tokenizer), encoder="hashing:16")
        documents = {f"d{number}": made_text(number % 40, 60) for number in range(60)}
        database.ingest([write_documents(folder / "0.jsonl", documents)], source="s")
        database.add_queries("mine", [write_documents(folder / "q.jsonl", {"x": made_text(3, 900)})])
        database.embed()
        database.index(factory="IVF4,SQ8")
        for table, options in {"self": {}, "exact": {"exact": True}, "mine": {"queries": "mine"}}.items():
            database.neighbours(table=table, k=2, spare_neighbours=2, recall=0.6, **options)
        for number, (step, values) in enumerate([*history, ("repair", [3])], 1):
            end = database.view().snapshot.next_chunk
            if step == "add":
                added = {f"d{value + 55}": made_text(f"{value}-{number}", 60) for value in values}
                database.ingest([write_documents(folder / f"{number}.jsonl", added)], source="s")
            elif step == "repair":
                repair_both_ways(folder / "db")
            elif step == "fold":
                for table in TABLES:
                    fold(database, table)
            elif step == "near-duplicates":
                database.near_duplicates()
            elif step == "edit":
                row = int(database.neighbour_table("self").rows()[0])
                database.edit_neighbours(row, ban=(row + 17 + number) % end, table="self")
            else:
                mark(database, sorted({value * 3 % end for value in values}), active=step == "delete")
            assert_found(database, values)
        damaged = {damage.path for damage in database.check(read_data=True).damaged}
        assert damaged <= {"manifests"}, "`mark` counts nothing"


@pytest.mark.parametrize("first", [0, 7, (1 << 43) - 50, (1 << 62) - 50])
@pytest.mark.parametrize("group_pairs", [4, 1 << 15])
def test_pairs_are_sorted_whatever_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, group_pairs: int
) -> None:
    monkeypatch.setattr(naming, "GROUP_PAIRS", group_pairs)
    random, span, path = np.random.default_rng(0), ChunkRange(11, 1 << 20), tmp_path / "file.parquet"
    rows = np.array([11, 12, 500, (1 << 20) + 10])
    ids = np.stack([first + random.permutation(99)[:5] for _ in rows])
    ids[1, 3:], ids[2] = -1, -1
    pairs = NamedPairs(span, ids.size)
    pairs.add(rows[:2], ids[:2])
    pairs.add(rows[2:], ids[2:])
    pairs.write(path)
    expected = sorted((chunk, row) for row, own in zip(rows.tolist(), ids.tolist(), strict=True) for chunk in own)
    expected = [pair for pair in expected if pair[0] >= 0]
    assert [tuple(pair.values()) for pair in read_table(path).to_pylist()] == expected
    for wanted in (ids[0, 0], ids[3, 4], first + 99):
        assert rows_that_name(path, span, np.array([wanted])).tolist() == [
            row for chunk, row in expected if chunk == wanted
        ]
    assert rows_that_name(path, span, np.unique(ids)).tolist() == [11, 12, (1 << 20) + 10]
    assert np.unique(np.concatenate(list(named_chunks(path, lambda least, greatest: True)))).tolist() == sorted(
        {chunk for chunk, _ in expected}
    )
    assert list(named_chunks(path, lambda least, greatest: False)) == []


def test_a_lookup_reads_the_row_groups_that_can_have_the_chunks(
    make_database: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "GROUP_PAIRS", 8)
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(30)}))
    database.neighbours(k=2, spare_neighbours=2, exact=True)
    table = database.neighbour_table()
    [record] = table.files
    monkeypatch.setattr(table, "_content", None)
    read = []
    real = naming.iterate_row_groups_between

    def counted(*args: object) -> object:
        for group in real(*args):  # type: ignore[arg-type]
            read.append(group.num_rows)
            yield group

    monkeypatch.setattr(naming, "iterate_row_groups_between", counted)
    assert len(table.rows_that_name(np.array([7]), *record.span))
    assert 0 < len(read) < record.num_rows * 4 / 8 / 2


def test_a_table_that_lacks_the_files_is_reported_and_computed_again(make_database: Make) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(12)}))
    database.neighbours(exact=True)
    view = database.view()
    [record] = view.manifest.files("naming", "self")
    transaction = Transaction.open(database._context, view, "drop", conflict_keys.neighbours("self"), plan={"a": 1})
    transaction.drop_files([record])
    transaction.commit()
    mark(database, [0])
    [of_table] = database.view().manifest.files("neighbours", "self")
    assert naming_path(of_table.path) == record.path
    assert [damage.path for damage in database.check().damaged] == [of_table.path]
    with pytest.raises(MissingFileError, match="retrodb neighbours --table self"):
        database.repair_neighbours()
    mark(database, [0], active=False)
    database.neighbours(exact=True)
    assert database.check(read_data=True).damaged == ()
    mark(database, [0])
    assert database.repair_neighbours()


def test_a_check_finds_pairs_that_are_not_those_of_the_table(
    make_database: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(12)}))
    real = NamedPairs.add
    with monkeypatch.context() as patch:
        patch.setattr(NamedPairs, "add", lambda pairs, rows, ids: real(pairs, rows[1:], ids[1:]))
        database.neighbours(exact=True)
    [damage] = database.check(read_data=True).damaged
    assert damage.path == database.view().manifest.files("naming", "self")[0].path
    assert "neighbours and rows" in damage.fault
