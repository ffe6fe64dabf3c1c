"""SQL over a snapshot: the tables, and that nothing else can be reached."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.errors import DamagedFileError, UsageError
from retrodb.format.parquet import read_checked_groups, read_table, write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.format.rows import RowSet
from retrodb.store import conflict_keys
from retrodb.store.bounded_cache import PROCESS_CACHE
from retrodb.store.commit import Change, commit
from retrodb.store.publish import publish
from retrodb.view.chunk_set import ChunkSet

QUESTIONS = [{"id": f"q{n}", "question": f"What is {n}? " * 9, "answer": f"It is {n}. " * 20} for n in range(4)]
TEXTS = [{"id": f"t{n}", "text": f"Sentence {n} of many, and again {n}. " * (n + 1), "kind": "text"} for n in range(6)]


def build(folder: Path) -> Database:
    folder.mkdir()
    for name, records in (("texts", TEXTS), ("questions", QUESTIONS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    train_byte_bpe(json.dumps(record) for record in TEXTS + QUESTIONS).save(folder / "tokenizer.json")
    db = retrodb.create(folder / "db", tokenizer=str(folder / "tokenizer.json"), chunk_tokens=16, encoder="hashing:8")
    db.ingest([folder / "texts.jsonl"], source="texts")
    db.ingest([folder / "questions.jsonl"], source="qa", key_field="question", value_field="answer")
    changed = [{**TEXTS[0], "text": "Quite another sentence."}, *TEXTS[1:]]
    (folder / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
    db.ingest([folder / "texts.jsonl"], source="texts")
    return db


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Database:
    # What a shell, a glob or SQL could take for more than a name.
    return build(tmp_path_factory.mktemp("sql") / 'it\'s [1] * of "these"')


def rows(db: Database, query: str) -> list[tuple[Any, ...]]:
    return db.sql(query).rows


def test_chunks_are_those_of_the_view(db: Database) -> None:
    chunks = db.view().chunks
    ids = np.arange(chunks.end)
    found = rows(db, "select chunk_id, first_chunk, num_tokens, live, text from chunks order by chunk_id")
    columns = [list(column) for column in zip(*found, strict=True)]
    assert columns[0] == ids.tolist()
    assert columns[1] == chunks.document_ids(ids).tolist()
    assert columns[2] == chunks.lengths(ids).tolist()
    assert columns[3] == chunks.is_live(ids).tolist()
    live = chunks.is_live(ids).tolist()
    assert [text for text, is_live in zip(columns[4], live, strict=True) if is_live] == [
        text for text, is_live in zip(chunks.texts(ids), live, strict=True) if is_live
    ]


def test_documents_have_their_first_chunk_shard_and_life(db: Database) -> None:
    assert rows(
        db, "select doc_id, live from documents where source = 'texts' and doc_id = 't0' order by first_chunk"
    ) == [
        ("t0", False),
        ("t0", True),
    ]
    joined = "select count(*) from documents d join chunks c using (first_chunk) where c.position = 0"
    assert rows(db, joined) == rows(db, "select count(*) from documents")
    shards = "select d.source = s.source from documents d join shards s using (shard)"
    assert set(rows(db, shards)) == {(True,)}
    [(metadata,)] = rows(db, "select distinct metadata from documents where doc_id = 't1'")
    assert json.loads(metadata)["kind"] == "text"


def test_roles_tell_keys_from_values(db: Database) -> None:
    query = "select source, role from chunks join documents using (first_chunk) group by all order by all"
    assert rows(db, query) == [("qa", "key"), ("qa", "value"), ("texts", "text")]


def test_an_older_snapshot_is_asked_as_it_was(db: Database) -> None:
    assert db.sql("select count(*) from documents", as_of=1).rows == [(len(TEXTS),)]
    assert db.sql("select count(*) as n, max(text) from chunks", as_of=0).rows == [(0, None)]
    assert db.sql("select count(*) from documents", as_of=0).rows == [(0,)]


def test_files_and_shards_are_those_of_the_manifest(db: Database) -> None:
    manifest = db.view().manifest
    assert set(rows(db, "select path, size_bytes, sha256 from files")) == {
        (file.path, file.digest.size_bytes, file.digest.sha256.hex()) for file in manifest.all_files()
    }
    assert rows(db, "select sum(num_chunks) from shards") == [(manifest.shards.num_chunks.sum(),)]


def test_columns_keep_their_names_and_order(db: Database) -> None:
    result = db.sql("select 2 as b, 'x' as a")
    assert (result.columns, result.rows) == (["b", "a"], [(2, "x")])


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_parquet('{db}/documents/*.parquet')",
        "select * from glob('/*')",
        "copy (select 1) to '{out}'",
        "copy documents to '{out}'",
        "create table documents2 as select 1",
        "set enable_external_access = true",
        "attach '{out}' as other",
        "install httpfs",
        "select 1; select 2",
        "explain analyze copy (select 1) to '{out}'",
        "",
        "selec 1",
        "select nothing from documents",
        "select * from QUESTIONS",
    ],
)
def test_everything_but_one_select_over_the_tables_is_refused(query: str, db: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^SQL: "):
        db.sql(query.format(db=db.path.replace("'", "''"), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_packed_rows_keep_their_ids(tmp_path: Path) -> None:
    db = build(tmp_path / "packed")
    before = rows(db, "select chunk_id, text from chunks where live order by chunk_id")
    view = db.view()
    record = view.manifest.files("chunks")[0]
    live = view.chunks.live_mask(record.first_chunk, record.num_chunks)
    table = read_table(view.files.open(record)).filter(live)
    write = partial(write_table, table=table)
    packed = publish(view.storage, "chunks", "chunks/packed.parquet", write, rows=RowSet.from_mask(live))
    change = Change(
        transaction="compact",
        command="compact",
        arguments={},
        clock="2026-01-01T00:00:00+00:00",
        conflict_keys=conflict_keys.compact(),
        files=[replace(packed, first_chunk=record.first_chunk)],
        drops=[DropRecord(OP_DROP_FILE, record.path)],
    )
    commit(view.storage, view.snapshot, change)
    assert not live.all()
    assert rows(db, "select chunk_id, text from chunks where live order by chunk_id") == before


def test_only_files_that_a_query_needs_are_opened(tmp_path: Path) -> None:
    db = build(tmp_path / "damaged")
    for path in (Path(db.path) / "chunks").iterdir():
        path.write_bytes(b"torn")
    assert rows(db, "select count(*) from documents")
    with pytest.raises(DamagedFileError, match=r"^chunks/"):
        db.sql("select count(*) from chunks")


def test_columns_with_one_name_are_all_kept(db: Database) -> None:
    result = db.sql("select 1 as a, 2 as a, 3 as a_1, 4 as a, 5 as b")
    assert (result.columns, result.rows) == (["a", "a_2", "a_1", "a_3", "b"], [(1, 2, 3, 4, 5)])
    assert result.renamed == ("a_2", "a_3")


def with_torn_pages(path: Path) -> None:
    """Overwrite all of a Parquet file but its footer, and keep its modification time, so that it counts as verified."""
    content, times = path.read_bytes(), path.stat()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(content[:4] + bytes(len(content) - footer - 4) + content[-footer:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let everything fail that reads one value for each row."""

    def fail(*arguments: object) -> None:
        raise AssertionError("read rows")

    for name in names:
        monkeypatch.setattr(ChunkSet, name, fail)


