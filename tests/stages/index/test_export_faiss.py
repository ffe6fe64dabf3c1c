"""`retrodb index --export-faiss`: one file that FAISS opens, of the chunks that a search may find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import MissingStep, NotEnoughMemory, UsageError

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Two parts, and deleted documents in both."""
    made = make_database({f"a{i}": made_text(i, 400) for i in range(60)})
    made.embed()
    assert made.index(factory="IVF4,SQ8").factory == "IVF4,SQ8"
    made.ingest(
        [write_documents(tmp_path / "b.jsonl", {f"b{i}": made_text(20 + i, 150) for i in range(6)})], source="b"
    )
    made.embed()
    made.index()
    made.filter(doc_ids=["a3", "b2"], reason="gone")
    return made


@pytest.mark.parametrize("factory", ["IVF4,SQ8", "Flat", "IVF4,RaBitQfs"])
def test_faiss_finds_the_chunks_that_search_finds(factory: str, database: Database, tmp_path: Path) -> None:
    if factory != "IVF4,SQ8":
        assert database.index(retrain=True, factory=factory).factory == factory
    out = tmp_path / "out.faiss"
    result = database.export_faiss(out)
    view = database.view()
    index = faiss.read_index(str(out))
    assert (result.num_vectors, result.size_bytes) == (index.ntotal, out.stat().st_size)
    queries = view.vectors("default", np.array([0, 9, 30])).astype(np.float32)
    if factory != "Flat":
        index.nprobe = 4
    found = index.search(queries, index.ntotal)[1]
    expected, _ = database.search_arrays(queries, index.ntotal, nprobe=4 if factory != "Flat" else 1)
    assert [set(row) for row in found.tolist()] == [set(row) for row in expected.tolist()]
    assert view.chunks.is_live(found.ravel()).all()
    if factory != "IVF4,RaBitQfs":
        assert found[:, 0].tolist() == expected[:, 0].tolist()
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_a_dry_run_writes_nothing(database: Database, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = database.export_faiss(tmp_path / "out.faiss", dry_run=True)
    assert (result.dry_run, result.size_bytes) == (True, None)
    assert result.num_vectors > 0
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_written_over_and_a_folder_must_be_there(database: Database, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    for out, reason in ((there, "exists"), (tmp_path, "folder"), (tmp_path / "no" / "out", "does not exist")):
        with pytest.raises(UsageError, match=reason):
            database.export_faiss(out)
    assert there.read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_kept(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.faiss"

    def write(path: Path, *_: object) -> None:
        path.write_bytes(b"index")
        out.write_text("mine")

    monkeypatch.setattr("retrodb.stages.index.export_faiss.write_faiss_file", write)
    with pytest.raises(UsageError, match="exists"):
        database.export_faiss(out)
    assert out.read_text() == "mine"


def test_a_space_without_an_index_is_refused(make_database: Make, tmp_path: Path) -> None:
    database = make_database({"a": made_text(1, 150)})
    with pytest.raises(MissingStep, match="no index"):
        database.export_faiss(tmp_path / "out.faiss")


def test_too_little_memory_is_refused_before_a_file_is_written(database: Database, tmp_path: Path) -> None:
    small = retrodb.open(database.path, memory_bytes=100 << 20)
    with pytest.raises(NotEnoughMemory, match="Give --memory"):
        small.export_faiss(tmp_path / "out.faiss")
    assert not (tmp_path / "out.faiss").exists()
