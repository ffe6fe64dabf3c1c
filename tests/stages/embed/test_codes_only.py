"""A space that keeps no vectors: search, tables and other commands use its codes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.config import NeighboursParams
from retrodb.database import Database
from retrodb.errors import NotEnoughMemory, UsageError
from retrodb.format.entries import IndexEntry
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.memory import CACHE_FRACTION
from retrodb.stages import seeded_sample
from retrodb.stages.embed import pending
from retrodb.stages.embed import task as embed_task
from retrodb.stages.index.live_parts import parts_of
from retrodb.stages.index.search_parts import search_bytes
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.store.collection import is_ours
from retrodb.store.verify import VerifiedFiles

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    """One space with vectors, and the same encoder again with codes only."""
    made = make_database({str(i): made_text(i, 300) for i in range(12)})
    made.embed()
    made.index()
    made.embed(space="codes", encoder="hashing:32", keep_vectors=False)
    return made


def test_only_codes_are_stored_and_they_are_near_the_vectors(database: Database) -> None:
    view = database.view()
    assert view.manifest.files("vectors", "codes") == []
    assert not view.storage.list("vectors/codes")
    ids = np.arange(view.chunks.end)
    ids = ids[view.query_vectors("self", "codes").covered_mask(0, view.chunks.end)]
    exact, rounded = view.vectors("default", ids), view.vectors("codes", ids)
    np.testing.assert_allclose(rounded.astype(float), exact.astype(float), atol=0.01)
    assert 0.5 < view.snapshot.existing(IndexEntry, "codes").codes_recall <= 1


def test_of_the_texts_of_the_database_only_those_of_the_sample_are_looked_up(
    make_database: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.stages.embed.codes_only._MIN_SAMPLE", 8)
    whole, read_whole = list[str](), VerifiedFiles.whole_array

    def noted(files: VerifiedFiles, record: FileRecord) -> np.ndarray:
        whole.append(record.kind)
        return read_whole(files, record)

    monkeypatch.setattr(VerifiedFiles, "whole_array", noted)
    database = make_database({str(i): made_text(i, 300) for i in range(12)})
    database.embed(space="codes", encoder="hashing:32", keep_vectors=False)
    assert whole, "the sample is read whole"
    assert "hashes" not in whole


def test_search_tables_and_listings_work_from_codes(database: Database) -> None:
    text = made_text(3, 300)[:150]
    [[of_vectors]], [[of_codes]] = (database.search([text], k=1, space=space) for space in ("default", "codes"))
    assert of_codes.chunk_id == of_vectors.chunk_id
    exact = database.neighbours(exact=True, table="exact")
    result = database.neighbours(space="codes", exact=True)
    assert (result.num_rows, result.num_short) == (exact.num_rows, exact.num_short)
    assert result.codes_recall == database.view().snapshot.existing(IndexEntry, "codes").codes_recall
    assert exact.codes_recall is None
    rows = database.neighbour_table("exact").rows()
    of_vectors_K, of_codes_K = (database.neighbour_table(t).read(rows)[0] for t in ("exact", "self-codes"))
    assert (of_vectors_K == of_codes_K).mean() > 0.8
    [_, codes] = sorted(database.spaces(), key=lambda space: space.keeps_vectors, reverse=True)
    assert (codes.space, codes.keeps_vectors) == ("codes", False)


def test_later_chunks_are_indexed_with_the_same_codebook(database: Database, tmp_path: Path) -> None:
    before = database.view().snapshot.existing(IndexEntry, "codes").codebook
    database.ingest([write_documents(tmp_path / "more.jsonl", {"new": made_text(99, 300)})], source="other")
    result = database.embed(space="codes")
    assert result.num_chunks > 0
    assert database.view().snapshot.existing(IndexEntry, "codes").codebook == before
    [[hit]] = database.search([made_text(99, 300)[:150]], k=1, space="codes")
    assert hit.doc_id == "new"
    assert database.embed(space="codes").num_chunks == 0
    assert database.index(space="codes").num_vectors == 0, "there is nothing left to add"
    assert database.check(read_data=True).damaged == ()


def test_commands_that_need_vectors_are_refused_with_a_remedy(database: Database) -> None:
    with pytest.raises(UsageError, match="without keeping vectors"):
        database.index(space="codes", retrain=True)
    with pytest.raises(UsageError, match="does not keep its vectors"):
        database.embed(space="codes", keep_vectors=True)
    with pytest.raises(UsageError, match="keeps its vectors"):
        database.embed(keep_vectors=False)
    with pytest.raises(UsageError, match="a factory needs '--no-keep-vectors'"):
        database.embed(space="more", encoder="hashing:8", factory="Flat")


def test_positions_of_codes_count_in_the_memory_of_a_search_and_a_join(database: Database) -> None:
    view = database.view()
    num_rows = sum(part.num_rows for part in parts_of(view, "codes"))
    stored, codes = (search_bytes(view, space, is_restricted=False) for space in ("default", "codes"))
    assert codes - stored == pytest.approx(8 * num_rows * CACHE_FRACTION / (CACHE_FRACTION - 1), abs=2)
    spans = [ChunkRange(0, view.chunks.end)]
    stored_size, codes_size = (
        JoinSize.of(view, space, NeighboursParams(), spans, 1, 1, "cpu") for space in ("default", "codes")
    )
    assert codes_size.database_bytes - stored_size.database_bytes == 8 * num_rows


def test_a_training_sample_that_does_not_fit_is_refused_before_anything_is_encoded(
    make_database: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({str(i): made_text(i, 300) for i in range(3)})
    monkeypatch.setattr("retrodb.stages.embed.codes_only._TEXT_BYTES", 1 << 40)
    before = database.view().snapshot.number
    with pytest.raises(NotEnoughMemory, match=r"training .* needs at least .* Give --memory"):
        database.embed(space="codes", encoder="hashing:32", keep_vectors=False)
    assert database.view().snapshot.number == before


def test_an_interrupted_run_ends_in_the_same_files(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = {str(i): made_text(i, 200) for i in range(8)}
    whole, torn = make_database(documents, "whole"), make_database(documents, "torn")
    whole.embed(space="codes", encoder="hashing:16", keep_vectors=False)
    with monkeypatch.context() as patch:
        patch.setattr(embed_task, "publish_part", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            torn.embed(space="codes", encoder="hashing:16", keep_vectors=False)
    torn.embed(space="codes", encoder="hashing:16", keep_vectors=False)
    digests = [
        sorted((r.path.rpartition("/")[2], r.digest.sha256) for r in db.view().manifest.files("parts", "codes"))
        for db in (whole, torn)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("keep_vectors", [True, False])
def test_a_space_does_not_depend_on_workers_or_on_the_size_of_tasks(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_vectors: bool
) -> None:
    database = make_database({})
    for name in ("a", "b", "c"):
        documents = {f"{name}{i}": made_text(f"{name}{i % 3}", 200 + 7 * i) for i in range(4)}
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", documents)], source=name)
    database.filter(doc_ids=["a1", "c2"], reason="bad")
    files = []
    for number, workers in enumerate((1, 3, 1)):
        if number == 2:
            monkeypatch.setattr(seeded_sample, "TASK_ROWS", 1)
            monkeypatch.setattr(pending, "_GROUP_CHUNKS", 1)
        copy = tmp_path / str(number)
        shutil.copytree(database.path, copy)
        retrodb.open(copy, workers=workers).embed(space="codes", encoder="hashing:16", keep_vectors=keep_vectors)
        view = retrodb.open(copy).view()
        assert all(map(is_ours, view.storage.list("runs"))), "garbage collection knows the files of runs"
        kinds = ("codebooks", "parts", "vectors")
        files.append({(r.first_chunk, r.digest, r.rows) for k in kinds for r in view.manifest.files(k)})
        if not keep_vectors:
            ids = np.load(next(copy.glob("runs/*/reuse/sample-ids.npy")))
            assert ids.tolist() == sorted(set(ids.tolist()))
            assert not list(copy.glob("runs/*/sample-texts/*")), "a purge must find no text in the folder of a run"
            assert view.embeddable_mask(0, view.chunks.end)[ids].all()
    assert files[0] == files[1] == files[2]
    assert len(files[0]) >= 3
