"""Search: texts and vectors in, live chunks with their documents and continuations out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.errors import MismatchError, MissingStep, UsageError

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


def test_a_chunks_own_text_finds_it_with_its_continuation(database: Database) -> None:
    chunks = database.view().chunks
    [text] = chunks.texts(np.array([1]))
    [[hit]] = database.search([text], k=1)
    assert (hit.text, hit.source, hit.position) == (text, "made", 1)
    assert hit.continuation == chunks.texts(chunks.continuation(np.array([1])))[0] != ""


def test_vectors_are_searched_as_they_are_and_another_dimension_is_refused(database: Database) -> None:
    vectors = database.view().vectors("default", np.array([0, 3])).astype(np.float32)
    hits = database.search(vectors, k=1)
    assert [own[0].chunk_id for own in hits] == [0, 3]
    with pytest.raises(MismatchError, match="dimension"):
        database.search(vectors[:, :7])


def test_deleted_chunks_never_come_up(database: Database, tmp_path: Path) -> None:
    [text] = first_chunk(database, "3")
    assert database.search([text], k=1)[0][0].doc_id == "3"
    database.dedup([write_documents(tmp_path / "t.jsonl", {"x": made_text(3, 200)})], name="t")
    assert all(hit.doc_id != "3" for hit in database.search([text], k=50)[0])


def test_a_source_restricts_the_search_itself(database: Database, tmp_path: Path) -> None:
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


def test_an_older_snapshot_is_searched_as_it_was(database: Database, tmp_path: Path) -> None:
    number = database.view().snapshot.number
    [text] = first_chunk(database, "3")
    database.dedup([write_documents(tmp_path / "t.jsonl", {"x": made_text(3, 200)})], name="t")
    assert database.search([text], k=1, as_of=number)[0][0].doc_id == "3"


def test_search_before_embed_names_the_missing_command(make_database: Make) -> None:
    with pytest.raises(MissingStep, match="retrodb embed"):
        make_database({"a": "ka lo mi"}).search(["ka"])


def test_no_results_are_no_question(database: Database) -> None:
    with pytest.raises(UsageError, match="at least one"):
        database.search(["ka"], k=0)
