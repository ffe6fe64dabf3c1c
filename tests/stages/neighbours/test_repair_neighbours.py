"""A repaired table equals a rebuilt one, and only rows that change are written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_documents import made_text, write_documents
from made_up import CLOCK
from marked import mark

import retrodb
from retrodb.database import Database
from retrodb.errors import MissingStep
from retrodb.format.entries import TableEntry
from retrodb.stages.neighbours.fold import plan_fold, run_fold_task
from retrodb.stages.neighbours.repair_task import list_bounds
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit

Make = Callable[..., Database]


def fold(database: Database, table: str = "self") -> bool:
    """Fold a table as compaction does; whether there was something to fold."""
    context, view = database._context, database.view()
    folding = plan_fold(context, view, table)
    if folding is None:
        return False
    before = database.neighbour_table(table)
    rows = before.rows()
    plan = {"snapshot": view.snapshot.number}
    transaction = Transaction.open(context, view, "fold", folding.conflict_keys, plan=plan)
    folding.add_to(transaction, transaction.run_tasks(folding.tasks, run_fold_task))
    transaction.commit()
    after = database.neighbour_table(table)
    np.testing.assert_array_equal(after.rows(), rows)
    for a, b in zip(after.read(rows), before.read(rows), strict=True):
        np.testing.assert_array_equal(a, b)
    stored = after.stored(rows)[0]
    assert after.view.chunks.is_live(stored[stored >= 0]).all()
    assert plan_fold(context, database.view(), table) is None
    return True


def up_to_date(database: Database) -> Database:
    database.embed()
    database.index()
    return database


def assert_equals_rebuild(database: Database, table: str = "self", **options: object) -> None:
    """A table gives what one that is computed now gives, ids and distances."""
    database.neighbours(table="rebuilt", **options)
    ours, fresh = database.neighbour_table(table), database.neighbour_table("rebuilt")
    rows = fresh.rows()
    np.testing.assert_array_equal(ours.rows(), rows)
    for a, b in zip(ours.read(rows), fresh.read(rows), strict=True):
        np.testing.assert_array_equal(a, b)


STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
    st.tuples(st.just("delete"), st.lists(st.integers(0, 60), min_size=1, max_size=25)),
    st.tuples(st.just("undelete"), st.lists(st.integers(0, 60), min_size=1, max_size=25)),
    st.tuples(st.sampled_from(["repair", "fold"]), st.just([])),
)


@settings(max_examples=10, deadline=None)
@given(
    history=st.lists(STEPS, min_size=1, max_size=6),
    k=st.integers(1, 3),
    spare_neighbours=st.sampled_from([0, 1, 4]),
    exclude=st.sampled_from([[], ["document"], ["document", "content"]]),
    most_new=st.sampled_from([0, 1000]),
)
def test_after_any_history_the_first_k_neighbours_equal_a_rebuild(
    made_tokenizer: Path,
    history: list[tuple[str, list[int]]],
    k: int,
    spare_neighbours: int,
    exclude: list[str],
    most_new: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodb.stages.neighbours.repair_state._MOST_NEW", most_new)
        database = retrodb.create(Path(folder) / "db", tokenizer=str(made_tokenizer), encoder="hashing:16")
        options = {"k": k, "spare_neighbours": spare_neighbours, "exclude": exclude, "exact": True}
        texts = [made_text(seed % 6, 60) for seed in range(10)]  # some are equal: their distances tie
        database.ingest(
            [write_documents(Path(folder) / "0.jsonl", dict(zip("abcdefg", texts, strict=False)))], source="s"
        )
        up_to_date(database).neighbours(**options)
        for number, (step, values) in enumerate(history, 1):
            end = database.view().chunks.end
            if step == "add":  # the same ids come again with other texts: documents change
                documents = {
                    "abcdefghijklmn"[v + number % 4]: texts[v] + " " + made_text(v + number, 30) for v in values
                }
                database.ingest([write_documents(Path(folder) / f"{number}.jsonl", documents)], source="s")
            elif step == "repair":
                up_to_date(database).repair_neighbours()
            elif step == "fold":
                fold(database)
            else:
                mark(database, sorted({v % end for v in values}), active=step == "delete")
        [result] = up_to_date(database).repair_neighbours()
        assert_equals_rebuild(database, **options)
        table = database.neighbour_table()
        assert result.num_rows == len(table.rows())
        assert result.num_short == table.num_short()
        [again] = database.repair_neighbours(table="self")
        assert again.snapshot == database.view().snapshot.number, "nothing to do is no commit"
        assert again.num_recomputed == again.num_improved == 0


@settings(max_examples=6, deadline=None)
@given(
    history=st.lists(STEPS, min_size=1, max_size=5),
    k=st.integers(1, 3),
    spare_neighbours=st.sampled_from([0, 2]),
    task_rows=st.sampled_from([64, 1 << 20]),
)
def test_after_any_history_a_table_with_inverted_lists_is_complete(
    made_tokenizer: Path, history: list[tuple[str, list[int]]], k: int, spare_neighbours: int, task_rows: int
) -> None:
    """It has every live row, counts the short ones as a reader does, and a row is short only where the database has no more."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodb.stages.neighbours.table_rows.TASK_ROWS", task_rows)  # a part has rows of several tasks
        database = retrodb.create(Path(folder) / "db", tokenizer=str(made_tokenizer), encoder="hashing:16")
        documents = {f"d{i}": made_text(i % 60, 60) for i in range(170)}
        database.ingest([write_documents(Path(folder) / "0.jsonl", documents)], source="s")
        database.embed()
        assert database.index(factory="IVF4,SQ8").num_lists == 4
        database.neighbours(k=k, spare_neighbours=spare_neighbours, recall=0.6)
        for number, (step, values) in enumerate(history, 1):
            end = database.view().chunks.end
            if step == "add":
                added = {f"d{v + 165}": made_text(f"{v}-{number}", 60) for v in values}
                database.ingest([write_documents(Path(folder) / f"{number}.jsonl", added)], source="s")
            elif step == "repair":
                up_to_date(database).repair_neighbours()
            elif step == "fold":
                fold(database)
            else:
                mark(database, sorted({(v * 3) % end for v in values}), active=step == "delete")
        [result] = up_to_date(database).repair_neighbours()
        table = database.neighbour_table()
        rows, view = table.rows(), database.view()
        live = np.flatnonzero(view.embeddable_mask(0, view.chunks.end))
        np.testing.assert_array_equal(rows, live)
        ids, _ = table.read(rows)
        assert result.num_short == table.num_short() == int((ids[:, -1] < 0).sum())
        documents_of = view.chunks.document_ids(live)
        others = (
            len(live) - np.unique(documents_of, return_counts=True)[1][np.unique(documents_of, return_inverse=True)[1]]
        )
        assert ((ids >= 0).sum(axis=1) == np.minimum(others, k)).all()