def test_counting_reads_no_page_and_no_bitmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = build(tmp_path / "counted")
    queries = ["select count(*) from documents", "select count(*) from chunks", "select sum(num_chunks) from shards"]
    counts = [rows(db, query) for query in queries]
    for kind in ("documents", "chunks"):
        for path in (Path(db.path) / kind).iterdir():
            with_torn_pages(path)
    forbid(monkeypatch, "_read_layout", "_read_deleted_mask", "live_mask", "is_live", "__init__")
    assert [rows(db, query) for query in queries] == counts
    with pytest.raises(DamagedFileError):
        db.sql("select max(num_chunks) from documents")


def test_no_bitmap_is_read_unless_a_query_uses_live(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["select max(first_chunk), min(doc_id) from documents", "select max(chunk_id), min(text) from chunks"]
    answers = [rows(db, query) for query in queries]
    forbid(monkeypatch, "_read_layout", "_read_deleted_mask", "live_mask", "is_live", "__init__")
    assert [rows(db, query) for query in queries] == answers
    with pytest.raises(AssertionError, match="read rows"):
        db.sql("select count(*) from documents where live")


def test_live_is_read_for_some_shards_at_a_time(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rows(db, "select chunk_id, chunks.live, documents.live from chunks join documents using (first_chunk)")
    monkeypatch.setattr(PROCESS_CACHE, "_limit_bytes", lambda: 0)
    query = "select chunk_id, chunks.live, documents.live from chunks join documents using (first_chunk)"
    assert sorted(rows(db, query)) == sorted(expected)
    assert {live for _, live, _ in expected} == {True, False}


def test_compacted_documents_are_live_if_a_chunk_is(db: Database, tmp_path: Path) -> None:
    db = retrodb.open(shutil.copytree(db.path, tmp_path / "compacted"))
    db.filter(where="doc_id = 't1'")
    query = "select doc_id, source from documents where live order by all"
    chunks = "select chunk_id, text from chunks where live order by all"
    before, texts = rows(db, query), rows(db, chunks)
    db.compact(min_deleted=0)
    assert (rows(db, query), rows(db, chunks)) == (before, texts)
    assert rows(db, "select count(*) from documents") == [(len(before),)]


def test_a_file_that_live_needs_is_reported_as_itself(db: Database, tmp_path: Path) -> None:
    db = retrodb.open(shutil.copytree(db.path, tmp_path / "damaged"))
    for path in (Path(db.path) / "tombstones").iterdir():
        path.write_bytes(b"torn")
    assert rows(db, "select count(*) from documents")
    with pytest.raises(DamagedFileError, match=r"^tombstones/"):
        db.sql("select count(*) from documents where live")


def test_a_condition_on_the_shard_reads_no_other_file(tmp_path: Path) -> None:
    db = build(tmp_path / "shards")
    of_shard = {shard: rows(db, f"select doc_id from documents where shard = {shard}") for shard in range(3)}
    everything = rows(db, "select shard, doc_id from documents")
    assert of_shard == {shard: [(doc,) for number, doc in everything if number == shard] for shard in range(3)}
    for record in db.view().manifest.files("documents")[1:]:
        (Path(db.path) / record.path).write_bytes(b"torn")
    assert rows(db, "select doc_id from documents where shard < 1") == of_shard[0]
    with pytest.raises(DamagedFileError, match=r"^documents/"):
        db.sql("select doc_id from documents where shard in (0, 2)")


@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_are_the_same_with_any_number_of_threads(
    num_threads: int, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyarrow.cpu_count", lambda: num_threads)
    assert [chunk for (chunk,) in rows(db, "select chunk_id from chunks")] == list(range(db.view().chunks.end))
    assert len(rows(db, "select text from chunks limit 1")) == 1
    table = db.view().chunks
    live = [bool(is_live) for (is_live,) in rows(db, "select live from chunks order by chunk_id")]
    assert live == table.is_live(np.arange(table.end)).tolist()


def test_row_groups_of_another_length_are_refused(tmp_path: Path) -> None:
    db = build(tmp_path / "groups")
    view = db.view()
    path = view.files.open(view.manifest.files("documents")[0])
    table = read_table(path)
    write_table(path, table, row_group_rows=2)
    with pytest.raises(DamagedFileError, match="row groups"):
        read_checked_groups(path, table.schema, table.num_rows, [0], ["doc_id"])


def test_a_wrong_name_of_a_column_reads_no_file(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.view.sql_rows.read_checked_groups", lambda path, *_: pytest.fail(f"read {path}"))
    with pytest.raises(UsageError, match="no_such_column"):
        db.sql("select no_such_column from chunks")
