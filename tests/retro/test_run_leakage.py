"""Leakage without a model, of files and of query sets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_documents import made_text, write_documents
from real_corpora import DATA, content

from retrodb.database import Database
from retrodb.errors import InputError, UsageError
from retrodb_cli.main import main


@pytest.fixture
def database(make_database: Callable[..., Database], tmp_path: Path) -> Database:
    made = make_database({str(i): made_text(i, 160) for i in range(8)})
    made.add_queries("copies", [write_documents(tmp_path / "copies.jsonl", {"c": made_text(3, 160)})])
    made.embed()
    made.index()
    return made


def test_a_copy_of_a_document_leaks_every_chunk_and_new_text_next_to_nothing(
    database: Database, tmp_path: Path
) -> None:
    m = database.view().settings.chunk_tokens
    copy = database.leakage(against=write_documents(tmp_path / "copy.jsonl", {"a": made_text(3, 160)}))
    assert sum(copy.chunks_by_run[:-2]) <= 1, "all but a short last chunk are there whole"
    assert copy.fraction_at_eighth == 1.0
    new = database.leakage(against=write_documents(tmp_path / "new.jsonl", {"a": "Zyx wvu 987 qpo. " * 60}))
    assert new.chunks_by_run[m] == 0
    assert sum(new.chunks_by_run) == new.num_chunks


def test_a_query_set_gives_the_same_result_as_its_file(database: Database, tmp_path: Path) -> None:
    of_set = database.leakage(queries="copies")
    of_file = database.leakage(against=tmp_path / "copies.jsonl")
    assert of_set.chunks_by_run[-1] == of_file.chunks_by_run[-1] > 0


def test_deleted_text_no_longer_leaks(database: Database, tmp_path: Path) -> None:
    database.ingest([write_documents(tmp_path / "less.jsonl", {"3": "Other words now stand here."})], source="made")
    database.embed()
    database.index()
    assert database.leakage(queries="copies").chunks_by_run[-1] == 0


def test_invalid_arguments_are_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would each find itself"):
        database.leakage(queries="self")
    with pytest.raises(UsageError, match="--against FILE or --queries NAME"):
        database.leakage()
    with pytest.raises(UsageError, match="k of 0"):
        database.leakage(queries="copies", k=0)
    with pytest.raises(InputError, match="no text"):
        database.leakage(against=write_documents(tmp_path / "empty.jsonl", {"a": ""}))


def test_the_command_prints_the_histogram(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leakage", database.path, "--queries", "copies"]) == 0
    out = capsys.readouterr().out
    assert "shared tokens" in out
    assert "share 8 tokens or more with a neighbour" in out


@pytest.mark.corpora
@pytest.mark.skipif(not DATA.exists(), reason="no corpora beside the repository")
def test_near_duplicates_of_books_leak_until_they_are_removed(
    make_database: Callable[..., Database], tmp_path: Path
) -> None:
    """A stretch of some books, which the database holds with a few words changed, as other editions have them."""
    books: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(content("classic-books.md.tar.zst"))) as tar:
        for member in tar:
            book = tar.extractfile(member)
            if book is not None and len(books) < 6:
                books[member.name] = book.read().decode()[2_000:22_000]
    editions = {name: text.replace(" upon ", " on ").replace(" whom ", " who ") for name, text in books.items()}
    made = make_database({}, "books")
    made.ingest([write_documents(tmp_path / "books.jsonl", books)], source="books")
    made.add_queries("editions", [write_documents(tmp_path / "editions.jsonl", editions)])
    made.embed()
    made.index()
    before = made.leakage(queries="editions")
    made.dedup([tmp_path / "editions.jsonl"])
    assert before.fraction_at_eighth > 0.9
    after = made.leakage(queries="editions")
    assert after.fraction_at_eighth < before.fraction_at_eighth - 0.5