def test_only_rows_with_new_neighbours_or_too_few_are_written(make_database: Make, tmp_path: Path) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(60)}))
    database.neighbours(k=2, spare_neighbours=4, exact=True)
    rows = database.neighbour_table().rows()
    database.ingest([write_documents(tmp_path / "more.jsonl", {"new": made_text(3, 100)})], source="more")
    mark(up_to_date(database), [0])
    [planned] = database.repair_neighbours(dry_run=True)
    [result] = database.repair_neighbours()
    assert (planned.num_new_chunks, planned.num_new_rows) == (result.num_new_chunks, result.num_new_rows)
    assert planned.num_lost_chunks == 1
    assert result.num_recomputed == result.num_new_rows > 0
    assert 0 < result.num_improved < len(rows) / 2
    base, *patches = database.neighbour_table().files
    assert base.num_rows == len(rows)
    assert sum(patch.num_rows for patch in patches) == result.num_recomputed + result.num_improved
    assert_equals_rebuild(database, k=2, spare_neighbours=4, exact=True)


def test_spare_neighbours_replace_deleted_ones_before_a_row_is_recomputed(make_database: Make) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(30)}))
    database.neighbours(k=2, spare_neighbours=3, exact=True)
    ids, _ = database.neighbour_table().stored(np.array([0]))
    mark(database, ids[0, :3])
    [result] = database.repair_neighbours()
    assert result.num_recomputed == 0
    assert len(database.neighbour_table().files) == 1
    mark(database, ids[0, 3:4])
    assert database.neighbour_table().num_short() > 0
    assert database.stats().tables[0].num_short_rows == 0  # that of the last repair: stats do not read the table
    assert database.repair_neighbours()[0].num_recomputed > 0
    assert database.neighbour_table().num_short() == 0
    assert_equals_rebuild(database, k=2, spare_neighbours=3, exact=True)


