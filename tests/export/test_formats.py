"""Every format through its trainer's reader, every token compared with the database: of its own chunks and of foreign ones,
before and after a refresh."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrodb.database import Database
from retrodb.retro.data import load_arrays

from .conftest import Truth, remove
from .peers import needs_datasets, needs_retro_pytorch
from .readers import READERS

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "read_arrays.py"
KEYED = ("parquet", "huggingface")  # by chunk id: only rows that have neighbours are in them
MARKS = {"huggingface": [needs_datasets], "lucidrains": [needs_retro_pytorch]}
every_format = pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in READERS])


def rows_of(truth: Truth, name: str) -> list[int]:
    """The rows that an export has, in its order."""
    if name in KEYED:
        return truth.table.rows().tolist()
    queries = truth.table.view.query_set(truth.table.query_set)
    return np.flatnonzero(queries.live_mask(0, queries.end)).tolist()


def check(name: str, out: Path, truth: Truth, rows: list[int]) -> None:
    """Rows in the order of the export; those deleted since have no tokens and no neighbours."""
    found = list(READERS[name](out))
    assert len(found) == len(rows) > 0
    for row, (own, neighbours) in zip(rows, found, strict=True):
        assert own == truth.row_tokens(row)
        assert neighbours == truth.neighbours(row)


@every_format
def test_no_token_is_lost_and_nothing_missing_becomes_text(name: str, exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to=name)
    truth = Truth(exportable.neighbour_table())
    rows = rows_of(truth, name)
    check(name, tmp_path / "out", truth, rows)
    neighbours = [pair for row in rows for pair in truth.neighbours(row)]
    assert any(not near for near, _ in neighbours), "some row is starved"
    assert any(near and not following for near, following in neighbours), "some neighbour ends its document"
    stored, _ = truth.table.stored(truth.table.rows())
    assert (~truth.table.view.chunks.is_live(stored[stored >= 0])).any(), "some neighbour was deleted later"


@every_format
def test_another_query_set_has_the_same_neighbours(name: str, exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to=name, table="exam")
    truth = Truth(exportable.neighbour_table("exam"))
    check(name, tmp_path / "out", truth, rows_of(truth, name))


@every_format
def test_a_refresh_removes_deleted_chunks_and_moves_none(
    name: str, make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to=name)
    rows = rows_of(Truth(database.neighbour_table()), name)
    remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
    remove(database, tmp_path, {"third": source_texts["129-1"][-100:]}, "chunk")
    result = database.refresh_export(out)
    truth = Truth(database.neighbour_table())
    check(name, out, truth, rows_of(truth, name) if name in KEYED else rows)
    assert result.changed
    assert database.refresh_export(out).changed == ()


def test_the_example_reads_what_the_bundled_reader_reads(exportable: Database, tmp_path: Path) -> None:
    exportable.export(tmp_path / "out", to="arrays")
    data = load_arrays(tmp_path / "out")
    example = runpy.run_path(str(EXAMPLE))["Arrays"](tmp_path / "out", chunks_per_sample=2, k=3)
    seen = 0
    for number in range(len(example)):
        tokens, values = example[number]
        rows = np.where(np.arange(2) < example.samples[number][1], example.samples[number][0] + np.arange(2), -1)
        np.testing.assert_array_equal(tokens, data.queries(rows))
        np.testing.assert_array_equal(values.reshape(2, 3, -1), data.neighbour_values(rows, 3))
        seen += int((rows >= 0).sum())
    assert seen == len(data.query_tokens)
