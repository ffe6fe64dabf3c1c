"""Few rows that are joined with one range of lists after another have the neighbours that a join with all lists finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.ann.routing import Probes
from retrodb.config import NeighboursParams
from retrodb.database import Database
from retrodb.stages.index.live_parts import open_codebook
from retrodb.stages.neighbours import few_rows
from retrodb.stages.neighbours.block_join import JoinHardware
from retrodb.stages.neighbours.compared_tasks import TableInputs
from retrodb.stages.neighbours.few_rows import join_few_rows
from retrodb.stages.neighbours.join_memory import JoinSize
from retrodb.stages.neighbours.range_rows import ListRange, rows_in_lists
from retrodb.stages.neighbours.table_inputs import nearest_chunks
from retrodb.stages.planned_view import PlannedSnapshot

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make, tmp_path: Path) -> Database:
    """Several parts and an index of 8 lists, with deleted documents and equal texts."""
    database = make_database({f"d{n}": made_text(n % 90, 150) for n in range(100)})
    database.embed()
    database.index(factory="IVF8,SQ8")
    database.ingest(
        [write_documents(tmp_path / "more.jsonl", {f"m{n}": made_text(f"m{n}", 90) for n in range(9)})], source="m"
    )
    database.embed()
    database.index()
    database.filter(doc_ids=[f"d{n}" for n in range(0, 100, 7)], reason="x")
    return database


@pytest.mark.parametrize("options", [{}, {"exclude": ("document", "content")}, {"where": "num_tokens > 150"}])
@pytest.mark.parametrize("num_ranges", [2, 3, 8, 20])
def test_ranges_change_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, num_ranges: int, options: dict[str, object]
) -> None:
    monkeypatch.setattr(few_rows, "EXCHANGED_ROWS", 50)  # several blocks
    view, params = database.view(), NeighboursParams(k=3, spare_neighbours=2, **options)  # type: ignore[arg-type]
    inputs, codebook = (
        TableInputs(PlannedSnapshot.of(view), "t", "self", "default", params),
        open_codebook(view, "default"),
    )
    rows = np.flatnonzero(view.embeddable_mask(0, view.chunks.end))[::2]
    parts = list(rows_in_lists(view, "default", params, ListRange(0, codebook.num_lists)))
    num_chunks = sum(part.num_allowed for part in parts)
    for probes in (Probes(1), Probes(3), Probes(1, most_lists=2), Probes(1, most_lists=5)):
        ids, distances = nearest_chunks(view, "self", "default", codebook, probes, params, parts, rows, JoinHardware())
        by_ranges = join_few_rows(view, inputs, rows, codebook, probes, num_chunks, num_ranges, JoinHardware())
        np.testing.assert_array_equal(by_ranges[0], ids)
        np.testing.assert_array_equal(by_ranges[1], distances)


@pytest.mark.parametrize("exclude", [("document",), ("document", "content")])
def test_nothing_is_read_of_lists_that_no_row_probes(database: Database, exclude: tuple[str, ...]) -> None:
    view, params = database.view(), NeighboursParams(exclude=exclude)
    lists, read = ListRange(2, 7), np.array([3, 5], dtype=np.int32)
    whole = rows_in_lists(view, "default", params, lists)
    for all_rows, rows in zip(whole, rows_in_lists(view, "default", params, lists, read=read), strict=True):
        is_read = np.repeat(np.isin(np.arange(2, 7), read), np.diff(all_rows.offsets_L1))
        assert is_read.any()
        assert not is_read.all()
        assert rows.allowed_N is not None
        every = np.ones(len(is_read), dtype=bool) if all_rows.allowed_N is None else all_rows.allowed_N
        np.testing.assert_array_equal(rows.allowed_N, every & is_read)
        np.testing.assert_array_equal(rows.ids_N, np.where(is_read, all_rows.ids_N, 0))
        assert rows.keys.keys() == all_rows.keys.keys()
        for kind, keys in rows.keys.items():
            np.testing.assert_array_equal(keys, np.where(is_read, all_rows.keys[kind], 0))
        np.testing.assert_array_equal(rows.offsets_L1, all_rows.offsets_L1)


def test_a_repair_that_needs_ranges_writes_the_same_rows(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.neighbours(k=3, recall=0.8)
    database.ingest([write_documents(tmp_path / "n.jsonl", {"n": made_text("n", 300)})], source="n")
    database.embed()
    database.index()
    head = database.view().snapshot.number
    stored = []
    for num_ranges in (1, 3):
        monkeypatch.setattr(JoinSize, "num_ranges", lambda self, memory_bytes, num=num_ranges: num)
        [result] = database.repair_neighbours()
        assert result.num_recomputed > 0
        table = database.neighbour_table()
        stored.append([file.digest for file in table.files])
        database.restore(head)
    assert stored[0] == stored[1]