def test_folding_keeps_answers_bounds_and_edits_and_leaves_no_deleted_id(make_database: Make, tmp_path: Path) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(30)}))
    database.neighbours(k=2, spare_neighbours=3, exact=True)
    assert not fold(database)
    near = database.neighbour_table().stored(np.array([0]))[0][0]
    database.edit_neighbours(0, ban=int(near[0]))
    database.edit_neighbours(3, ban=int(database.neighbour_table().read(np.array([3]))[0][0, 0]))
    database.ingest([write_documents(tmp_path / "more.jsonl", {"new": made_text(3, 100)})], source="more")
    up_to_date(database).repair_neighbours()
    mark(database, near[:4])
    assert fold(database)
    assert [edit.row for edit in database.neighbour_table().edits.all] == [3]
    mark(database, near[:4], active=False)
    database.repair_neighbours()
    database.edit_neighbours(3, ban=database.neighbour_table().edits.all[0].chunk, undo=True)
    assert_equals_rebuild(database, k=2, spare_neighbours=3, exact=True)


def test_the_bound_of_a_list_is_its_last_distance() -> None:
    ids = np.array([[1, 2, 3], [1, 2, -1], [1, 2, -1], [4, -1, -1]])
    distances = np.array([[1, 2, 2], [1, 2, np.inf], [1, 2, 2], [1, 2, 2]], np.float32)
    bound, last = list_bounds(ids, distances)
    assert bound.tolist() == [2, np.inf, 2, 2]
    assert last.tolist() == [3, -1, 2, -1]


def test_all_chunks_can_be_deleted_and_undeleted(make_database: Make) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(12)}))
    database.neighbours(exact=True)
    everything = np.arange(database.view().chunks.end)
    mark(database, everything)
    [deleted] = database.repair_neighbours()
    assert (deleted.num_rows, deleted.num_short) == (0, 0)
    mark(database, everything, active=False)
    [undeleted] = database.repair_neighbours()
    assert undeleted.num_rows == undeleted.num_recomputed > 0
    assert_equals_rebuild(database, exact=True)


def test_tables_of_query_sets_get_new_rows_and_neighbours(make_database: Make, tmp_path: Path) -> None:
    database = make_database({str(i): made_text(i, 100) for i in range(12)})
    database.add_queries("mine", [write_documents(tmp_path / "q.jsonl", {"x": made_text(50, 100)})])
    up_to_date(database).neighbours(queries="mine", exact=True)
    database.ingest([write_documents(tmp_path / "new.jsonl", {"near": made_text(50, 90)})], source="new")
    [result] = up_to_date(database).repair_neighbours(table="mine")
    assert result.num_new_rows == 0
    assert result.num_improved > 0
    assert_equals_rebuild(database, "mine", queries="mine", exact=True)
    database.add_queries("mine", [write_documents(tmp_path / "q.jsonl", {"y": made_text(51, 200)})])
    [result] = up_to_date(database).repair_neighbours(table="mine")
    assert result.num_recomputed == result.num_rows, "the same row numbers, and other rows"
    assert_equals_rebuild(database, "mine", queries="mine", exact=True)


