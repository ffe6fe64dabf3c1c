"""A repair reads bounds, codes and vectors of many rows, and lists of neighbours of few; how its work is cut changes no byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents
from marked import mark

import retrodb
from retrodb.ann.merge_topk import merge_topk
from retrodb.ann.topk import empty_topk
from retrodb.database import Database
from retrodb.format.arrays import Int64Array
from retrodb.stages.neighbours import few_rows, new_neighbours, repair, repair_state, repair_task
from retrodb.stages.neighbours.repair_task import list_bounds
from retrodb.stages.neighbours.restriction import Restriction
from retrodb.view.neighbour_table import NeighbourTable

from .test_repair_neighbours import assert_equals_rebuild, up_to_date

Make = Callable[..., Database]
CLOCK = "2027-01-01T00:00:00.000000+00:00"
TABLES = {
    "exact": {"exact": True},
    "lists": {"recall": 0.7},
    "some": {"recall": 0.7, "where": "num_chars > 350"},
    "sample": {"exact": True, "sample": 0.5},
    "other": {"queries": "mine", "recall": 0.7},
    "other exact": {"queries": "mine", "exact": True},
}


@pytest.fixture
def changed(make_database: Make, tmp_path: Path) -> Database:
    """Tables of all kinds of a database of several shards, to which documents were added, and some of which were deleted."""
    database = make_database({f"d{n}": made_text(n, 90) for n in range(60)})
    for shard in range(3):
        more = {f"e{shard}-{n}": made_text(f"{shard} {n % 13}", 90) for n in range(20)}
        database.ingest([write_documents(tmp_path / f"{shard}.jsonl", more)], source="made")
    database.add_queries("mine", [write_documents(tmp_path / "q.jsonl", {"x": made_text(3, 2000)})])
    database.embed()
    database.index(factory="IVF8,SQ8")
    for table, options in TABLES.items():
        database.neighbours(table=table, k=2, spare_neighbours=2, **options)
    new = {f"n{n}": made_text(n, 80) for n in range(3)}
    database.ingest([write_documents(tmp_path / "n.jsonl", new)], source="made")
    mark(up_to_date(database), [0, 1, 50, 51])
    return database


def contents(database: Database) -> list[tuple[str, str | None, int, int, str]]:
    """The files of tables by what they are about; tasks of other sizes give them other names."""
    return sorted(
        (file.kind, file.name, file.first_chunk, file.num_chunks, file.digest.sha256.hex())
        for kind in ("neighbours", "naming")
        for file in database.view().manifest.files(kind)
    )


@pytest.mark.parametrize("variant", ["small tasks", "two processes", "small blocks", "no products", "ranges"])
def test_tasks_processes_blocks_and_ranges_change_no_byte(
    changed: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    copy = Path(shutil.copytree(tmp_path / "db", tmp_path / "copy"))
    expected = retrodb.open(tmp_path / "db", clock=CLOCK)
    results = expected.repair_neighbours()
    workers = 1
    if variant in ("small tasks", "two processes"):
        monkeypatch.setattr(repair, "_TASK_IDS", 100)
    if variant == "two processes":
        monkeypatch.setattr(repair, "_SMALL_WORK", 0)
        workers = 2
    elif variant == "small blocks":
        monkeypatch.setattr(new_neighbours, "BLOCK_QUERIES", 7)
        monkeypatch.setattr(repair_task, "_BLOCK_ROWS", 5)
    elif variant == "no products":
        monkeypatch.setattr(new_neighbours, "_MOST_PRODUCTS", 0)
    elif variant == "ranges":
        monkeypatch.setattr(few_rows, "EXCHANGED_ROWS", 2)
        monkeypatch.setattr(repair_task.JoinSize, "num_ranges", lambda self, memory_bytes: 3)
    again = retrodb.open(copy, clock=CLOCK, workers=workers)
    assert again.repair_neighbours() == results
    assert contents(again) == contents(expected)
    assert all(result.num_improved and result.num_lost_chunks for result in results)
    for table in ("exact", "sample", "other exact"):
        assert_equals_rebuild(again, table, k=2, spare_neighbours=2, **TABLES[table])


def test_small_shards_are_repaired_in_one_task(changed: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []
    monkeypatch.setattr(
        repair, "_run_tasks", lambda transaction, plan, of_table, hardware: tasks.append(of_table) or []
    )
    changed.repair_neighbours(table="lists", dry_run=False)
    [[task]] = tasks
    assert list(task.payload.spans) == [record.span for record in changed.view().chunks.ranges]
    assert len(task.payload.spans) > 3
    monkeypatch.setattr(repair, "_TASK_IDS", 1)
    assert [len(group) for group in repair._groups(task.payload.spans)] == [1] * len(task.payload.spans)


@pytest.mark.parametrize("table", ["exact", "lists", "other", "other exact"])
def test_lists_of_neighbours_are_read_of_rows_that_change_only(
    changed: Database, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    read, stored = list[Int64Array](), NeighbourTable.stored

    def noted(self: NeighbourTable, rows: Int64Array) -> object:
        read.append(rows)
        return stored(self, rows)

    before = changed.neighbour_table(table)
    deleted = np.array([0, 1, 50, 51])
    named = before.all_rows()[np.isin(stored(before, before.all_rows())[0], deleted).any(axis=1)]
    with monkeypatch.context() as patch:
        patch.setattr(NeighbourTable, "stored", noted)
        [result] = changed.repair_neighbours(table=table)
    written = np.concatenate([file_rows(changed, file) for file in changed.neighbour_table(table).files[1:]] or [named])
    rows = np.unique(np.concatenate(read))
    assert result.num_improved > 0
    assert len(rows) < result.num_rows / 2
    gone = deleted if changed.neighbour_table(table).query_set == "self" else deleted[:0]
    ties = np.setdiff1d(rows, np.concatenate([written, named, gone]))
    assert len(ties) <= 2, (
        "others had a new chunk, or a deleted one, or are deleted; the last of a row can be as far as a new one"
    )


def file_rows(database: Database, file: object) -> Int64Array:
    """The rows that a file of a table has."""
    return file.first_chunk + database.view().files.rows(file).present  # type: ignore[attr-defined]


def test_documents_of_ranges_that_are_as_they_were_are_not_looked_at(
    changed: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed.repair_neighbours()
    changed.ingest([write_documents(tmp_path / "last.jsonl", {"last": made_text(77, 90)})], source="made")
    up_to_date(changed)
    asked, documents_of = [], Restriction.documents_of

    def noted(self: Restriction, record: object) -> object:
        asked.append(record.first_chunk)  # type: ignore[attr-defined]
        return documents_of(self, record)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Restriction, "documents_of", noted)
        for table in ("sample", "some"):
            [result] = changed.repair_neighbours(table=table)
            assert result.num_recomputed > 0
    assert set(asked) == {changed.view().chunks.ranges[-1].first_chunk}
    assert_equals_rebuild(changed, "sample", k=2, spare_neighbours=2, **TABLES["sample"])


def test_new_chunks_are_below_the_bound_and_ties_are_decided_by_the_list() -> None:
    new = new_neighbours.NewNeighbours(
        np.array([3, 9]), np.array([[50, 60], [50, -1]]), np.array([[1, 2], [2, np.inf]], np.float32)
    )
    ids = np.array([[7, 55], [8, 49], [7, 70]])
    distances = np.array([[0, 2], [0, 2], [0, 2]], np.float32)
    below = new.below(np.array([3, 5, 9]), *list_bounds(ids, distances))
    assert below[0].tolist() == [[50, -1], [-1, -1], [50, -1]], "60 is as far as the last, 55; 50 comes before 70"
    assert np.isinf(below[1]).tolist() == [[False, True], [True, True], [False, True]]


@pytest.mark.parametrize("has_new", [False, True])
def test_lists_are_merged_alike_with_and_without_new_chunks(has_new: bool) -> None:
    random = np.random.default_rng(0)
    distances = np.sort(random.integers(0, 4, (200, 5)).astype(np.float32), axis=1)
    ids = np.stack([random.permutation(5) for _ in distances])
    ids = np.take_along_axis(ids, np.lexsort((ids, distances), axis=1), axis=1)
    is_kept = random.random(ids.shape) < 0.6
    kept = np.where(is_kept, ids, -1), np.where(is_kept, distances, np.float32(np.inf))
    new = empty_topk(*ids.shape)
    if has_new:
        new[0][7, 0], new[1][7, 0] = 99, 1.5
    expected = merge_topk([kept, new], 5)
    for ours, merged in zip(repair_task._merged(kept, new), expected, strict=True):
        np.testing.assert_array_equal(ours, merged)


@pytest.mark.parametrize("table", TABLES)
def test_the_product_with_new_chunks_misses_no_row(
    changed: Database, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """With bounds of zero and infinity, too: `may_be_within` alone decides which rows of other query sets are looked at."""
    monkeypatch.setattr(repair_state.RepairState, "finds_rows_by_codes", False)
    copies = {}
    for most in (0, 1 << 14):
        monkeypatch.setattr(new_neighbours, "_MOST_PRODUCTS", most)
        [result] = changed.repair_neighbours(table=table)
        copies[most] = contents(changed), result.num_improved
        changed.restore(changed.view().snapshot.number - 1)
    assert copies[0] == copies[1 << 14]
