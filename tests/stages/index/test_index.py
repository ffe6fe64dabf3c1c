"""The index stage: one codebook, a part for new vectors, and no work for old ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import ConfigError, MissingStep, UsageError
from retrodb.format.entries import DriftEntry, IndexEntry
from retrodb.store.collection import is_ours

Make = Callable[..., Database]


@pytest.fixture
def embedded(make_database: Make) -> Database:
    made = make_database({str(i): made_text(i, 1000) for i in range(10)})
    made.embed()
    return made


def test_a_tiny_corpus_gets_a_flat_index_and_a_second_run_does_nothing(embedded: Database) -> None:
    first = embedded.index()
    assert (first.factory, first.is_trained, first.num_parts) == ("Flat", True, 1)
    again = embedded.index()
    assert (again.snapshot, again.num_vectors, again.is_trained) == (first.snapshot, 0, False)


def test_a_new_shard_adds_a_part_under_the_same_codebook(embedded: Database, tmp_path: Path) -> None:
    first = embedded.index(factory="IVF2,SQ8")
    before = {record.path: record.digest for record in embedded.view().manifest.files("parts")}
    codebook = embedded.view().snapshot.existing(IndexEntry, "default").codebook
    embedded.ingest([write_documents(tmp_path / "more.jsonl", {"new": made_text(77, 200)})], source="more")
    embedded.embed()
    second = embedded.index()
    after = {record.path: record.digest for record in embedded.view().manifest.files("parts")}
    assert (first.num_parts, second.num_parts, second.is_trained) == (1, 2, False)
    assert before.items() < after.items()
    assert embedded.view().snapshot.existing(IndexEntry, "default").codebook == codebook


def test_retraining_replaces_codebook_and_parts_in_one_commit(embedded: Database) -> None:
    embedded.index(factory="IVF2,SQ8")
    old = {record.path for kind in ("parts", "codebooks") for record in embedded.view().manifest.files(kind)}
    result = embedded.index(retrain=True, factory="IVF2,Flat")
    new = {record.path for kind in ("parts", "codebooks") for record in embedded.view().manifest.files(kind)}
    assert result.is_trained
    assert not old & new
    assert result.factory == "IVF2,Flat"
    [text] = embedded.view().chunks.texts(np.array([5]))
    assert embedded.search([text], k=1)[0][0].chunk_id == 5


def test_too_many_lists_for_the_sample_give_a_flat_index_and_a_note(embedded: Database) -> None:
    result = embedded.index(factory="IVF4096,SQ8")
    assert result.factory == "Flat"
    assert "training vectors" in result.note


def test_an_unknown_factory_is_refused(embedded: Database) -> None:
    with pytest.raises(ConfigError):
        embedded.index(factory="Nonsense17")


def test_a_database_with_everything_deleted_cannot_train(embedded: Database, tmp_path: Path) -> None:
    tests = {str(i): made_text(i, 1000) for i in range(10)}
    embedded.dedup([write_documents(tmp_path / "t.jsonl", tests)], name="t")
    with pytest.raises(MissingStep, match="deleted"):
        embedded.index()


def test_options_of_another_codebook_need_retrain(embedded: Database) -> None:
    embedded.index(factory="IVF2,SQ8")
    embedded.index(factory="IVF2,SQ8")
    with pytest.raises(UsageError, match="--retrain"):
        embedded.index(factory="IVF2,Flat")


def test_retraining_on_the_same_vectors_gives_the_same_files(embedded: Database) -> None:
    embedded.index(factory="IVF2,SQ8")
    before = sorted((record.path, record.digest) for record in embedded.view().manifest.files("parts"))
    for _ in range(2):
        embedded.index(retrain=True, factory="IVF2,SQ8")
    assert sorted((record.path, record.digest) for record in embedded.view().manifest.files("parts")) == before
    [text] = embedded.view().chunks.texts(np.array([5]))
    assert embedded.search([text], k=1)[0][0].chunk_id == 5


def test_a_training_sample_that_is_too_small_is_refused(embedded: Database) -> None:
    with pytest.raises(ConfigError, match="--train-sample allows 10"):
        embedded.index(factory="IVF2,SQ8", train_sample=10)


def test_deleted_chunks_are_indexed_only_after_they_are_undeleted(embedded: Database, tmp_path: Path) -> None:
    tests = {"x": made_text(3, 1000)}
    embedded.dedup([write_documents(tmp_path / "t.jsonl", tests)], name="t")
    result = embedded.index(factory="IVF2,SQ8")
    view = embedded.view()
    assert result.num_vectors == sum(
        int(view.embeddable_mask(r.first_chunk, r.num_chunks).sum()) for r in view.chunks.ranges
    )
    embedded.undelete("leak:t")
    again = embedded.index()
    assert again.num_vectors > 0
    assert again.num_parts == 2
    doc_ids = {hit.doc_id for hit in embedded.search([made_text(3, 60)], k=200)[0]}
    assert "3" in doc_ids
    ids, _ = embedded.search_arrays(embedded.view().vectors("default", np.array([0])).astype(np.float32), 500)
    assert len(set(ids[ids >= 0].tolist())) == (ids >= 0).sum()


def test_an_index_does_not_depend_on_workers_and_trains_on_the_rows_that_it_adds(
    make_database: Make, tmp_path: Path
) -> None:
    database = make_database({})
    for name in ("a", "b", "c"):
        documents = {f"{name}{i}": made_text(f"{name}{i}", 1500 + 500 * (name == "b")) for i in range(4)}
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", documents)], source=name)
    database.embed()
    database.filter(doc_ids=["a1", "c2"], reason="bad")
    entries = []
    for workers in (1, 3):
        shutil.copytree(database.path, tmp_path / str(workers))
        copy = retrodb.open(tmp_path / str(workers), workers=workers)
        assert copy.index(factory="IVF4,SQ8", train_sample=180).num_parts == 3
        entries.append(copy.view().snapshot.existing(DriftEntry, "default"))
    assert entries[0] == entries[1]
    assert all(map(is_ours, retrodb.open(tmp_path / "1").view().storage.list("runs")))
    first, second = (
        {(r.path, r.digest, r.rows) for kind in ("parts", "codebooks") for r in view.manifest.files(kind)}
        for view in (retrodb.open(tmp_path / str(workers)).view() for workers in (1, 3))
    )
    assert first == second
    view = retrodb.open(tmp_path / "1").view()
    canaries = np.array(entries[0].canaries.ids)
    assert len(np.unique(canaries)) == 64
    assert view.chunks.is_live(canaries).all()
    samples = [np.load(path) for path in (tmp_path / "1" / "runs").glob("*/sample/*.npy")]
    [training] = [sample for sample in samples if len(sample) != len(canaries)]
    assert training.shape == (180, 32)
    live = np.flatnonzero(view.embeddable_mask(0, view.chunks.end))
    vectors = {vector.tobytes() for vector in view.vectors("default", live)}
    assert {vector.tobytes() for vector in training} <= vectors


def test_the_sample_of_a_run_is_the_same_in_tasks_of_one_file(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({})
    for name in ("a", "b", "c"):
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", {name: made_text(name, 4000)})], source=name)
    database.embed()
    database.index(factory="IVF4,SQ8", train_sample=160)
    codebook = database.view().snapshot.existing(IndexEntry, "default").codebook
    for name in ("seeded_sample.TASK_ROWS", "index.drift_task._MEASURED_ROWS", "index.drift_task._SIZES_BYTES"):
        monkeypatch.setattr(f"retrodb.stages.{name}", 1)
    drift = database.view().snapshot.existing(DriftEntry, "default")
    database.index(retrain=True, factory="IVF4,SQ8", train_sample=160)
    assert database.view().snapshot.existing(IndexEntry, "default").codebook == codebook
    assert database.view().snapshot.existing(DriftEntry, "default") == drift
