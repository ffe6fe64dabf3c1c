"""Exposure: planted leaks are found exactly, by row number, and split into seen, not yet seen, and gone since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import MissingStep, UsageError
from retrodb.format.records import ChunkRange
from retrodb.stages.dedup import exposure
from retrodb.stages.dedup.exposure import _spans
from retrodb.store.collection import is_ours
from retrodb.view.neighbour_table import NeighbourTable

from .test_dedup import grams

Make = Callable[..., Database]
QUESTION = made_text(4242, 40)


@pytest.fixture
def trained(make_database: Make, tmp_path: Path) -> Database:
    """Documents, some with parts of a question in them, a foreign query set with some too, and the tables of both."""
    words = QUESTION.split()
    documents = {str(i): made_text(i, 200) for i in range(10)}
    documents["3"] = f"{made_text(3, 60)} {' '.join(words[:25])} {made_text(30, 60)}"
    documents["7"] = f"{made_text(7, 90)} {' '.join(words[20:])} {made_text(70, 40)}"
    database = make_database(documents)
    queries = {"clean": made_text(50, 150), "leaky": f"{made_text(51, 45)} {' '.join(words[5:30])} {made_text(52, 45)}"}
    database.add_queries("training", [write_documents(tmp_path / "training.jsonl", queries)])
    database.embed()
    database.index()
    database.neighbours(k=2)
    database.neighbours(k=3, queries="training")
    # As if it had been found out only after the training: no document reaches this rule.
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"q": QUESTION})], rule="jaccard>=1")
    return database


def shared(text: str) -> bool:
    return bool(grams(text) & grams(QUESTION))


def expected(database: Database, name: str) -> dict[int, tuple[bool, bool, bool]]:
    """Row -> whether own text, neighbours and continuations share a 13-gram, by looking at all of it."""
    view = database.view()
    table, chunks, queries = (
        database.neighbour_table(name),
        view.chunks,
        view.query_set(database.neighbour_table(name).query_set),
    )
    exposed = {}
    rows = table.rows()
    ids, _ = table.read(rows)
    for index, row in enumerate(rows.tolist()):
        near = [chunks.texts(np.array([i]))[0] for i in ids[index]]
        both = [
            text + chunks.texts(chunks.continuation(np.array([i])))[0] for i, text in zip(ids[index], near, strict=True)
        ]
        is_in_own = is_in_own_text(queries, row)
        # All that is in both but not in the chunk alone touches the continuation.
        after = any(grams(b) & grams(QUESTION) - grams(n) for b, n in zip(both, near, strict=True))
        if is_in_own or after or any(map(shared, near)):
            exposed[row] = (is_in_own, any(map(shared, near)), after)
    return exposed


def is_in_own_text(queries: object, row: int) -> bool:
    """Whether the document has fewer 13-grams of the question when the row's words are replaced."""
    document = queries.document_ids(np.array([row]))[0]  # type: ignore[attr-defined]
    same = [r for r in range(queries.end) if queries.document_ids(np.array([r]))[0] == document]  # type: ignore[attr-defined]
    texts = queries.texts(np.array(same))  # type: ignore[attr-defined]
    without = [" # " * 3 + "zzz " + " # " if r == row else text for r, text in zip(same, texts, strict=True)]
    return len(grams("".join(without)) & grams(QUESTION)) < len(grams("".join(texts)) & grams(QUESTION))


@pytest.mark.parametrize("name", ["self", "training"])
def test_planted_leaks_are_found_exactly_by_row(trained: Database, name: str) -> None:
    result = trained.exposure("exam", table=name, consumed_samples=3)
    exposed = {
        row.row: (bool(row.own_items), bool(row.neighbour_items), bool(row.continuation_items))
        for row in result.exposed
    }
    assert exposed == expected(trained, name)
    assert any(own for own, _, _ in exposed.values())
    assert any(near or after for _, near, after in exposed.values())
    rows = trained.neighbour_table(name).rows()
    assert [rows[row.sample] for row in result.exposed] == [row.row for row in result.exposed]
    assert [row.is_seen for row in result.exposed] == [row.sample < 3 for row in result.exposed]
    assert result.num_exposed_seen + result.num_exposed_unseen == len(result.exposed)
    assert all(row.is_live for row in result.exposed)
    assert {
        item for row in result.exposed for item in (*row.own_items, *row.neighbour_items, *row.continuation_items)
    } == {"q"}


