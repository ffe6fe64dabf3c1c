"""Validate on a small database: the arrays hold what the database says, and the experiment is bounded and repeatable."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.errors import MissingDependency, MissingStep, UsageError
from retrodb.retro.collect import collect_data
from retrodb.retro.examples import data_as_read
from retrodb_cli.main import main

from .synthetic import near_copies


@pytest.fixture
def database(make_database: Callable[..., Database], tmp_path: Path) -> Database:
    made = make_database({str(i): made_text(i, 150 + 10 * i) for i in range(8)})
    made.add_queries(
        "test", [write_documents(tmp_path / "test.jsonl", {f"t{i}": made_text(i + 50, 150) for i in range(3)})]
    )
    made.embed()
    made.index()
    made.neighbours(k=2, spare_neighbours=0)
    made.neighbours(queries="test", k=2, spare_neighbours=0)
    return made


def test_the_arrays_hold_the_tokens_that_the_database_gives(database: Database) -> None:
    table = database.neighbour_table("test")
    data = collect_data(table, max_chunks=10_000, seed=0)
    chunks, queries = database.view().chunks, database.view().query_set("test")
    rows = np.flatnonzero(queries.live_mask(0, queries.end))
    assert data.query_bytes.tolist() == [len(text.encode()) for text in queries.texts(rows)]
    ids, _ = table.read(rows)
    expected = chunks.gather_tokens(ids.ravel())
    following = chunks.gather_tokens(chunks.continuation(ids.ravel()))
    values = data.neighbour_values(np.arange(len(rows)), 2).reshape(len(ids.ravel()), -1)
    m = data.chunk_tokens
    for value, own, length, after, after_length in zip(
        values, expected.tokens, expected.lengths, following.tokens, following.lengths, strict=True
    ):
        assert value[:length].tolist() == own[:length].tolist()
        assert (value[length:m] == data.pad_token).all()
        assert value[m : m + after_length].tolist() == after[:after_length].tolist()
        assert (value[m + after_length :] == data.pad_token).all()


def test_whole_documents_are_sampled(database: Database) -> None:
    data = collect_data(database.neighbour_table(), max_chunks=12, seed=1)
    chunks = database.view().chunks
    everything = chunks.document_ids(np.arange(chunks.end))
    for document in np.unique(data.query_documents):
        assert (data.query_documents == document).sum() == (everything == document).sum()
    assert len(data.query_documents) < chunks.end


def test_validate_trains_both_models_on_equal_tokens_and_reports(database: Database) -> None:
    result = database.validate(steps=3, batch_chunks=16)
    assert result.num_steps == 3
    assert result.report.num_documents == 3
    assert set(result.report.bits_per_byte) == {"on", "shuffled", "random", "off", "without"}
    assert result.report.verdict
    again = database.validate(steps=3, batch_chunks=16)
    assert again.report == result.report, "the same seed gives the same figures"


def test_missing_held_out_documents_are_reported_with_a_remedy(make_database: Callable[..., Database]) -> None:
    made = make_database({"a": made_text(1, 100), "b": made_text(2, 100)})
    made.embed()
    made.index()
    made.neighbours()
    with pytest.raises(MissingStep, match="--holdout"):
        made.validate(steps=1)


def test_the_page_shows_markup_of_documents_as_text(make_database: Callable[..., Database], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & more "
    made = make_database({str(i): evil + made_text(i, 150) + evil * 5 for i in range(6)})
    heldout = {f"t{i}": evil + made_text(i, 150) for i in range(3)}
    made.add_queries("test", [write_documents(tmp_path / "test.jsonl", heldout)])
    made.embed()
    made.index()
    made.neighbours()
    made.neighbours(queries="test")
    page = tmp_path / "reports" / "page.html"
    result = made.validate(steps=2, batch_chunks=16, report=page, device="cpu")
    text = page.read_text()
    assert result.page == str(page)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<mark>" in text
    assert result.report.verdict.split(":")[0] in text


def test_a_page_without_matplotlib_is_refused_before_training(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("retrodb.retro.validate.train_model", None)
    with pytest.raises(MissingDependency, match=r"retrodb\[plots\]"):
        database.validate(steps=1, report=tmp_path / "page.html")


def test_the_result_says_whether_a_leak_scan_was_run(database: Database, tmp_path: Path) -> None:
    assert not database.validate(steps=1, batch_chunks=16).is_screened
    database.dedup([tmp_path / "test.jsonl"], name="test")
    database.neighbours(k=2, spare_neighbours=0)
    assert database.validate(steps=1, batch_chunks=16).is_screened


def test_the_leakage_curve_goes_over_all_held_out_chunks(database: Database) -> None:
    result = database.validate(steps=1, batch_chunks=16)
    assert [point.alpha for point in result.leakage] == [eighth / 8 for eighth in range(9)]
    last = result.leakage[-1]
    assert last.num_chunks == result.report.num_chunks
    assert last.bits_per_byte_on == pytest.approx(result.report.bits_per_byte["on"].value)
    assert last.bits_per_byte_without == pytest.approx(result.report.bits_per_byte["without"].value)


def test_invalid_arguments_are_refused(database: Database) -> None:
    with pytest.raises(UsageError, match="which the models are trained on"):
        database.validate(steps=1, heldout="self")
    for options in ({"minutes": 0.0}, {"steps": 0}):
        with pytest.raises(UsageError, match="no time to train"):
            database.validate(**options)


def test_an_example_shows_the_neighbours_that_were_read_with_the_chunk() -> None:
    data = near_copies(3, chunks=4)
    shown = data_as_read(data)
    for row in range(12):
        assert (shown.neighbours[row] == (data.neighbours[row - 1] if row % 4 else -1)).all()


def test_the_command_prints_the_verdict(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", database.path, "--steps", "1", "--batch-chunks", "16", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "bits per byte" in out
    assert "No leak scan compared" in out