def test_with_inverted_lists_repair_keeps_the_recall(make_database: Make, tmp_path: Path) -> None:
    database = make_database({str(i): made_text(i, 1000) for i in range(40)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    database.neighbours(recall=0.95)
    more = {f"new{i}": made_text(i + 100, 1000) for i in range(4)}
    database.ingest([write_documents(tmp_path / "more.jsonl", more)], source="more")
    mark(up_to_date(database), np.arange(0, database.view().chunks.end, 97))
    [result] = database.repair_neighbours()
    assert result.num_improved > result.num_new_rows > 0
    database.neighbours(table="truth", exact=True)
    ours, truth = database.neighbour_table(), database.neighbour_table("truth")
    rows = truth.rows()
    distances, true = ours.read(rows)[1], truth.read(rows)[1]
    assert (distances <= true[:, -1:]).mean() > 0.9


def test_a_table_with_inverted_lists_of_which_little_is_left_is_recomputed(make_database: Make, tmp_path: Path) -> None:
    database = make_database({str(i): made_text(i, 1000) for i in range(40)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    for name, is_exact in (("self", False), ("exact", True)):
        database.neighbours(table=name, recall=0.95, exact=is_exact)
    mark(database, np.arange(20, database.view().chunks.end))
    more = {f"new{i}": made_text(i + 100, 1000) for i in range(10)}
    database.ingest([write_documents(tmp_path / "more.jsonl", more)], source="more")
    exact, listed = up_to_date(database).repair_neighbours()
    assert exact.num_recomputed < exact.num_rows
    assert listed.num_recomputed == listed.num_rows
    database.neighbours(table="again", recall=0.95)
    files = database.view().manifest.files("neighbours", "self")
    assert sum(file.num_chunks for file in files) == database.view().chunks.end, "a patch lies over a range"
    ours, again = database.neighbour_table(), database.neighbour_table("again")
    for a, b in zip(ours.read(ours.rows()), again.read(again.rows()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_table_with_unknown_dependencies_is_recomputed(make_database: Make) -> None:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(8)}))
    database.neighbours(exact=True)
    storage, head = database._context.storage, database.view().snapshot
    entry = replace(head.existing(TableEntry, "self"), dependencies=None)
    commit(
        storage,
        head,
        Change("old", "neighbours", {}, CLOCK, conflict_keys.neighbours("self"), entries={"table/self": entry}),
    )
    [result] = database.repair_neighbours()
    assert result.num_recomputed == result.num_rows
    assert_equals_rebuild(database, exact=True)


def test_repair_names_the_missing_step(make_database: Make, tmp_path: Path) -> None:
    database = up_to_date(make_database({"a": made_text(1, 100)}))
    assert database.repair_neighbours() == []
    with pytest.raises(MissingStep, match="no neighbour table 'none'"):
        database.repair_neighbours(table="none")
    database.neighbours()
    database.ingest([write_documents(tmp_path / "more.jsonl", {"b": made_text(2, 100)})], source="more")
    database.embed()
    with pytest.raises(MissingStep, match="not indexed"):
        database.repair_neighbours()


def test_a_table_of_another_codebook_is_recomputed(make_database: Make) -> None:
    database = make_database({str(i): made_text(i, 300) for i in range(30)})
    database.embed()
    database.index(factory="IVF4,SQ8")
    database.neighbours()
    database.neighbours(table="exact", exact=True)
    database.index(factory="IVF2,SQ8", retrain=True)
    exact, listed = database.repair_neighbours()
    assert (exact.table, exact.num_recomputed) == ("exact", 0)
    assert (listed.table, listed.num_recomputed) == ("self", listed.num_rows)
