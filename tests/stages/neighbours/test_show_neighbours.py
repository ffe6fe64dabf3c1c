"""A row of a table with its texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_documents import made_text, write_documents
from marked import mark

from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.stages.neighbours.show import MIN_RUN, shared_runs

from .test_repair_neighbours import up_to_date

Make = Callable[..., Database]
TOKENS = st.lists(st.integers(0, 2), max_size=30)


def contains(tokens: list[int], run: list[int]) -> bool:
    return any(tokens[i : i + len(run)] == run for i in range(len(tokens) - len(run) + 1))


@given(TOKENS, TOKENS)
def test_shared_runs_are_all_runs_that_both_have(first: list[int], second: list[int]) -> None:
    runs = shared_runs(first, second)
    assert all(len(run) >= MIN_RUN and contains(first, run) and contains(second, run) for run in runs)
    for start in range(len(second) - MIN_RUN + 1):
        piece = second[start : start + MIN_RUN]
        assert contains(first, piece) == any(contains(run, piece) for run in runs)


def test_a_row_is_shown_with_its_neighbours_and_shared_runs(make_database: Make, tmp_path: Path) -> None:
    database = make_database({str(i): made_text(i, 100) for i in range(5)})
    copy = made_text(2, 100) + " " + made_text(50, 40)
    database.ingest([write_documents(tmp_path / "more.jsonl", {"copy": copy})], source="more")
    up_to_date(database).neighbours(k=2, spare_neighbours=0, exact=True)
    view = database.view()
    row = next(i for i in range(view.chunks.end) if view.chunks.documents(np.array([i]))[0]["doc_id"] == "2")
    shown = database.show_neighbours(row)
    nearest = shown.neighbours[0]
    assert (shown.row.doc_id, nearest.chunk.doc_id, nearest.chunk.position) == ("2", "copy", 0)
    assert nearest.score == pytest.approx(1, abs=1e-3)
    assert nearest.measure == "similarity"
    assert nearest.chunk.continuation.startswith(shown.row.continuation.strip()[:50], 1)
    assert shown.row.text.strip() in " ".join(nearest.shared_runs)
    assert shown.num_short == 0
    mark(database, [nearest.chunk.chunk_id])
    again = database.show_neighbours(row)
    assert [neighbour.chunk.chunk_id for neighbour in again.neighbours] == [shown.neighbours[1].chunk.chunk_id]
    assert again.num_short == 0, "as of the computation of the table"
    database.repair_neighbours()
    assert database.show_neighbours(row).num_short == database.neighbour_table().num_short()
    with pytest.raises(UsageError, match="no live row"):
        database.show_neighbours(nearest.chunk.chunk_id)
