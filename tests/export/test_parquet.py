"""The Parquet export, read back by pyarrow alone and compared token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_documents import made_text

from retrodb.database import Database
from retrodb.errors import MissingStep, UsageError


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Database:
    made = make_database({str(i): made_text(i, 60 + 40 * i) for i in range(7)})
    made.embed()
    made.index()
    made.neighbours(k=2, slack=1)
    return made


def read(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_token_comes_back_and_nothing_missing_becomes_text(database: Database, tmp_path: Path) -> None:
    result = database.export(tmp_path / "out")
    chunks = database.view().chunks
    table = database.neighbour_table()
    expected_ids, _ = table.read(table.rows())
    rows = read(tmp_path / "out" / "rows")
    assert result.rows == len(rows) == len(table.rows())
    for row, ids in zip(rows, expected_ids.tolist(), strict=True):
        own = chunks.gather_tokens(np.array([row["row"]]))
        assert row["tokens"] == own.tokens[0, : own.lengths[0]].tolist()
        assert row["neighbours"] == ids
    values = {row["chunk_id"]: row for row in read(tmp_path / "out" / "chunks")}
    assert set(values) == {i for ids in expected_ids.tolist() for i in ids if i >= 0}
    for chunk_id, value in values.items():
        following = chunks.continuation(np.array([chunk_id]))
        own = chunks.gather_tokens(following)
        assert value["continuation"] == own.tokens[0, : own.lengths[0]].tolist()
        assert (value["continuation"] == []) == (following[0] == -1)


def test_an_export_is_replaced_whole_and_nothing_else_is_overwritten(database: Database, tmp_path: Path) -> None:
    database.export(tmp_path / "out")
    database.export(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="no export"):
        database.export(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "db", "db.jsonl", "mine", "out"]


def test_a_dry_run_writes_nothing(database: Database, tmp_path: Path) -> None:
    result = database.export(tmp_path / "out", dry_run=True)
    assert result.rows > 0
    assert result.size_bytes > 0
    assert not (tmp_path / "out").exists()


def test_unknown_formats_and_tables_are_refused(database: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Known are: parquet"):
        database.export(tmp_path / "out", to="scroll")
    with pytest.raises(MissingStep, match="There are: self"):
        database.export(tmp_path / "out", table="other")
