"""A row that may read no more lists keeps a finite bound: only infinity says that the database has no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made_documents import made_text, write_documents

import retrodb
from retrodb.ann.metric import CAPPED
from retrodb.database import Database
from retrodb.format.entries import TableEntry
from retrodb.format.json_codec import from_json, to_json
from retrodb.stages.index import operating_point
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.index.operating_point import candidate_cap, home_lists
from retrodb.stages.neighbours import new_neighbours, repair, repair_task
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb_cli.main import cli

from .test_range_join import contents, make_large

K, SPARE = 120, 50
OPTIONS: dict[str, Any] = {"k": K, "spare_neighbours": SPARE, "recall": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a sample": {"sample": 0.6},
    "a condition": {"where": "source = 'first'"},
    "routed": {"route_ranges": 8},
    "equal contents excluded": {"exclude": ("document", "content")},
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, made_tokenizer: Path) -> Path:
    return make_large(tmp_path_factory.mktemp("large"), made_tokenizer)


@pytest.fixture(autouse=True)
def low_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 lists, a row that probes one reads at most three."""
    monkeypatch.setattr(operating_point, "_LEAST_CAP", 3)
    monkeypatch.setattr(operating_point, "PROBED_NEXT", 2)


def copy(large: Path, name: str, **options: Any) -> Database:
    if not (large / name).exists():
        shutil.copytree(large / "db", large / name)
    return retrodb.open(large / name, **options)


def entry_of(db: Database) -> TableEntry:
    return db.view().snapshot.existing(TableEntry, "self")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_table_with_capped_rows_is_the_same_for_any_execution(large: Path, name: str) -> None:
    options = OPTIONS | VARIANTS[name]
    expected = copy(large, f"{name}-whole")
    whole = expected.neighbours(list_ranges=1, **options)
    assert 0 < whole.num_capped <= whole.num_short
    assert entry_of(expected).most_lists == max(3, 2 * whole.nprobe)
    for variant, workers, ranges in (("two", 1, 2), ("six", 2, 6), ("as many as lists", 1, 16)):
        db = copy(large, f"{name}-{variant}", workers=workers)
        result = db.neighbours(list_ranges=ranges, **options)
        assert contents(db) == contents(expected)
        assert entry_of(db) == entry_of(expected)
        assert (result.num_short, result.num_capped) == (whole.num_short, whole.num_capped)


def test_a_capped_row_has_all_chunks_of_the_lists_that_it_may_read(large: Path) -> None:
    db = copy(large, "oracle")
    result = db.neighbours(**OPTIONS)
    table, view = db.neighbour_table(), db.view()
    rows = table.rows()
    ids, distances = table.stored(rows)
    lacks = ids[:, -1] < 0
    assert lacks.any()
    assert (distances[ids < 0] == CAPPED).all(), "no row has read all 16 lists"
    assert (distances[ids >= 0] < CAPPED).all()
    short = (ids >= 0).sum(axis=1) < K
    assert (result.num_short, result.num_capped) == (short.sum(), short.sum())
    homes = home_lists(view, "default", rows)
    lists = open_codebook(view, "default").nearest_lists(view.vectors("default", rows), entry_of(db).most_lists)
    documents = view.chunks.document_ids(rows)
    for row in np.flatnonzero(lacks).tolist():
        there = rows[np.isin(homes, lists[row]) & (documents != documents[row])]
        np.testing.assert_array_equal(np.sort(ids[row][ids[row] >= 0]), there)
    read_ids, read_distances = table.read(rows)
    assert (np.isinf(read_distances) == (read_ids < 0)).all(), "readers see no such distance"


def test_a_row_that_has_all_chunks_is_not_capped(large: Path) -> None:
    db = copy(large, "all")
    result = db.neighbours(where="doc_id = 'd1'", **OPTIONS)
    assert result.num_short == result.num_rows
    ids, distances = db.neighbour_table().stored(db.neighbour_table().rows())
    num_chunks = len(np.unique(ids[ids >= 0]))
    has_all = (ids >= 0).sum(axis=1) == num_chunks
    assert has_all.any()
    assert np.isinf(distances[has_all, -1]).all()


def grow(db: Database, folder: Path, texts: dict[str, str]) -> None:
    db.ingest([write_documents(folder / "more.jsonl", texts)], source="more")
    db.embed()
    db.index()


def test_a_repair_puts_new_chunks_into_capped_rows_and_does_not_search_them_again(large: Path, tmp_path: Path) -> None:
    db = copy(large, "repaired")
    before = db.neighbours(**OPTIONS)
    known, cap = db.neighbour_table().rows(), entry_of(db).most_lists
    grow(db, tmp_path, {"new": made_text("new", 130)})
    [result] = db.repair_neighbours()
    assert result.num_recomputed == result.num_new_rows > 0, "capped rows are as they were"
    assert result.num_improved > 0
    table, view = db.neighbour_table(), db.view()
    ids, distances = table.stored(known)
    new = np.setdiff1d(table.rows(), known)
    lists = open_codebook(view, "default").nearest_lists(view.vectors("default", known), cap)
    lacks = ids[:, -1] < 0
    for chunk, home in zip(new.tolist(), home_lists(view, "default", new).tolist(), strict=True):
        reads = lacks & (lists == home).any(axis=1)
        assert reads.any()
        assert (ids[reads] == chunk).any(axis=1).all()
        assert (ids[lacks] == chunk).any(axis=1).all(), "it is compared with all new chunks"
    assert (distances[lacks, -1] == CAPPED).all()
    entry = entry_of(db)
    assert (entry.num_short, entry.num_capped) == (result.num_short, result.num_capped)
    assert (result.num_short, result.num_capped) == counted(db)
    assert result.num_capped <= before.num_capped + result.num_new_rows


