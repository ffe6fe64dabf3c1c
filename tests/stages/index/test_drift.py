"""The entry `drift/<space>`: updated by every index run, shown by stats, replaced with its codebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.format.entries import DriftEntry

Make = Callable[..., Database]


@pytest.fixture
def indexed(make_database: Make) -> Database:
    database = make_database({str(i): made_text(i, 1200) for i in range(10)})
    database.embed()
    database.index(factory="IVF4,SQ8")
    return database


def add(database: Database, path: Path, documents: dict[str, str]) -> None:
    database.ingest([write_documents(path, documents)], source=path.stem)
    database.embed()


def test_training_stores_the_figures_that_later_runs_are_compared_with(indexed: Database) -> None:
    entry = indexed.view().snapshot.existing(DriftEntry, "default")
    assert entry.training.residual == entry.residual > 0
    assert 0 < entry.canary_recall <= 1
    assert (entry.added, entry.vectors) == (0, indexed.stats().spaces[0].num_vectors)
    assert len(entry.canaries.ids) == 64
    [drift] = indexed.stats().drift
    assert (drift.space, drift.retrain) == ("default", "")


def test_similar_texts_change_little_and_different_texts_give_a_reason_to_retrain(
    indexed: Database, tmp_path: Path
) -> None:
    training = indexed.view().snapshot.existing(DriftEntry, "default").training
    add(indexed, tmp_path / "same.jsonl", {f"a{i}": made_text(i + 50, 1200) for i in range(10)})
    result = indexed.index()
    entry = indexed.view().snapshot.existing(DriftEntry, "default")
    assert entry.added == result.num_vectors > 0
    assert entry.training == training
    assert entry.residual < 1.5 * training.residual
    foreign = {f"b{i}": " ".join(f"zq{(i * j) % 7}x{j % 5}" for j in range(3000)) for i in range(10)}
    add(indexed, tmp_path / "other.jsonl", foreign)
    result = indexed.index()
    assert result.retrain_reason
    [drift] = indexed.stats().drift
    assert drift.retrain == result.retrain_reason
    retrained = indexed.index(retrain=True, factory="IVF4,SQ8")
    assert retrained.retrain_reason == ""
    assert indexed.view().snapshot.existing(DriftEntry, "default").added == 0


def test_a_corpus_that_outgrew_its_factory_gives_a_reason_to_retrain(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({"a": made_text(1, 300)})
    database.embed()
    assert database.index().factory == "Flat"
    monkeypatch.setattr("retrodb.ann.codebook._FLAT_UP_TO", 10)
    add(database, tmp_path / "more.jsonl", {f"b{i}": made_text(i, 900) for i in range(5)})
    assert "Flat" not in database.index().retrain_reason.rpartition(":")[2]
    assert "today's choice would be IVF" in database.index().retrain_reason
