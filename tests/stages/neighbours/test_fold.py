"""Whether a neighbour table has to be folded is found in tasks, and is what looking at all of its rows says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents
from made_up import CLOCK
from marked import mark

from retrodb.database import Database
from retrodb.engine.local import LocalEngine
from retrodb.format.entries import TableEntry
from retrodb.format.json_codec import from_plain, to_plain_object
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.neighbours import deleted_in_table
from retrodb.stages.neighbours.deleted_in_table import sides_of
from retrodb.stages.neighbours.fold import FoldPlan, plan_fold
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.view.compared_sets import DATABASE, ComparedSets
from retrodb.view.neighbour_table import NeighbourTable
from retrodb.view.view import View

from .test_repair_neighbours import fold, up_to_date

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A table over several ranges, each a task."""
    monkeypatch.setattr("retrodb.stages.neighbours.table_rows.TASK_ROWS", 16)
    monkeypatch.setattr("retrodb.view.neighbour_table._SPAN_ROWS", 16)
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(30)}))
    database.neighbours(k=2, spare_neighbours=3, exact=True)
    assert len(database.neighbour_table().files) > 2
    return database


def lost_in_all(view: View) -> int | None:
    """The chunks that a fold finds lost, from all rows of the table; None where it has nothing to fold."""
    table, compared = NeighbourTable(view), ComparedSets.read(view, "self")
    lost = {
        side: sum(len(compared.rows(side, *span) - chunks.live_rows(*span)) for span in compared.ranges(side))
        for side, chunks in sides_of(table).items()
    }
    edited = np.array([edit.chunk for edit in table.edits.all], dtype=np.int64)
    is_left = table.entry.may_name_deleted or not view.chunks.is_live(edited).all()
    has_patches = len(table.files) > -(-view.chunks.end // 16)
    return lost[DATABASE] if has_patches or any(lost.values()) or is_left else None


def names_deleted_in_all(view: View, record: FileRecord) -> bool:
    """Whether a file of the table has a deleted row, or one that names a deleted chunk."""
    content = read_table(view.files.open(record))
    ids = np.concatenate([content["row"].to_numpy(), content["neighbours"].combine_chunks().flatten().to_numpy()])
    return not view.chunks.is_live(np.unique(ids[ids >= 0])).all()


def planned(database: Database) -> FoldPlan | None:
    """The plan of a fold, the same with one process and with two."""
    context, view = database._context, database.view()
    one, two = (plan_fold(with_processes(context, number), view, "self") for number in (1, 2))
    assert one == two
    lost = lost_in_all(view)
    assert (one is None) == (lost is None)
    assert one is None or one.entry.lost_chunks == NeighbourTable(view).entry.lost_chunks + (lost or 0)
    return one


def with_processes(context: Context, number: int) -> Context:
    return replace(context, engine=LocalEngine(number))


@pytest.fixture(autouse=True)
def all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small work uses all processes too."""
    monkeypatch.setattr("retrodb.stages.context._CHUNKS_OF_ONE_PROCESS", 0)


def unnamed_chunk(database: Database) -> int:
    """A chunk that no row of the table names and that is no row itself: the table was not compared with it."""
    return database.view().snapshot.next_chunk - 1


def add_document(database: Database, folder: Path, text: str) -> None:
    database.ingest([write_documents(folder / "more.jsonl", {"new": text})], source="more")
    up_to_date(database)


def test_a_table_without_deletions_is_not_folded_and_its_rows_are_not_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted_in_table, "run_planning_tasks", None)
    assert planned(database) is None
    database.edit_neighbours(0, ban=int(database.neighbour_table().stored(np.array([0]))[0][0, 0]))
    assert planned(database) is None, "edits alone are nothing to fold"


def test_a_named_chunk_that_is_deleted(database: Database) -> None:
    mark(database, [int(database.neighbour_table().stored(np.array([0]))[0][0, 0])])
    fold_plan = planned(database)
    assert fold_plan is not None
    assert fold_plan.entry.lost_chunks == 1


def test_files_that_name_nothing_deleted_stay(database: Database) -> None:
    rows = np.arange(database.view().chunks.end)
    neighbours = database.neighbour_table().stored(rows)[0]
    counts = np.bincount(neighbours[neighbours >= 0], minlength=len(rows))
    rare = int(np.flatnonzero(counts == counts[counts > 0].min())[0])
    mark(database, [rare])
    before = database.neighbour_table().files
    named = {record.path for record in before if names_deleted_in_all(database.view(), record)}
    assert fold(database)
    after = {record.path for record in database.neighbour_table().files}
    assert {record.path for record in before} - after == named
    assert len(named) < len(before)


def test_a_deleted_chunk_that_was_not_compared(database: Database, tmp_path: Path) -> None:
    add_document(database, tmp_path, made_text("new", 100))
    mark(database, [unnamed_chunk(database)])
    assert planned(database) is None


def test_a_deleted_neighbour_that_a_repair_left_in_a_row(database: Database) -> None:
    table = database.neighbour_table()
    rows = table.rows()
    ids = table.stored(rows)[0]
    mark(database, [int(ids[0, 0])])
    database.repair_neighbours()
    repaired = database.neighbour_table()
    assert len(repaired.files) == len(table.files), "no patches"
    fold_plan = planned(database)
    assert fold_plan is not None
    assert fold_plan.entry.lost_chunks == 0
    assert fold(database)
    assert planned(database) is None


def test_a_table_that_does_not_say_whether_it_names_something_deleted_may(database: Database) -> None:
    mark(database, [int(database.neighbour_table().stored(np.array([0]))[0][0, 0])])
    database.repair_neighbours()
    view = database.view()
    plain = to_plain_object(view.snapshot.existing(TableEntry, "self"))
    assert plain.pop("may_name_deleted", True)
    entry = from_plain(TableEntry, plain, where="an entry")
    keys, entries = conflict_keys.neighbours("self"), {"table/self": entry}
    commit(view.storage, view.snapshot, Change("silent", "neighbours", {}, CLOCK, keys, entries=entries))
    assert planned(database) is not None
    assert fold(database)
    assert planned(database) is None


def test_patches(database: Database, tmp_path: Path) -> None:
    add_document(database, tmp_path, made_text(3, 100))
    database.repair_neighbours()
    fold_plan = planned(database)
    assert fold_plan is not None
    assert fold_plan.entry.lost_chunks == 0
    mark(database, [unnamed_chunk(database), 0])
    assert planned(database) is not None


def test_an_edit_that_names_a_deleted_chunk(database: Database, tmp_path: Path) -> None:
    add_document(database, tmp_path, made_text("new", 100))
    chunk = unnamed_chunk(database) - 1
    database.edit_neighbours(0, ban=chunk)
    assert planned(database) is None
    mark(database, [chunk])
    fold_plan = planned(database)
    assert fold_plan is not None
    assert fold_plan.entry.lost_chunks == 0