def counted(db: Database) -> tuple[int, int]:
    """Short rows and capped ones, counted in the whole table."""
    table = db.neighbour_table()
    ids, distances = table.stored(table.rows())
    is_short = db.view().chunks.is_live(ids.ravel()).reshape(ids.shape).sum(axis=1) < K
    return int(is_short.sum()), int((is_short & (distances[:, -1] == CAPPED)).sum())


@pytest.mark.parametrize("folds", [False, True])
def test_deletions_leave_capped_rows_capped(large: Path, tmp_path: Path, folds: bool) -> None:
    db = copy(large, f"deleted-{folds}")
    db.neighbours(**OPTIONS)
    entry = entry_of(db)
    table = db.neighbour_table()
    known = table.rows()
    before = table.stored(known)[1][:, -1] == CAPPED
    db.filter(doc_ids=[f"d{number}" for number in range(0, 150, 2)], reason="gone")
    if folds:
        db.compact(min_deleted=0.01)
    [result] = db.repair_neighbours()
    assert 0 < result.num_recomputed < result.num_rows, "rows with a bound of their own starve"
    table = db.neighbour_table()
    rows = table.rows()
    ids, distances = table.stored(rows)
    assert (distances[before[np.searchsorted(known, rows)], -1] == CAPPED).all()
    assert (distances[ids < 0] < np.inf).all()
    assert (result.num_short, result.num_capped) == counted(db)
    assert entry_of(db).most_lists == entry.most_lists
    assert db.repair_neighbours()[0].num_recomputed == 0
    assert not db.check(read_data=True).damaged


def test_a_repair_that_needs_ranges_writes_the_same_capped_rows(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = copy(large, "by ranges")
    db.neighbours(**OPTIONS)
    grow(db, tmp_path, {f"n{number}": made_text(f"n{number}", 130) for number in range(5)})
    db.filter(doc_ids=[f"d{number}" for number in range(1, 150, 2)], reason="gone")
    head, tables = db.view().snapshot.number, []
    for num_ranges in (1, 5):
        monkeypatch.setattr(JoinSize, "num_ranges", lambda self, memory_bytes, num=num_ranges: num)
        assert db.repair_neighbours()[0].num_capped > 0
        tables.append(contents(db))
        db.restore(head)
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", ["plain", "a condition"])
def test_how_a_repair_is_cut_changes_no_byte_of_capped_rows(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    db = copy(large, f"cut-{name}")
    db.neighbours(**OPTIONS | VARIANTS[name])
    db.ingest([write_documents(tmp_path / "new.jsonl", {"new": made_text("new", 400)})], source="first")
    db.embed()
    db.index()
    db.filter(doc_ids=[f"d{number}" for number in range(1, 60, 2)], reason="gone")
    head, tables = db.view().snapshot.number, []
    small_tasks = (repair, "_TASK_IDS", 100)
    for workers, changes in (
        (1, []),
        (1, [small_tasks]),
        (2, [small_tasks, (repair, "_SMALL_WORK", 0)]),
        (1, [(new_neighbours, "BLOCK_QUERIES", 7), (repair_task, "_BLOCK_ROWS", 5)]),
    ):
        with monkeypatch.context() as patch:
            for module, constant, value in changes:
                patch.setattr(module, constant, value)
            [result] = retrodb.open(db.path, workers=workers).repair_neighbours()
        assert 0 < result.num_capped <= result.num_short
        assert result.num_improved > 0
        assert (result.num_short, result.num_capped) == counted(db)
        tables.append(sorted(contents(db)))
        db.restore(head)
    assert all(table == tables[0] for table in tables[1:])


def test_the_command_says_that_the_database_may_have_more(large: Path) -> None:
    db = copy(large, "said")
    asked = ["neighbours", str(db.path), "--k", str(K), "--recall", "0.1"]
    printed = CliRunner().invoke(cli, asked)
    assert "neighbours read as many lists as a row may" in printed.stderr, printed.output
    line = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    assert 0 < line["num_capped"] <= line["num_short"]
    [line] = map(json.loads, CliRunner().invoke(cli, [*asked[:2], "--repair", "--json"]).stdout.splitlines())
    assert line["num_capped"] > 0


def test_the_cap_follows_from_the_lists_and_the_probes() -> None:
    for num_lists, nprobe, cap in ((16, 1, 3), (16, 5, 10), (16, 8, 0), (3, 1, 0), (1 << 22, 1, 3), (16, 0, 0)):
        assert candidate_cap(num_lists, nprobe) == cap


def test_an_entry_from_before_the_cap_is_read(large: Path) -> None:
    db = copy(large, "old")
    db.neighbours(k=2)
    entry = entry_of(db)
    stored = json.loads(to_json(entry))
    del stored["most_lists"], stored["num_capped"]
    old = from_json(TableEntry, json.dumps(stored).encode(), where="entry")
    assert (old.most_lists, old.num_capped) == (0, 0)
    assert old.is_of_same_origin(entry)
