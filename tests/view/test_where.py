"""Conditions over documents choose what a plain look at every document chooses, and can reach nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.errors import DamagedFileError, UsageError
from retrodb.view import where as module
from retrodb.view.where import documents_where

RECORDS: list[dict[str, Any]] = [
    {"id": f"d{n}", "text": f"Sentence {n} of many. " * (n % 5 + 1), "lang": ["en", "de", "fr"][n % 3], "n": n}
    for n in range(30)
]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """Documents of two sources, some of them superseded, and questions with answers."""
    folder = tmp_path_factory.mktemp("where")
    train_byte_bpe(json.dumps(record) for record in RECORDS).save(folder / "tokenizer.json")
    db = retrodb.create(folder / "db", tokenizer=str(folder / "tokenizer.json"), chunk_tokens=8, encoder="hashing:8")

    def ingest(records: list[dict[str, Any]], source: str, **options: Any) -> None:
        (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        db.ingest([folder / "in.jsonl"], source=source, **options)

    ingest(RECORDS[:20], "first")
    ingest(RECORDS[20:], "second")
    ingest([{**RECORDS[3], "text": "Three, anew."}], "first")
    ingest(
        [{"id": "q", "question": "Why? " * 9, "answer": "Thus. " * 9}], "qa", key_field="question", value_field="answer"
    )
    return db


def names(db: Database, where: str) -> set[str]:
    ids = documents_where(db.view(), where)
    assert np.all(np.diff(ids) > 0)
    return {document["doc_id"] for document in db.view().chunks.documents(ids) if document}


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("metadata->>'lang' = 'en'", lambda r: r["lang"] == "en"),
        ("metadata->>'lang' = 'en' and (metadata->>'n')::int > 12", lambda r: r["lang"] == "en" and r["n"] > 12),
        ("source = 'second'", lambda r: r["n"] >= 20),
        ("source <> 'qa' and num_chars > 60", lambda r: len(r["text"]) > 60),
        ("TEXT like '%Sentence 1%'", lambda r: "Sentence 1" in r["text"]),
        ("text like 'Sentence 2_ of many. Sentence%' and source = 'second'", lambda r: r["n"] >= 20 and r["n"] % 5),
        ("doc_id in ('d1', 'd29', 'none')", lambda r: r["n"] in (1, 29)),
        ("doc_id = 'd4' -- and a comment", lambda r: r["n"] == 4),
        ("added_at < '2000-01-01'", lambda r: False),
        ("doc_id = (select 'd5')", lambda r: r["n"] == 5),
        ("null", lambda r: False),
    ],
)
def test_chosen_are_those_that_satisfy_the_condition(
    db: Database, where: str, chosen: Callable[[dict[str, Any]], bool]
) -> None:
    assert names(db, where) - {"d3"} == {r["id"] for r in RECORDS if chosen(r)} - {"d3"}


def test_only_live_documents_are_chosen(db: Database) -> None:
    ids = documents_where(db.view(), "true")
    assert len(ids) == len(RECORDS) + 1
    assert db.view().chunks.is_live(ids).all()
    assert names(db, "text like 'Three, anew.'") == {"d3"}
    assert names(db, "doc_id = 'd3' and text like 'Sentence%'") == set()
    assert len(documents_where(db.view(as_of=1), "text like 'Sentence%'")) == 20
    assert len(documents_where(db.view(as_of=0), "text = 'x' or metadata->>'n' = '1'")) == 0


def test_keys_and_values_are_one_text(db: Database) -> None:
    assert names(db, "text like 'Why?%Thus.%'") == {"q"}


@pytest.mark.parametrize("chunks", [1, 7, 1 << 15])
def test_batches_of_texts_do_not_show(db: Database, monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    monkeypatch.setattr(module, "_TEXT_BATCH_CHUNKS", chunks)
    assert names(db, "text like 'Sentence 2_ of many. Sentence%' and num_tokens > 0") == {
        r["id"] for r in RECORDS[20:] if r["n"] % 5
    }


@pytest.mark.parametrize(
    "where",
    [
        "",
        "selec",
        "nothing = 1",
        "true) union select 5 --",
        "true; drop table documents",
        "true, false",
        "doc_id = 'd1' order by 1",
        "first_chunk in (select first_chunk from documents)",
        "first_chunk = (select count(*) from read_csv('/etc/passwd'))",
        "first_chunk = (select count(*) from read_text('/etc/passwd'))",
        "first_chunk = (select count(*) from read_parquet('{db}/documents/*.parquet'))",
        "first_chunk = (select count(*) from '{db}/retrodb.toml')",
        "first_chunk = (select count(*) from glob('/*'))",
        "first_chunk = (select count(*) from read_parquet('https://example.org/x.parquet'))",
        "first_chunk = (select count(*) from duckdb_secrets() where read_blob('/etc/passwd') is null)",
        "first_chunk = (select count(*) from RECORDS)",
        "attach '{db}/other' as other",
        "copy (select 1) to '{db}/other'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "cast(text as int) > 1",
    ],
)
def test_everything_but_a_condition_over_the_columns_is_refused(db: Database, where: str) -> None:
    before = sorted(Path(db.path).iterdir())
    with pytest.raises(UsageError, match=r"^condition: .*may name: .*num_tokens"):
        documents_where(db.view(), where.format(db=db.path))
    assert sorted(Path(db.path).iterdir()) == before


def test_a_condition_reads_only_the_files_that_it_names(db: Database, tmp_path: Path) -> None:
    import shutil

    copy = retrodb.open(shutil.copytree(db.path, tmp_path / "copy"))
    for path in (tmp_path / "copy" / "chunks").iterdir():
        path.write_bytes(b"torn")
    assert len(documents_where(copy.view(), "num_chunks > 0")) == len(RECORDS) + 1
    with pytest.raises(DamagedFileError, match=r"^chunks/"):
        documents_where(copy.view(), "text = 'x'")
