"""Leakage without a model, of files and of query sets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    assert sum(copy.chunks_by_ratio[:-2]) == 0, "all are there whole, the short last chunk as well"
    assert copy.fraction_at_eighth == 1.0
    new = database.leakage(against=write_documents(tmp_path / "new.jsonl", {"a": "Zyx wvu 987 qpo. " * 60}))
    assert new.chunks_by_ratio[m] == 0
    assert sum(new.chunks_by_ratio) == new.num_chunks


def test_a_query_set_gives_the_same_result_as_its_file(database: Database, tmp_path: Path) -> None:
    of_set = database.leakage(queries="copies")
    of_file = database.leakage(against=tmp_path / "copies.jsonl")
    assert of_set.chunks_by_ratio[-1] == of_file.chunks_by_ratio[-1] > 0


def test_chunks_without_a_vector_are_left_out_and_counted(database: Database, tmp_path: Path) -> None:
    """The tail of a document has no vector: nothing is known about what it shares."""
    texts = {str(i): made_text(20 + i, 65 + 7 * i) for i in range(9)}
    database.add_queries("tails", [write_documents(tmp_path / "tails.jsonl", texts)])
    database.embed()
    view = database.view()
    queries = view.query_set("tails")
    rows = np.flatnonzero(queries.live_mask(0, queries.end))
    num_looked_up = int(view.query_vectors("tails", "default").covered_mask(0, queries.end)[rows].sum())
    assert 0 < num_looked_up < len(rows), "the set has a tail"
    result = database.leakage(queries="tails")
    assert result.num_chunks == sum(result.chunks_by_ratio) == num_looked_up
    assert result.num_chunks_not_looked_up == len(rows) - num_looked_up


def test_deleted_text_no_longer_leaks(database: Database, tmp_path: Path) -> None:
    database.ingest([write_documents(tmp_path / "less.jsonl", {"3": "Other words now stand here."})], source="made")
    database.embed()
    database.index()
    assert database.leakage(queries="copies").chunks_by_ratio[-1] == 0


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
    assert "from 12.5%, below 25.0%" in out
    assert "chunks share 12.5% of their tokens or more with a neighbour" in out


@pytest.mark.corpora
@pytest.mark.skipif(not DATA.exists(), reason="no corpora next to the repository")
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
