"""Neighbour tables: equal to brute force with exclusions, with missing neighbours counted and deleted ones masked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import MissingStep, NotEnoughMemory, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import TableEntry
from retrodb.stages.index.live_parts import database_keys
from retrodb.stages.neighbours import command as stage
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.restriction import chosen_documents

Make = Callable[..., Database]


def built(database: Database) -> Database:
    database.embed()
    database.index()
    return database


def brute_force(database: Database, rows: Int64Array, k: int) -> Int64Array:
    """The k nearest live keys of other documents, by inner product in float32, ties by id."""
    view = database.view()
    ids = np.flatnonzero(view.embeddable_mask(0, view.chunks.end))
    vectors = view.vectors("default", ids).astype(np.float32)
    documents = view.chunks.document_ids(ids)
    nearest = np.full((len(rows), k), -1)
    for number, row in enumerate(rows.tolist()):
        query = view.vectors("default", np.array([row])).astype(np.float32)[0]
        others = documents != view.chunks.document_ids(np.array([row]))[0]
        order = np.lexsort((ids[others], -(vectors[others] @ query)))[:k]
        nearest[number, : len(order)] = ids[others][order]
    return nearest


@pytest.mark.parametrize("exact", [True, False])
def test_the_table_equals_brute_force_without_the_document_of_the_row(make_database: Make, exact: bool) -> None:
    database = built(make_database({str(i): made_text(i, 150) for i in range(12)}))
    result = database.neighbours(k=3, spare_neighbours=2, exact=exact)
    table = database.neighbour_table()
    rows = table.rows()
    ids, distances = table.read(rows)
    assert result.num_rows == len(rows)
    assert result.num_short == 0
    scores, expected = _scores(database, rows, ids), _scores(database, rows, brute_force(database, rows, 3))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()


def _scores(database: Database, rows: Int64Array, ids: Int64Array) -> np.ndarray:
    view = database.view()
    queries = view.vectors("default", rows).astype(np.float32)
    near = view.vectors("default", ids.ravel()).astype(np.float32).reshape(*ids.shape, -1)
    return np.einsum("qd,qkd->qk", queries, near)


def test_rows_of_a_single_document_are_counted_as_short(make_database: Make) -> None:
    database = built(make_database({"only": made_text(1, 200)}))
    result = database.neighbours()
    ids, distances = database.neighbour_table().read(database.neighbour_table().rows())
    assert result.num_short == result.num_rows > 0
    assert (ids == -1).all()
    assert np.isinf(distances).all()


def test_a_k_larger_than_the_database_gives_all_other_chunks(make_database: Make) -> None:
    database = built(make_database({"a": made_text(1, 30), "b": made_text(2, 30)}))
    database.neighbours(k=7, spare_neighbours=0)
    table = database.neighbour_table()
    ids, _ = table.read(table.rows())
    documents = database.view().chunks.document_ids(table.rows())
    for row, document in zip(ids, documents, strict=True):
        live = row[row >= 0]
        assert len(live) > 0
        assert (database.view().chunks.document_ids(live) != document).all()
        assert (row[len(live) :] == -1).all()


def test_equal_pages_under_other_ids_are_excluded_on_request(make_database: Make, tmp_path: Path) -> None:
    page = made_text(5, 200)
    database = make_database({"page": page, **{str(i): made_text(i + 20, 100) for i in range(4)}})
    database.ingest([write_documents(tmp_path / "mirror.jsonl", {"other-id": page})], source="mirror")
    built(database)
    first = database.view().chunks
    database.neighbours(table="plain", k=1, spare_neighbours=0)
    database.neighbours(table="content", k=1, spare_neighbours=0, exclude=["document", "content"])

    def finds_the_copy(name: str) -> bool:
        table = database.neighbour_table(name)
        ids, _ = table.read(table.rows())
        return bool((first.content_keys(ids[:, 0]) == first.content_keys(table.rows())).any())

    assert finds_the_copy("plain")
    assert not finds_the_copy("content")


def test_deleted_neighbours_are_masked_and_spare_ones_take_their_positions(make_database: Make, tmp_path: Path) -> None:
    documents = {str(i): made_text(i, 120) for i in range(8)}
    database = built(make_database(documents))
    database.neighbours(k=2, spare_neighbours=6)
    before, _ = database.neighbour_table().read(database.neighbour_table().rows())
    database.dedup([write_documents(tmp_path / "test.jsonl", {"q": documents["3"]})], name="late")
    view = database.view()
    table = database.neighbour_table()
    rows = table.rows()
    after, _ = table.read(rows)
    dead = ~view.chunks.is_live(np.arange(view.chunks.end))
    assert dead.any()
    assert np.isin(before, np.flatnonzero(dead)).any(), "the test has something to mask"
    assert not np.isin(after, np.flatnonzero(dead)).any()
    live_rows = view.chunks.is_live(rows)
    np.testing.assert_allclose(
        _scores(database, rows[live_rows], after[live_rows]),
        _scores(database, rows[live_rows], brute_force(database, rows[live_rows], 2)),
        atol=1e-5,
    )


def test_a_query_set_gets_its_own_table(make_database: Make, tmp_path: Path) -> None:
    database = make_database({str(i): made_text(i, 100) for i in range(5)})
    database.add_queries("mine", [write_documents(tmp_path / "q.jsonl", {"x": made_text(2, 100)})])
    built(database)
    result = database.neighbours(queries="mine", k=1, spare_neighbours=0)
    table = database.neighbour_table("mine")
    ids, _ = table.read(table.rows())
    assert result.table == "mine"
    view = database.view()
    assert view.chunks.texts(ids[:, 0]) == view.query_set("mine").texts(table.rows()), (
        "equal texts are each other's nearest"
    )


def test_a_missing_step_is_named(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"a": made_text(1, 100)})
    with pytest.raises(MissingStep, match="retrodb embed"):
        database.neighbours()
    with pytest.raises(MissingStep, match="retrodb embed"):
        database.index()
    database.embed()
    with pytest.raises(MissingStep, match="retrodb index"):
        database.neighbours()
    database.index()
    with pytest.raises(UsageError, match="no query set 'none'"):
        database.neighbours(queries="none")
    with pytest.raises(MissingStep, match="retrodb neighbours"):
        database.neighbour_table()
    with pytest.raises(UsageError, match="unknown exclusion"):
        database.neighbours(exclude=["colour"])
    database.ingest([write_documents(tmp_path / "more.jsonl", {"b": made_text(2, 100)})], source="more")
    database.embed()
    with pytest.raises(MissingStep, match="not indexed"):
        database.neighbours()


def test_the_result_does_not_depend_on_shards_or_workers(make_database: Make, tmp_path: Path) -> None:
    documents = {str(i): made_text(i, 100) for i in range(10)}
    whole = built(make_database(documents))
    whole.neighbours(k=2, spare_neighbours=1, exact=True)
    parts = make_database({}, "parts")
    for name in documents:
        parts.ingest([write_documents(tmp_path / f"{name}.jsonl", {name: documents[name]})], source="made")
    built(parts)
    parts.neighbours(k=2, spare_neighbours=1, exact=True)
    tables = [database.neighbour_table() for database in (whole, parts)]
    for a, b in zip(tables[0].read(tables[0].rows()), tables[1].read(tables[1].rows()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_higher_recall_reads_more_lists(make_database: Make) -> None:
    database = make_database({str(i): made_text(i, 1000) for i in range(30)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    low, high = database.neighbours(recall=0.3), database.neighbours(recall=0.99, table="high")
    assert 1 <= low.nprobe < high.nprobe <= 8
    assert low.recall_expected >= 0.3
    assert high.recall_expected >= 0.99
    ids, _ = database.neighbour_table("high").read(database.neighbour_table("high").rows())
    expected = brute_force(database, database.neighbour_table("high").rows(), 2)
    assert (np.sort(ids, axis=1) == np.sort(expected, axis=1)).mean() > 0.95


def test_documents_of_a_cluster_have_the_same_exclusion_key(make_database: Make) -> None:
    text = made_text(5, 300)
    database = make_database({"a": text, "b": f"{text} kaban", **{str(i): made_text(i + 20, 100) for i in range(4)}})
    database.near_duplicates()
    view = database.view()
    ids = np.arange(view.chunks.end)
    keys = database_keys(view, "cluster", ids)
    documents = view.chunks.document_ids(ids)
    names = [document["doc_id"] if document else "" for document in view.chunks.documents(ids)]
    first, second = names.index("a"), names.index("b")
    assert keys[first] == keys[second]
    assert documents[first] != documents[second]
    database.embed()
    database.index()
    assert database.neighbours(exclude=["document", "cluster"]).num_short == 0


def test_a_restricted_table_equals_that_of_a_database_of_these_documents(make_database: Make, tmp_path: Path) -> None:
    documents = {str(i): made_text(i, 120) for i in range(24)}
    whole = built(make_database(documents))
    result = whole.neighbours(exact=True, where="doc_id != '3'", sample=0.5, seed=1, exclude=[], k=3)
    allowed = chosen_documents(whole.view(), "doc_id != '3'", 0.5, 1)
    names = [document["doc_id"] for document in whole.view().chunks.documents(allowed) if document]
    assert 4 < len(names) < 20
    assert "3" not in names
    part = make_database({name: documents[name] for name in names}, "part")
    part.add_queries("all", [write_documents(tmp_path / "all.jsonl", documents)])
    built(part).neighbours(queries="all", exact=True, exclude=[], k=3)

    def texts(database: Database, name: str) -> list[list[str]]:
        table = database.neighbour_table(name)
        ids, _ = table.read(table.rows())
        return [database.view().chunks.texts(row) for row in ids]

    order = np.argsort(whole.view().chunks.texts(whole.neighbour_table().rows()), kind="stable")
    other = np.argsort(part.view().query_set("all").texts(part.neighbour_table("all").rows()), kind="stable")
    neighbours, expected = texts(whole, "self"), texts(part, "all")
    assert [neighbours[row] for row in order] == [expected[row] for row in other]
    entry = whole.view().snapshot.existing(TableEntry, "self")
    assert (entry.where, entry.sample, entry.seed) == ("doc_id != '3'", 0.5, 1)
    assert result.recall_reached == 1.0


def test_a_sample_stays_the_same_while_the_database_grows(make_database: Make, tmp_path: Path) -> None:
    database = make_database({str(i): made_text(i, 40) for i in range(40)})
    before = chosen_documents(database.view(), None, 0.4, 7)
    database.ingest(
        [write_documents(tmp_path / "more.jsonl", {f"m{i}": made_text(i + 50, 40) for i in range(40)})], source="more"
    )
    view = database.view()
    after, larger = chosen_documents(view, None, 0.4, 7), chosen_documents(view, None, 0.8, 7)
    assert set(before) == set(after[after < before.max() + 1])
    assert set(after) < set(larger)
    assert set(chosen_documents(view, None, 0.4, 8)) != set(after)
    assert chosen_documents(view, None, 1.0, 7) is None


def test_the_recall_reached_is_measured_and_stored(make_database: Make) -> None:
    database = make_database({str(i): made_text(i, 1000) for i in range(30)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    first = database.neighbours(recall=0.5)
    assert first.recall_reached is not None
    assert 0.4 < first.recall_reached <= 1
    assert database.neighbours(recall=0.5) == first
    assert database.view().snapshot.existing(TableEntry, "self").recall_reached == first.recall_reached


def test_memory_limit_and_device_change_no_byte(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = {str(i): made_text(i, 400) for i in range(30)}
    paths = []
    for name in ("plenty", "little", "torch"):
        database = make_database(documents, name)
        database.embed()
        database.index(factory="IVF8,SQ8")
        with monkeypatch.context() as patch:
            if name == "little":
                patch.setattr(JoinSize, "block_rows", lambda self, memory_bytes: 37)
            if name == "torch":
                patch.setattr(stage, "chosen_device", lambda _: "cpu:0")
            database.neighbours(recall=0.7)
        paths.append(
            [record.path.rpartition("/")[2] for record in database.view().manifest.files("neighbours", "self")]
        )
        table = database.neighbour_table()
        paths[-1] += [array.tobytes() for array in table.stored(table.rows())]
    assert paths[0][1:] == paths[1][1:] == paths[2][1:]


def test_too_little_memory_and_invalid_parameters_of_a_join_are_refused(make_database: Make) -> None:
    database = built(make_database({"a": made_text(1, 100)}))
    with pytest.raises(NotEnoughMemory, match=r"'neighbours' needs at least .* and the limit is 1,000 bytes"):
        retrodb.open(database.path, memory_bytes=1000).neighbours()
    with pytest.raises(UsageError, match="cuda:99"):
        database.neighbours(device="cuda:99")
    with pytest.raises(UsageError, match="unknown device"):
        database.neighbours(device="abacus")
    for fraction in (0.0, 1.5):
        with pytest.raises(UsageError, match="sample"):
            database.neighbours(sample=fraction)
    with pytest.raises(UsageError, match="condition"):
        database.neighbours(where="no_such_column = 1")
