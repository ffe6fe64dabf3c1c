"""Ten articles of a Wikipedia extract are purged, and the proof searches all remaining files."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_corpora import corpus

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe

pytestmark = pytest.mark.corpora
ARTICLES = 1500


def test_ten_articles_are_purged(tmp_path: Path) -> None:
    articles = corpus("wikipedia-en.jsonl.zst")
    train_byte_bpe(["The articles of an encyclopedia and their titles. 百科全書\n"] * 20, 400).save(tmp_path / "t.json")
    database = retrodb.create(tmp_path / "db", tokenizer=str(tmp_path / "t.json"), encoder="hashing:64")
    database.ingest([articles], source="wikipedia", limit=ARTICLES)
    database.embed()
    database.index()
    database.neighbours(recall=0.8)
    rows = database.sql("select doc_id from documents order by first_chunk").rows
    names = [doc_id for (doc_id,) in rows[7 :: ARTICLES // 10]]
    before = database.stats()
    result = database.purge(names)
    assert (result.num_documents, result.unknown_names) == (10, ())
    assert result.proof is not None
    assert result.proof.remaining == ()
    assert result.proof.num_files > 20
    assert all(result.proof.num_compared[kind] > 0 for kind in result.proof.num_traces)
    stats = database.stats()
    assert (stats.num_documents, stats.num_live_chunks) == (
        before.num_documents - 10,
        before.num_live_chunks - result.num_chunks,
    )
    assert database.check(read_data=True).damaged == ()
    assert database.ingest([articles], source="wikipedia", limit=ARTICLES + 1).num_added == 1
