"""Real posts of a forum: tagged by a word list and by a classifier that is trained here, filtered, and brought back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import zstandard
from classifier import train_classifier
from real_corpora import DATA

import retrodb
from retrodb.corpus.train_tokenizer import train_byte_bpe
from retrodb.database import Database
from retrodb.view.where import documents_where

POSTS = DATA / "toxicity"
pytestmark = [pytest.mark.corpora, pytest.mark.skipif(not POSTS.exists(), reason="no corpora next to the repository")]


@pytest.fixture(scope="module")
def every() -> list[dict[str, Any]]:
    """All posts, shuffled."""
    with zstandard.open(POSTS / "stormfront-posts.jsonl.zst", "rb") as file:
        lines = file.read().splitlines()
    return random.Random(0).sample([orjson.loads(line) for line in lines], len(lines))


@pytest.fixture(scope="module")
def posts(every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the database holds; the classifier learns from the others."""
    return every[:1500]


@pytest.fixture
def database(posts: list[dict[str, Any]], tmp_path: Path) -> Database:
    train_byte_bpe([post["text"] for post in posts], 2000).save(tmp_path / "tokenizer.json")
    (tmp_path / "posts.jsonl").write_bytes(b"".join(orjson.dumps(post) + b"\n" for post in posts))
    database = retrodb.create(tmp_path / "db", tokenizer=str(tmp_path / "tokenizer.json"), encoder="hashing:64")
    database.ingest([tmp_path / "posts.jsonl"], source="forum")
    database.embed()
    database.index()
    database.neighbours(k=2)
    return database


def assert_none_left(database: Database, documents: np.ndarray, out: Path) -> None:
    """Neither search nor the export gives a chunk of these documents; the texts asked for are their own."""
    view = database.view()
    texts = view.chunks.texts(documents[:60], deleted_too=True)
    deleted_ids = set(np.flatnonzero(np.isin(view.chunks.document_ids(np.arange(view.chunks.end)), documents)).tolist())
    returned = {hit.chunk_id for hits in database.search(texts, k=10) for hit in hits}
    assert returned
    assert not returned & deleted_ids
    database.export(out)
    chunks = pq.read_table(out / "chunks").column("chunk_id").to_pylist()
    rows = pq.read_table(out / "rows")
    near = {chunk for neighbours in rows.column("neighbours").to_pylist() for chunk in neighbours}
    assert not {*chunks, *near, *rows.column("row").to_pylist()} & deleted_ids


def test_posts_of_a_word_list_go_and_come_back(database: Database, tmp_path: Path) -> None:
    tagged = database.tag("toxic", wordlist=str(POSTS / "ldnoobw-en.txt"))
    gone = documents_where(database.view(), "toxic > 0.02")
    assert tagged.num_positive > len(gone) > 20
    assert database.filter(where="toxic > 0.02", reason="toxic").num_documents == len(gone)
    assert_none_left(database, gone, tmp_path / "out")
    assert database.undelete("toxic").num_live_documents == len(gone)
    hits = database.search(database.view().chunks.texts(gone[:60]), k=1)
    assert {first_hits[0].chunk_id for first_hits in hits} & set(gone.tolist())


def test_posts_of_a_trained_classifier_go_and_come_back(
    database: Database, every: list[dict[str, Any]], posts: list[dict[str, Any]], tmp_path: Path
) -> None:
    labels = {post["id"]: int(post["hate"]) for post in posts}
    assert 100 < sum(labels.values()) < 1000
    known = every[len(posts) :]
    folder = train_classifier(
        tmp_path / "model", [post["text"] for post in known], [int(post["hate"]) for post in known], epochs=3
    )
    database.tag("hate", hf_model=str(folder), label="toxic")
    ids = documents_where(database.view(), "hate > 0.5")
    names = {document["doc_id"] for document in database.view().chunks.documents(ids) if document}
    flagged = [labels[name] for name in names]
    assert sum(flagged) / len(flagged) > 1.5 * sum(labels.values()) / len(labels)
    assert database.filter(where="hate > 0.5", reason="hate").num_documents == len(ids)
    assert_none_left(database, ids, tmp_path / "out")
    assert database.undelete("hate").num_live_documents == len(ids)