def test_what_was_removed_since_is_reported_but_not_live(trained: Database, tmp_path: Path) -> None:
    before = trained.exposure("exam", table="training")
    trained.dedup([tmp_path / "exam.jsonl"], rule="containment>=0.1", level="chunk")
    after = trained.exposure("exam", table="training", consumed_samples=10**9)
    assert [
        (e.row, e.own_items, e.neighbour_items, e.continuation_items)
        for e in after.exposed
        if e.row in {b.row for b in before.exposed}
    ] == [(e.row, e.own_items, e.neighbour_items, e.continuation_items) for e in before.exposed]
    assert {row.row for row in after.exposed if row.is_live} == {row.row for row in after.exposed if row.own_items}
    assert (after.num_exposed_unseen, after.num_consumed_samples) == (0, after.num_rows)
    trained.neighbours(k=3, queries="training", table="fresh")
    fresh = trained.exposure("exam", table="fresh")
    assert all(row.own_items and not row.chunks for row in fresh.exposed)


def test_rows_are_compared_by_shard_of_the_query_set(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 6)
    texts = {str(i): made_text(i, 150) + (f" {QUESTION}" if i % 4 == 1 else "") for i in range(10)}
    database = make_database(texts)
    database.embed()
    database.index()
    database.neighbours(k=2)
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"q": QUESTION})], rule="jaccard>=1")
    num_shards = len(database.view().shards)
    assert num_shards > 5
    whole = database.neighbour_table().all_rows()
    sizes = []
    written = NeighbourTable.written
    monkeypatch.setattr(
        NeighbourTable, "written", lambda table, rows: (sizes.append(len(rows)), written(table, rows))[1]
    )
    result = database.exposure("exam", consumed_samples=len(whole) // 2)
    assert {
        row.row: (bool(row.own_items), bool(row.neighbour_items), bool(row.continuation_items))
        for row in result.exposed
    } == (expected(database, "self"))
    assert [row.row for row in result.exposed] == sorted(row.row for row in result.exposed)
    assert all(whole[row.sample] == row.row for row in result.exposed)
    assert [row.is_seen for row in result.exposed] == [row.sample < len(whole) // 2 for row in result.exposed]
    assert (sum(sizes), len(sizes)) == (2 * result.num_rows, 2 * num_shards), (
        "once to know the chunks, once for the rows"
    )
    assert result.num_rows == len(whole)


@pytest.mark.parametrize("as_of_deletion", [False, True])
def test_neither_workers_nor_the_size_of_tasks_change_what_is_exposed(
    trained: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_of_deletion: bool
) -> None:
    if as_of_deletion:
        trained.filter(doc_ids=["3"], reason="bad")
    whole = trained.exposure("exam", table="training", consumed_samples=3)
    assert whole.exposed
    for name in ("_TASK_ROWS", "_MIN_SPAN_ROWS", "_TASK_IDS"):
        monkeypatch.setattr(exposure, name, 1)
    monkeypatch.setattr(exposure, "_SMALL_ROWS", 0)
    several = retrodb.open(trained.path, workers=2)
    for database in (trained, several):
        assert database.exposure("exam", table="training", consumed_samples=3) == whole
        assert database.exposure("exam") == trained.exposure("exam")
    assert not [path for path in trained.view().storage.list("runs") if "exposure" in path]


def test_a_killed_exposure_continues_and_leaves_nothing(trained: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained.exposure("exam")
    before = trained.view().storage.list("runs")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exposure, "run_exposed_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            trained.exposure("exam")
        assert trained.view().storage.list("runs") != before
        assert all(map(is_ours, trained.view().storage.list("runs"))), "garbage collection knows its files"
    with monkeypatch.context() as patch:
        patch.setattr(exposure, "run_match", killed)
        assert trained.exposure("exam") == whole, "what was compared is not compared again"
    assert trained.view().storage.list("runs") == before


@pytest.mark.parametrize(
    ("ranges", "end", "spans"),
    [
        ([], 0, []),
        ([(0, 5), (5, 3)], 8, [(0, 5), (5, 3)]),
        ([(2, 3), (7, 1)], 12, [(0, 2), (2, 3), (5, 2), (7, 1), (8, 4)]),
        ([(0, 5)], 3, [(0, 5)]),
    ],
)
def test_rows_of_lost_documents_are_compared_too(
    ranges: list[tuple[int, int]], end: int, spans: list[tuple[int, int]]
) -> None:
    table = SimpleNamespace(files=[SimpleNamespace(span=ChunkRange(0, end))])
    queries = SimpleNamespace(ranges=[SimpleNamespace(span=ChunkRange(*span)) for span in ranges])
    assert list(_spans(table, queries)) == spans  # type: ignore[arg-type]


def test_unknown_test_sets_and_tables_are_refused(trained: Database) -> None:
    with pytest.raises(UsageError, match="no test set"):
        trained.exposure("none")
    with pytest.raises(MissingStep, match="no neighbour table"):
        trained.exposure("exam", table="none")
    with pytest.raises(UsageError, match="consumed"):
        trained.exposure("exam", consumed_samples=-1)
