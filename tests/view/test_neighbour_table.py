from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.view import neighbour_table


@pytest.fixture
def database(make_database: Callable[..., Database], tmp_path: Path) -> Database:
    """Three shards with a table that has a patch, and a deleted document."""
    database = make_database({})
    for number in range(3):
        documents = {f"{number}-{i}": made_text(10 * number + i, 150) for i in range(4)}
        database.ingest([write_documents(tmp_path / f"{number}.jsonl", documents)], source=f"s{number}")
        if number == 1:
            database.embed()
            database.index()
            database.neighbours(k=2, spare_neighbours=0)
    database.embed()
    database.index()
    database.filter(doc_ids=["1-2"], reason="test")
    database.repair_neighbours()
    return database


@pytest.mark.parametrize(("span_rows", "block_rows"), [(1 << 20, 1 << 16), (7, 3)])
def test_spans_and_blocks_have_every_live_row_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, span_rows: int, block_rows: int
) -> None:
    monkeypatch.setattr(neighbour_table, "_SPAN_ROWS", span_rows)
    monkeypatch.setattr(neighbour_table, "_BLOCK_ROWS", block_rows)
    table = database.neighbour_table()
    assert len(table.files) > 2
    stored = np.unique(np.concatenate([file.first_chunk + table.view.files.rows(file).present for file in table.files]))
    live = stored[table.view.chunks.is_live(stored)]
    assert 0 < len(live) < len(stored)
    assert table.all_rows().tolist() == stored.tolist()
    blocks = list(table.blocks())
    assert np.concatenate(blocks).tolist() == table.rows().tolist() == live.tolist()
    assert max(map(len, blocks)) <= block_rows
    assert table.num_rows() == len(live)
    assert [row for row in range(-1, table.view.chunks.end + 2) if table.has_row(row)] == live.tolist()
    assert table.num_short() == int((table.read(live)[0][:, -1] < 0).sum())


def test_bounds_of_a_range_are_the_last_distances_in_the_newest_file_of_each_row(database: Database) -> None:
    table = database.neighbour_table()
    end = table.view.chunks.end
    assert len(table.files) > 2
    last = table.stored(np.arange(end))[1][:, -1]
    assert np.isfinite(last).any()
    for first, count in ((0, end), (3, 1), (5, end - 9), (end - 2, 10), (end + 1, 4)):
        expected = np.full(count, np.inf, np.float32)
        expected[: max(0, end - first)] = last[first : first + count]
        np.testing.assert_array_equal(table.bounds_in(first, count), expected)
    rows = np.array([7, 0, end + 5, 3])
    np.testing.assert_array_equal(table.bounds(rows), [last[7], last[0], np.inf, last[3]])


def test_a_row_is_looked_up_in_the_files_that_cover_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    table = database.neighbour_table()
    covering = [file.path for file in table.files if 0 in range(file.first_chunk, file.span.end)]
    read: list[str] = []
    real = table._content
    monkeypatch.setattr(table, "_content", lambda record: read.append(record.path) or real(record))  # type: ignore[func-returns-value]
    assert table.has_row(0)
    assert read == []
    table.read(np.array([0]))
    assert len(read) == 1
    assert set(read) <= set(covering)
    assert len(covering) < len(table.files)


def test_few_rows_are_read_from_few_row_groups(
    make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("retrodb.stages.neighbours.table_rows", "retrodb.view.neighbour_table"):
        monkeypatch.setattr(f"{module}.ROW_GROUP_ROWS", 3)
    database = make_database({f"d{n}": made_text(n, 200) for n in range(12)})
    database.embed()
    database.index()
    database.neighbours(k=3)
    table = database.neighbour_table()
    rows = table.rows()
    ids, distances = table.stored(rows)
    few = database.neighbour_table()
    monkeypatch.setattr(few, "_content", None)
    for chosen in ([5], [0, 1, 20], [len(rows) - 1, 3], [7, 7, 2]):
        np.testing.assert_array_equal(few.stored(rows[chosen])[0], ids[chosen])
        np.testing.assert_array_equal(few.stored(rows[chosen])[1], distances[chosen])
