"""What is new to a table and what is lost is counted in tasks, and equals a look at the parts that a join opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.format.entries import TableEntry
from retrodb.format.records import ChunkRange
from retrodb.stages.context import Context
from retrodb.stages.neighbours import compared_tasks
from retrodb.stages.neighbours.compared_tasks import ComparedCounts, TableInputs, count_compared
from retrodb.stages.neighbours.table_inputs import database_side
from retrodb.stages.neighbours.table_rows import query_ids, spans_of
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.view.compared_sets import DATABASE, QUERIES, ComparedSets
from retrodb.view.view import View

Make = Callable[..., Database]
TABLES: dict[str, dict[str, object]] = {
    "all": {},
    "where": {"where": "source = 'a' or num_tokens > 400"},
    "sample": {"sample": 0.5, "exact": True},
    "queries": {"queries": "extern"},
}


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """A table of each kind, and changes of all kinds since."""
    database = make_database({})
    add(database, tmp_path, "a", range(8))
    add(database, tmp_path, "b", range(8))
    database.add_queries("extern", [write_documents(tmp_path / "q.jsonl", {"q": made_text("q", 400)})])
    database.filter(doc_ids=["a1", "b2"], reason="bad")
    up_to_date(database)
    for table, options in TABLES.items():
        database.neighbours(table=table, **options)  # type: ignore[arg-type]
    return database


def add(database: Database, folder: Path, source: str, numbers: range) -> None:
    texts = {f"{source}{number}": made_text(f"{source}{number}", 150 + 40 * number) for number in numbers}
    database.ingest([write_documents(folder / f"{source}.jsonl", texts)], source=source)


def up_to_date(database: Database) -> None:
    database.embed()
    database.index()


def inputs_of(view: View, table: str) -> TableInputs:
    entry = view.snapshot.existing(TableEntry, table)
    return TableInputs(PlannedSnapshot.of(view), table, entry.queries, entry.space, entry.params)


def now(view: View, inputs: TableInputs) -> dict[str, set[int]]:
    """What the rows are compared with, from the parts of a join."""
    parts = database_side(view, inputs.space, inputs.params)
    spans = spans_of(view, inputs.queries)
    return {
        DATABASE: {int(id_) for part in parts for id_ in part.ids_N[... if part.allowed_N is None else part.allowed_N]},
        QUERIES: {int(id_) for span in spans for id_ in query_ids(view, inputs.queries, inputs.space, span)},
    }


def before(view: View, table: str) -> dict[str, set[int]]:
    sets = ComparedSets.read(view, table)
    return {
        side: {span.first_chunk + row for span in sets.ranges(side) for row in sets.rows(side, *span)}
        for side in (DATABASE, QUERIES)
    }


@pytest.mark.parametrize("cut", [False, True])
def test_counts_are_those_of_a_look_at_all_ids(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    if cut:
        for name in ("_TASK_CHUNKS", "_SMALL_CHUNKS", "_SMALL_READ_CHUNKS"):
            monkeypatch.setattr(compared_tasks, name, 1)
    view = database.view()
    assert all(before(view, table) == now(view, inputs_of(view, table)) for table in TABLES)
    database.undelete("bad")
    database.filter(doc_ids=["a3", "b4"], reason="worse")
    add(database, tmp_path, "c", range(4))
    up_to_date(database)
    database.filter(doc_ids=["c1"], reason="worse")
    view = database.view()
    for table in TABLES:
        check_counts(view, table)
    database.repair_neighbours()
    view = database.view()
    assert all(before(view, table) == now(view, inputs_of(view, table)) for table in TABLES)


def check_counts(view: View, table: str) -> None:
    """Compare what tasks count with sets of all ids."""
    inputs = inputs_of(view, table)
    was, is_now = before(view, table), now(view, inputs)
    counted = dict(zip((DATABASE, QUERIES), count_compared(Context(view.storage), view, inputs), strict=True))
    for side in (DATABASE, QUERIES):
        expected = len(is_now[side]), len(is_now[side] - was[side]), len(was[side] - is_now[side])
        assert counted[side] == ComparedCounts(*expected), (table, side)
    assert counted[DATABASE].num_new, table
    assert counted[DATABASE].num_lost, table
    assert not [path for path in view.storage.list("runs") if "compared-count" in path]


def test_a_dry_run_counts_deleted_neighbours_and_a_fold_keeps_the_count(database: Database) -> None:
    known = np.array(sorted(before(database.view(), "all")[DATABASE]))
    database.filter(doc_ids=["a0"], reason="bad")
    num_deleted = int(np.sum(~database.view().chunks.is_live(known)))
    [result] = database.repair_neighbours(table="all", dry_run=True)
    assert (result.num_new_chunks, result.num_lost_chunks) == (0, num_deleted)
    database.compact(min_deleted=0.0001)
    view = database.view()
    assert before(view, "all")[DATABASE] == set(known[view.chunks.is_live(known)].tolist())
    [result] = database.repair_neighbours(table="all", dry_run=True)
    assert result.num_lost_chunks == num_deleted > 0


def test_a_repair_looks_only_at_ranges_that_changed(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 6)
    for name in ("_TASK_CHUNKS", "_MIN_SPAN_CHUNKS"):
        monkeypatch.setattr(compared_tasks, name, 8)  # a few shards in each file
    database = make_database({f"d{n}": made_text(n, 300) for n in range(12)})
    up_to_date(database)
    for table, options in {"all": {}, "restricted": {"where": "num_tokens > 300", "sample": 0.9}}.items():
        database.neighbours(table=table, k=2, **options)  # type: ignore[arg-type]
    old = database.view()
    assert len(old.shards) > 8
    add(database, tmp_path, "new", range(1))
    database.filter(doc_ids=["d3"], reason="bad")
    up_to_date(database)
    looked_at = set[ChunkRange]()
    rows = compared_tasks.ComparedSides.rows

    def watched(sides: compared_tasks.ComparedSides, side: str, span: ChunkRange) -> object:
        looked_at.add(span)
        return rows(sides, side, span)

    view = database.view()
    bad = [r.span for r in view.chunks.ranges if any(d and d["doc_id"] == "d3" for d in documents_in(view, r.span))]
    new = [record.span for record in view.chunks.ranges if record.first_chunk >= old.snapshot.next_chunk]
    monkeypatch.setattr(compared_tasks.ComparedSides, "rows", watched)
    database.repair_neighbours(dry_run=True)
    assert looked_at == {*bad, *new}
    database.repair_neighbours()
    monkeypatch.undo()
    for table in ("all", "restricted"):
        before_and_now = [{r.path for r in v.manifest.files("joined", table)} for v in (old, database.view())]
        assert len(before_and_now[0] & before_and_now[1]) >= len(before_and_now[0]) / 2, "other ranges keep their files"
        assert before(database.view(), table) == now(database.view(), inputs_of(database.view(), table))


def documents_in(view: View, span: ChunkRange) -> Sequence[object]:
    return view.chunks.documents(np.arange(span.first_chunk, span.end))


def test_many_small_files_of_compared_sets_become_few(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compared_tasks, "_MOST_SMALL_FILES", 4)
    database = make_database({f"d{n}": made_text(n, 100) for n in range(4)})
    up_to_date(database)
    database.neighbours(table="all", k=2)
    counts = []
    for number in range(6):
        text = {f"n{number}": made_text(f"n{number}", 100)}
        database.ingest([write_documents(tmp_path / "n.jsonl", text)], source="more")
        up_to_date(database)
        database.repair_neighbours()
        counts.append(len(database.view().manifest.files("joined", "all")))
        assert before(database.view(), "all") == now(database.view(), inputs_of(database.view(), "all"))
    assert max(counts) <= 4 + 2
    assert min(counts[1:]) < max(counts)


def test_a_table_does_not_depend_on_workers(database: Database) -> None:
    first = {record.digest for kind in ("neighbours", "joined") for record in database.view().manifest.files(kind)}
    several = retrodb.open(database.path, workers=2)
    for table, options in TABLES.items():
        several.neighbours(table=f"{table}-again", **options)  # type: ignore[arg-type]
    again = {record.digest for kind in ("neighbours", "joined") for record in several.view().manifest.files(kind)}
    assert again == first
