"""Stats count what a database contains, with deletions, held-out documents and expired snapshots."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.maintain.stats import list_snapshots
from retrodb.store.collection import execute_collection, plan_collection
from retrodb.store.storage import LocalStorage

RECORDS = [
    {"id": str(n), "text": f"Sentence {n} is not like any of the others, {n} times over. " * (n + 1)} for n in range(12)
]


def write(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def db(tmp_path: Path) -> Database:
    train_byte_bpe(record["text"] for record in RECORDS).save(tmp_path / "tokenizer.json")
    return retrodb.create(
        tmp_path / "db", tokenizer=str(tmp_path / "tokenizer.json"), chunk_tokens=16, encoder="hashing:8"
    )


def test_an_empty_database_counts_nothing(db: Database) -> None:
    stats = db.stats()
    assert (stats.num_documents, stats.num_chunks, stats.num_tokens, stats.sources, stats.spaces, stats.tables) == (
        0,
        0,
        0,
        (),
        (),
        (),
    )
    assert [kind.kind for kind in stats.files] == ["settings", "tokenizer"]


def test_sources_and_reasons_add_up(db: Database, tmp_path: Path) -> None:
    db.ingest([write(tmp_path / "a.jsonl", RECORDS[:5])], source="a")
    db.ingest([write(tmp_path / "b.jsonl", RECORDS[5:])], source="b")
    db.dedup([write(tmp_path / "test.jsonl", RECORDS[6:7])])
    db.ingest([write(tmp_path / "a2.jsonl", RECORDS[:2])], source="a", mirror=True)
    stats = db.stats()
    assert [(each.source, each.num_documents, each.num_live_documents) for each in stats.sources] == [
        ("a", 5, 2),
        ("b", 7, 6),
    ]
    assert stats.num_deleted_chunks_by_reason.keys() == {"leak:test", "removed"}
    assert sum(stats.num_deleted_chunks_by_reason.values()) == stats.num_chunks - stats.num_live_chunks
    chunks = db.view().chunks
    assert (stats.num_chunks, stats.num_live_chunks) == (chunks.end, int(chunks.live_mask(0, chunks.end).sum()))
    [testset] = stats.testsets
    assert (testset.testset, testset.num_removed_documents, testset.num_hits) == ("test", 1, 1)


def test_coverage_falls_with_new_chunks_and_rises_with_embed(db: Database, tmp_path: Path) -> None:
    db.ingest([write(tmp_path / "a.jsonl", RECORDS[:5])], source="a")
    db.embed()
    assert db.stats().spaces[0].coverage == 1.0
    db.ingest([write(tmp_path / "b.jsonl", RECORDS[5:])], source="b")
    [space] = db.stats().spaces
    assert 0 < space.coverage < 1
    assert space.coverage == space.num_vectors / space.num_embeddable_chunks
    assert (space.index, space.num_parts) == (None, 0)
    db.embed()
    db.index()
    [space] = db.stats().spaces
    assert (space.coverage, space.num_parts) == (1.0, 2)


def test_expired_snapshots_are_listed_as_such(db: Database, tmp_path: Path) -> None:
    db.ingest([write(tmp_path / "a.jsonl", RECORDS[:5])], source="a")
    db.ingest([write(tmp_path / "b.jsonl", RECORDS[5:])], source="b")
    storage = LocalStorage(db.path)
    plan = plan_collection(storage, 1, datetime(2030, 1, 1, tzinfo=UTC), timedelta(days=7))
    execute_collection(storage, plan)
    listed = list_snapshots(storage)
    assert [each.snapshot for each in listed] == [0, 1, 2]
    assert [each.expired_at is None for each in listed] == [False, False, True]
    assert [each.num_documents for each in listed] == [0, 5, 12]
