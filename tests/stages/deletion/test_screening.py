"""Tag, filter, undelete: scores are kept, decisions are obeyed at once by everything that reads, and can be taken back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database, DocumentName
from retrodb.errors import MismatchError, UsageError
from retrodb.view.where import documents_where

Make = Callable[..., Database]


def texts(count: int) -> dict[str, str]:
    """Made documents; every third has the bad word, some of them twice."""
    bad = {n: " xbadx" * (1 + n % 2) for n in range(0, count, 3)}
    return {f"d{n}": made_text(n, 20 + 30 * (n % 5)) + bad.get(n, "") for n in range(count)}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("xbadx\nnever said\n")
    return tmp_path / "words.txt"


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    database = make_database(texts(12))
    database.ingest(
        [write_documents(tmp_path / "more.jsonl", {"a/b": made_text(50, 90), "m": made_text(51, 9)})], source="more"
    )
    return database


def names(database: Database, where: str = "true") -> set[str]:
    view = database.view()
    return {document["doc_id"] for document in view.chunks.documents(documents_where(view, where)) if document}


def test_scores_stay_and_only_new_documents_are_scored(database: Database, words: Path, tmp_path: Path) -> None:
    first = database.tag("bad", wordlist=str(words), measure="count")
    assert (first.num_documents, first.num_tagged_before, first.num_positive, first.max_score) == (14, 0, 4, 2.0)
    assert names(database, "bad > 0") == {"d0", "d3", "d6", "d9"}
    assert names(database, "bad > 1") == {"d3", "d9"}
    head = database.view().snapshot.number
    again = database.tag("bad", wordlist=str(words), measure="count")
    assert (again.snapshot, again.num_documents, again.num_tagged_before) == (head, 0, 14)
    database.ingest([write_documents(tmp_path / "new.jsonl", {"new": "xbadx " * 70})], source="more")
    assert names(database, "bad is null") == {"new"}
    new = database.tag("bad", wordlist=str(words), measure="count")
    assert (new.num_documents, new.num_tagged_before, new.max_score) == (1, 14, 70.0)
    assert len(database.view().manifest.files("attributes", "bad")) == 3
    assert names(database.__class__(database.path), "bad > 60") == {"new"}


def test_documents_that_come_back_are_scored_then(database: Database, words: Path) -> None:
    database.filter(doc_ids=["d3"])
    assert database.tag("bad", wordlist=str(words)).num_documents == 13
    database.undelete("filter")
    assert names(database, "bad is null") == {"d3"}
    assert database.tag("bad", wordlist=str(words)).num_documents == 1
    assert names(database, "bad > 0") == {"d0", "d3", "d6", "d9"}


def test_another_tagger_of_the_name_is_refused_unless_all_is_scored_anew(database: Database, words: Path) -> None:
    database.tag("bad", wordlist=str(words))
    words.write_text("xbadx\n")
    with pytest.raises(MismatchError, match=r"entries 2.*entries 1.*--retag"):
        database.tag("bad", wordlist=str(words))
    assert database.tag("bad", wordlist=str(words), retag=True, dry_run=True).num_documents == 14
    result = database.tag("bad", regex="xbadx$", retag=True)
    assert (result.num_documents, result.kind) == (14, "regex")
    assert database.tag("bad", regex="xbadx$").num_documents == 0
    assert names(database, "bad > 0") == {"d0", "d3", "d6", "d9"}
    assert len(database.view().manifest.files("attributes", "bad")) == 2


@pytest.mark.parametrize("name", ["", "Bad", "a-b", "text", "num_tokens", "../x", "1a", "a" * 65])
def test_names_that_no_condition_could_use_are_refused(database: Database, name: str) -> None:
    with pytest.raises(UsageError, match=r"tagger|column"):
        database.tag(name, regex="a")


def test_scores_have_the_same_bytes_whoever_made_them(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name, workers in (("one", 1), ("two", 2)):
        database = retrodb.open(make_database(texts(9), name).path, workers=workers)
        database.ingest([write_documents(tmp_path / f"{name}2.jsonl", texts(3))], source="other")
        database.tag("bad", regex="xbadx")
        made.append([file.digest for file in database.view().manifest.files("attributes")])
    assert made[0] == made[1]
    assert len(made[0]) == 2


def test_an_empty_database_is_tagged_and_filtered(make_database: Make, tmp_path: Path) -> None:
    database = make_database({})
    assert database.tag("bad", regex="xbadx").num_documents == 0
    assert database.filter(where="bad > 0").num_documents == 0
    with pytest.raises(UsageError, match="no source"):
        database.filter(source="made")
    database.ingest([write_documents(tmp_path / "in.jsonl", texts(4))], source="made")
    assert database.tag("bad", regex="xbadx").num_documents == 4


def assert_gone_everywhere(database: Database, deleted_names: set[str], before: dict[str, str], out: Path) -> None:
    """No reader gives a chunk of these documents, neither as hit, neighbour, continuation nor row."""
    view = database.view()
    ids = np.arange(view.chunks.end)
    of = [document["doc_id"] if document else None for document in view.chunks.documents(ids)]
    deleted_ids = {i for i in ids.tolist() if of[i] in deleted_names}
    assert not view.chunks.is_live(np.array(sorted(deleted_ids), np.int64)).any()
    assert (view.chunks.continuation(np.array(sorted(deleted_ids), np.int64)) == -1).all()
    assert not any(view.chunks.texts(np.array(sorted(deleted_ids), np.int64)))
    assert (view.chunks.gather_tokens(np.array(sorted(deleted_ids), np.int64)).lengths == 0).all()
    for hits in database.search([before[name] for name in deleted_names], k=20):
        assert not {hit.doc_id for hit in hits} & deleted_names
        assert not any(hit.continuation and hit.continuation in before[name] for hit in hits for name in deleted_names)
    table = database.neighbour_table()
    assert not set(table.rows().tolist()) & deleted_ids
    near, _ = table.read(ids)
    assert not set(near.ravel().tolist()) & deleted_ids
    assert not set(view.chunks.continuation(near.ravel()).tolist()) & deleted_ids
    assert not set(database.view().chunks.continuation(ids).tolist()) & deleted_ids
    database.export(out)
    exported = [pq.read_table(path) for path in sorted(out.rglob("*.parquet"))]
    assert exported
    for rows in exported:
        for name in ("chunk_id", "row", "neighbours", "neighbour_ids", "continuation_ids"):
            if name in rows.column_names:
                assert not set(np.ravel(rows.column(name).combine_chunks().to_pylist()).tolist()) & deleted_ids
    live = database.sql("select doc_id from documents where live").rows
    assert not {name for (name,) in live} & deleted_names
    assert database.sql(
        "select count(*) from chunks join documents using (first_chunk) where chunks.live and not documents.live"
    ).rows == [(0,)]


def test_a_filter_is_obeyed_at_once_everywhere_and_taken_back(database: Database, words: Path, tmp_path: Path) -> None:
    before = texts(12)
    database.embed()
    database.index()
    database.neighbours(k=3)
    database.tag("bad", wordlist=str(words))
    rows = database.neighbour_table().read(np.arange(database.view().chunks.end))
    hits = database.search([before["d3"]], k=3)
    result = database.filter(where="bad > 0", reason="toxic")
    deleted_names = {"d0", "d3", "d6", "d9"}
    assert (result.num_documents, result.num_documents_by_source) == (4, {"made": 4})
    assert result.num_chunks == database.view().chunks.tombstones.count_by_reason()["toxic"]
    assert_gone_everywhere(database, deleted_names, before, tmp_path / "out")
    assert names(database) == {*before, "a/b", "m"} - deleted_names
    back = database.undelete("toxic")
    assert (back.num_documents, back.num_live_documents, back.num_chunks) == (4, 4, result.num_chunks)
    assert names(database) == {*before, "a/b", "m"}
    assert database.search([before["d3"]], k=3) == hits
    for now, then in zip(database.neighbour_table().read(np.arange(database.view().chunks.end)), rows, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_same_rule_again_takes_what_came_since_and_else_commits_nothing(database: Database, tmp_path: Path) -> None:
    first = database.filter(where="text like '%xbadx%'", reason="toxic")
    again = database.filter(where="text like '%xbadx%'", reason="toxic")
    assert (again.num_documents, again.snapshot) == (0, first.snapshot)
    database.ingest([write_documents(tmp_path / "new.jsonl", {"new": "fine xbadx"})], source="more")
    new = database.filter(where="text like '%xbadx%'", reason="toxic")
    assert (new.num_documents, new.num_documents_by_source) == (1, {"more": 1})
    assert len(database.view().manifest.files("tombstones")) == 2


def test_a_dry_run_shows_what_matched_and_deletes_nothing(database: Database, words: Path) -> None:
    head = database.tag("bad", wordlist=str(words)).snapshot
    result = database.filter(where="bad > 0", dry_run=True)
    assert (result.num_documents, result.snapshot, result.dry_run) == (4, head, True)
    assert [document.doc_id for document in result.sample] == ["d0", "d3", "d6", "d9"]
    assert all(document.matched == ("xbadx",) and "xbadx" in document.excerpt for document in result.sample)
    by_text = database.filter(where="text like '%xbadx%'", dry_run=True)
    assert [document.matched for document in by_text.sample] == [("xbadx",)] * 4
    plain = database.filter(source="more", dry_run=True).sample
    assert [(document.matched, document.excerpt) for document in plain] == [
        ((), made_text(50, 90)[:240]),
        ((), made_text(51, 9)),
    ]
    words.unlink()
    assert database.filter(where="bad > 0", dry_run=True).sample[0].matched == ()
    assert database.view().snapshot.number == head


def test_documents_go_by_name(database: Database) -> None:
    names_of_all = ["d1", DocumentName("d2", "made"), "a/b", "made/d3", "nothing", DocumentName("d1", "more")]
    result = database.filter(doc_ids=names_of_all, dry_run=True)
    assert result.num_documents == 3
    assert result.unknown_names == ("made/d3", "nothing", '{"id": "d1", "source": "more"}')
    database.filter(doc_ids=["d1", DocumentName("d2", "made"), "a/b", "d1"])
    assert names(database) == {*texts(12), "m"} - {"d1", "d2"}
    assert database.filter(doc_ids=[]).num_documents == 0


def test_choices_together_mean_both(database: Database) -> None:
    assert database.filter(
        where="num_tokens > 0", source="more", doc_ids=["m", "d1"], dry_run=True
    ).num_documents_by_source == {"more": 1}
    assert database.filter(source="more").num_documents == 2
    with pytest.raises(UsageError, match=r"no source 'none'.*made, more"):
        database.filter(source="none")
    with pytest.raises(UsageError, match="no documents are chosen"):
        database.filter()


@pytest.mark.parametrize(
    "reason", ["superseded", "removed", "purged", "near-duplicate", "leak:x", " ", "a\nb", "x" * 101]
)
def test_reasons_of_other_commands_are_refused(database: Database, reason: str) -> None:
    with pytest.raises(UsageError, match="reason"):
        database.filter(where="true", reason=reason)


def test_undelete_ends_one_reason_only(database: Database, tmp_path: Path) -> None:
    leak = write_documents(tmp_path / "exam.jsonl", {"q": texts(12)["d4"]})
    assert database.dedup([leak])[0].num_removed_documents == 1
    database.filter(where="doc_id in ('d1', 'd3')", reason="toxic")
    database.filter(doc_ids=["d3", "d4"], reason="withdrawn")
    result = database.undelete("withdrawn")
    assert (result.num_documents, result.num_live_documents) == (2, 0)
    assert not names(database) & {"d1", "d3", "d4"}
    assert database.undelete("withdrawn").num_documents == 0
    assert database.undelete("toxic", where="doc_id = 'd3'").num_live_documents == 1
    assert names(database) & {"d1", "d3", "d4"} == {"d3"}
    assert database.undelete("toxic", doc_ids=["d1", "zz"], dry_run=True).unknown_names == ("zz",)
    assert database.undelete("toxic", source="more").num_documents == 0
    assert database.undelete("leak:exam").num_live_documents == 1


def test_what_cannot_come_back_is_refused_with_the_reason(database: Database, tmp_path: Path) -> None:
    database.ingest([write_documents(tmp_path / "new.jsonl", {"d1": "another text"})], source="made")
    for reason, why in (
        ("superseded", "newer version"),
        ("purged", "cannot be revoked"),
        ("removed", "source"),
    ):
        with pytest.raises(UsageError, match=f"{reason}.*{why}"):
            database.undelete(reason)
    with pytest.raises(UsageError, match=r"'typo'.*was deleted"):
        database.undelete("typo")
    database.filter(doc_ids=["d1"], reason="toxic")
    with pytest.raises(UsageError, match=r"There are: toxic\."):
        database.undelete("typo")
    assert len(database.view().chunks.tombstones.count_by_reason()) == 2
    assert names(database, "doc_id = 'd1'") == set()
    database.undelete("toxic")
    assert names(database, "text = 'another text'") == {"d1"}
    assert names(database, "doc_id = 'd1' and text <> 'another text'") == set()


def test_a_function_scores_in_other_processes_too(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_lengths.py").write_text("def score(texts):\n    return [len(text) for text in texts]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = retrodb.open(database.path, workers=2).tag("length", python="made_lengths:score")
    assert result.max_score == max(len(text) for text in [*texts(12).values(), made_text(50, 90)])
    assert names(database, "length = num_chars") == {*texts(12), "a/b", "m"}
