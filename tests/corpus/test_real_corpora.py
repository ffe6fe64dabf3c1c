"""Every file of the real corpora is read or refused, and the sums agree with the standard library's own count."""

from __future__ import annotations

import collections
import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from real_corpora import content, corpus, unpack

from retrodb.corpus.document import Document, Fields

from .conftest import read_all, rejects, texts

pytestmark = pytest.mark.corpora


def test_wikipedia_is_read_whole() -> None:
    path = corpus("wikipedia-en.jsonl.zst")
    expected = [json.loads(line)["text"] for line in content(path.name).splitlines()]
    assert texts(read_all(path)) == expected
    assert len(expected) == 29_005


def test_statutes_are_read_whole_in_any_split() -> None:
    path = corpus("dc-law.parquet")
    rows = pq.read_table(path).to_pylist()
    documents = [record for record in read_all(path, target_bytes=1 << 20) if isinstance(record, Document)]
    assert [(record.doc_id, record.text) for record in documents] == [(row["id"], row["text"]) for row in rows]


def test_books_are_the_members_of_their_archive(tmp_path: Path) -> None:
    path = corpus("classic-books.md.tar.zst")
    folder = unpack(path.name, tmp_path)
    expected = {file.relative_to(folder).as_posix(): file.read_text("utf-8") for file in folder.rglob("*.md")}
    texts = {record.doc_id: record.text for record in read_all(path) if isinstance(record, Document)}
    assert {name: text.replace("\r\n", "\n") for name, text in texts.items()} == expected
    assert len(expected) == 171


@pytest.mark.parametrize("name", ["mmlu-test", "gsm8k-test", "wikitext2-test", "pubmedqa", "xquad-paragraphs"])
def test_test_sets_are_read_whole(name: str) -> None:
    path = corpus(f"eval/{name}.jsonl.zst")
    records = read_all(path)
    assert len(records) == len(content(f"eval/{path.name}").splitlines())
    assert not rejects(records)


def test_questions_and_answers_are_keys_and_values() -> None:
    path = corpus("eval/xquad-questions.jsonl.zst")
    records = read_all(path, fields=Fields(key="question", value="answer"))
    expected = [(row["question"], row["answer"]) for row in map(json.loads, content(f"eval/{path.name}").splitlines())]
    assert [(r.text, r.value) for r in records if isinstance(r, Document)] == expected


def test_dolma_documents_are_read_and_attributes_refused(tmp_path: Path) -> None:
    folder = unpack("web.tar.zst", tmp_path) / "dolma" / "tests" / "data"
    for path in sorted(folder.rglob("*.json.gz")):
        rows = [
            json.loads(line)
            for line in subprocess.run(["zcat", path], check=True, capture_output=True).stdout.splitlines()
        ]
        records = read_all(path)
        usable = [row["text"] for row in rows if row.get("text", "").strip()]
        assert texts(records) == usable, path
        assert len(rejects(records)) == len(rows) - len(usable)


def test_every_file_of_the_web_archive_is_read_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    path = corpus("web.tar.zst")
    records = read_all(path)
    folder = unpack(path.name, tmp_path)
    from_folder = read_all(folder)
    assert sorted(texts(from_folder)) == sorted(texts(records))
    assert len(from_folder) == len(records)
    assert len(texts(records)) > 390
    reasons = collections.Counter(reason for _, reason in rejects(records))
    assert reasons["truncated"] >= 1
    assert reasons["malformed"] >= 2
