"""Search by texts and vectors: it returns live chunks with their documents and continuations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database, read_queries
from retrodb.errors import DamagedFileError, InputError, MismatchError, MissingStep, UsageError
from retrodb.format.entries import IndexEntry
from retrodb.stages.index import operating_point
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    made = make_database({str(i): made_text(i, 200) for i in range(6)})
    made.embed()
    made.index()
    return made


def first_chunk(database: Database, doc_id: str) -> list[str]:
    """The text of the first chunk of a document."""
    rows = database.view().chunks.documents_table(database.view().chunks.ranges[0]).to_pylist()
    return database.view().chunks.texts(np.array([row["first_row"] for row in rows if row["doc_id"] == doc_id]))


@pytest.mark.parametrize("text", ["words", b"words"])
def test_one_text_is_not_a_sequence_of_letters(database: Database, text: Any) -> None:
    searcher = database.searcher()
    for call in (searcher.hits, searcher.arrays, lambda texts, k: searcher.encode(texts)):
        with pytest.raises(UsageError, match=r"sequence of texts.*Write \[b?'words'\]"):
            call(text, 1)


def test_the_text_of_a_chunk_finds_it_with_its_continuation(database: Database) -> None:
    chunks = database.view().chunks
    [text] = chunks.texts(np.array([1]))
    [[hit]] = database.search([text], k=1)
    assert (hit.text, hit.source, hit.position) == (text, "made", 1)
    assert hit.continuation == chunks.texts(chunks.continuation(np.array([1])))[0] != ""


def test_vectors_can_be_searched_and_another_dimension_is_refused(database: Database) -> None:
    vectors = database.view().vectors("default", np.array([0, 3])).astype(np.float32)
    hits = database.search(vectors, k=1)
    assert [first.chunk_id for first, *_ in hits] == [0, 3]
    with pytest.raises(MismatchError, match="dimension"):
        database.search(vectors[:, :7])


def test_search_returns_no_deleted_chunk(database: Database, tmp_path: Path) -> None:
    [text] = first_chunk(database, "3")
    assert database.search([text], k=1)[0][0].doc_id == "3"
    database.dedup([write_documents(tmp_path / "t.jsonl", {"x": made_text(3, 200)})], name="t")
    assert all(hit.doc_id != "3" for hit in database.search([text], k=50)[0])


def test_a_source_restricts_the_search(database: Database, tmp_path: Path) -> None:
    text = made_text(3, 200)
    database.ingest([write_documents(tmp_path / "b.jsonl", {"far": made_text(90, 40)})], source="b")
    database.embed()
    database.index()
    assert [hit.doc_id for hit in database.search([text], k=2, source="b")[0]][:1] == ["far"]
    with pytest.raises(UsageError, match="There are: b, made"):
        database.search([text], source="c")


def test_a_key_value_document_is_found_by_its_key_and_shown_with_its_whole_value(
    make_database: Make, tmp_path: Path
) -> None:
    database = make_database({})
    answers = {f"{made_text(i, 12)}?": made_text(100 + i, 300) for i in range(5)}
    path = tmp_path / "qa.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"q": q, "a": a}) + b"\n" for q, a in answers.items()))
    database.ingest([path], source="qa", key_field="q", value_field="a")
    database.embed()
    database.index()
    for question, answer in answers.items():
        [[hit]] = database.search([question], k=1)
        assert (hit.text, hit.continuation) == (question, answer)


def test_an_older_snapshot_can_be_searched(database: Database, tmp_path: Path) -> None:
    number = database.view().snapshot.number
    [text] = first_chunk(database, "3")
    database.dedup([write_documents(tmp_path / "t.jsonl", {"x": made_text(3, 200)})], name="t")
    assert database.search([text], k=1, as_of=number)[0][0].doc_id == "3"


def test_search_before_embed_names_the_missing_command(make_database: Make) -> None:
    with pytest.raises(MissingStep, match="retrodb embed"):
        make_database({"a": "ka lo mi"}).search(["ka"])


def test_a_k_of_zero_is_refused(database: Database) -> None:
    with pytest.raises(UsageError, match="at least one"):
        database.search(["ka"], k=0)


def test_a_condition_restricts_the_search(database: Database) -> None:
    [hits] = database.search([made_text(3, 200)], k=50, where="doc_id = '5'")
    assert {hit.doc_id for hit in hits} == {"5"}
    assert database.search([made_text(3, 200)], where="doc_id = 'none'") == [[]]
    with pytest.raises(UsageError, match="condition"):
        database.search(["ka"], where="nonsense > 1")


def test_arrays_are_padded_after_the_last_chunk(database: Database) -> None:
    vectors = database.view().vectors("default", np.array([0, 3, 5])).astype(np.float32)
    count = database.stats().spaces[0].num_vectors
    ids, values = database.search_arrays(vectors, count + 4)
    assert (ids.shape, ids.dtype, values.dtype) == ((3, count + 4), np.int64, np.float32)
    assert ids[:, 0].tolist() == [0, 3, 5]
    assert (ids[:, count:] == -1).all()
    assert (values[:, count:] == -np.inf).all()
    assert database.search_arrays(vectors[:0], 2)[0].shape == (0, 2)
    searcher = database.searcher()
    assert searcher.notes(count, searcher.hits(["ka"], count)) == []
    assert searcher.notes(count + 4, searcher.hits(["ka"], count + 4)) == [
        f"only {count:,} live chunks can be found, so there are fewer than {count + 4:,} hits"
    ]


def test_a_query_that_may_read_no_more_lists_is_noted(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make_database({str(number): made_text(number, 60) for number in range(200)})
    database.embed()
    database.index(factory="IVF4,SQ8")
    searcher, few = database.searcher(), made_text(3, 60)
    assert [len(hits) for hits in searcher.hits([few], 100, nprobe=1)] == [100]
    monkeypatch.setattr(operating_point, "_LEAST_CAP", 1)
    monkeypatch.setattr(operating_point, "PROBED_NEXT", 1)
    hits = searcher.hits([few], 100, nprobe=1)
    assert 0 < len(hits[0]) < 100
    [note] = searcher.notes(100, hits)
    assert note.startswith("1 of 1 queries have fewer than 100 hits")
    assert searcher.notes(100, searcher.hits([few], 100, nprobe=4)) == []


def test_invalid_queries_are_refused(database: Database) -> None:
    vectors = database.view().vectors("default", np.array([0, 3])).astype(np.float32)
    vectors[1, 4] = np.nan
    with pytest.raises(InputError, match="row 1"):
        database.search_arrays(vectors, 2)
    with pytest.raises(UsageError, match="1 lists"):
        database.search(["ka"], nprobe=2)
    with pytest.raises(UsageError, match="recall"):
        database.search(["ka"], recall=1.5)
    with pytest.raises(UsageError, match="one of them"):
        database.search(["ka"], recall=0.9, nprobe=1)


def test_a_recall_that_was_not_measured_is_refused_with_the_command(make_database: Make) -> None:
    made = make_database({str(i): made_text(i, 1500) for i in range(8)})
    made.embed()
    made.index(factory="IVF4,SQ8")
    with pytest.raises(MissingStep, match=r"bench recall --target-recall 0\.9"):
        made.search(["ka"], recall=0.9)
    assert made.search(["ka"], recall=1)[0]


def test_a_note_counts_chunks_that_are_not_indexed_yet(database: Database, tmp_path: Path) -> None:
    database.ingest([write_documents(tmp_path / "b.jsonl", {"far": made_text(90, 40)})], source="b")
    database.embed()
    assert "embedded and not yet indexed" in database.searcher().notes(1, [])[0]


def test_an_index_of_older_vectors_is_refused(database: Database) -> None:
    view = database.view()
    entry = view.snapshot.existing(IndexEntry, "default")
    change = Change(
        "t",
        "test",
        {},
        "now",
        conflict_keys.index("default"),
        entries={"index/default": replace(entry, fingerprint="x")},
    )
    commit(view.storage, view.snapshot, change)
    with pytest.raises(MismatchError, match="--retrain"):
        database.search(["ka"])


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_missing_or_damaged_part_is_refused_with_a_remedy(database: Database, harm: str) -> None:
    path = Path(database.path) / database.view().manifest.files("parts")[0].path
    data = path.read_bytes()
    path.unlink()
    if harm == "damaged":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=rf"{path.name}.*index --retrain"):
        database.search(["ka"])
    database.index(retrain=True)
    assert database.search(["ka"])[0]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"one\n\ntwo  \n", ["one", "two"]),
        (b'{"text": "one"}\n{"query": "two", "id": 3}\n', ["one", "two"]),
        ("\ufeffgrüße\r\n日本\r\n".encode(), ["grüße", "日本"]),
    ],
)
def test_queries_are_read_from_files(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    (tmp_path / "q").write_bytes(content)
    assert read_queries(tmp_path / "q") == texts


@pytest.mark.parametrize(
    ("content", "match"), [(b"\n \n", "no queries"), (b'{"text": "a"}\n{"other": 1}\n', ":2"), (b"\xff\xfe", "UTF-8")]
)
def test_an_invalid_file_of_queries_is_refused_with_the_line(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_queries(tmp_path / "q")


def test_vectors_are_read_from_an_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(4))
    assert read_queries(tmp_path / "v.npy", as_vectors=True).shape == (1, 4)
    (tmp_path / "no.npy").write_bytes(b"text")
    with pytest.raises(InputError, match="npy"):
        read_queries(tmp_path / "no.npy", as_vectors=True)
