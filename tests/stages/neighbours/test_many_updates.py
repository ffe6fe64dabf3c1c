"""A table that was repaired after many small updates gives what a rebuild under the same codebook gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.format.arrays import Int64Array

NUM_UPDATES = [
    pytest.param(6, 150),
    pytest.param(30, 1500, marks=[pytest.mark.soak]),
]
"""Updates, and documents before the first of them."""


@pytest.fixture
def update(make_database: Callable[..., Database], tmp_path: Path) -> Callable[[int, int], Database]:
    """A database with exact tables and one of lists, and so many small updates of everything."""

    def make(num_updates: int, num_documents: int) -> Database:
        rng = np.random.default_rng(0)
        database = make_database({f"d{n}": made_text(n, 200) for n in range(num_documents)})
        database.add_queries("mine", [write_documents(tmp_path / "mine.jsonl", {"q": made_text("q", 4000)})])
        database.embed()
        database.index(factory="IVF32,SQ8")
        database.neighbours(k=5, exact=True, table="exact")
        database.neighbours(k=5, exact=True, table="exact mine", queries="mine")
        database.neighbours(k=5, exact=True, table="exact sample", sample=0.5)
        database.neighbours(k=5, recall=0.9, table="lists")
        for number in range(num_updates):
            few = max(2, num_documents // 100)
            texts = {f"new{number}-{n}": made_text(f"{number} {n}", 200) for n in range(few)}
            changed = {f"d{n}": made_text(f"again {number} {n}", 180) for n in rng.integers(0, num_documents, few)}
            database.ingest([write_documents(tmp_path / f"{number}.jsonl", texts | changed)], source="made")
            database.filter(doc_ids=[f"d{n}" for n in rng.integers(0, num_documents, few)], reason=f"r{number % 3}")
            if number % 4 == 3:
                database.undelete(f"r{number % 3}")
            if number % 5 == 4:
                database.compact(min_deleted=0.01)
            database.embed()
            database.index()
            database.repair_neighbours()
        return database

    return make


@pytest.mark.parametrize(("num_updates", "num_documents"), NUM_UPDATES)
def test_after_many_updates_an_exact_table_equals_a_rebuild_and_lists_lose_no_recall(
    update: Callable[[int, int], Database], num_updates: int, num_documents: int
) -> None:
    database = update(num_updates, num_documents)
    for table, options in {"exact": {}, "exact mine": {"queries": "mine"}, "exact sample": {"sample": 0.5}}.items():
        database.neighbours(k=5, exact=True, table="exact rebuilt", **options)
        ours, rebuilt = database.neighbour_table(table), database.neighbour_table("exact rebuilt")
        np.testing.assert_array_equal(ours.rows(), rows := rebuilt.rows())
        assert len(rows) > min(num_documents, 60)
        for a, b in zip(ours.read(rows), rebuilt.read(rows), strict=True):
            np.testing.assert_array_equal(a, b)
    database.neighbours(k=5, recall=0.9, table="lists rebuilt")
    tables = {name: database.neighbour_table(name) for name in ("lists", "lists rebuilt")}
    rows = database.neighbour_table("exact").rows()
    assert all(np.array_equal(table.rows(), rows) for table in tables.values())
    true = database.neighbour_table("exact").read(rows)[0]
    recalls = [recall(table.read(rows)[0], true) for table in tables.values()]
    assert recalls[1] > 0.8
    assert abs(recalls[0] - recalls[1]) <= 0.005, (recalls, [tables[name].entry.nprobe for name in tables])


def recall(found: Int64Array, true: Int64Array) -> float:
    """The share of the true neighbours (Q, k) among those found (Q, k)."""
    hits = sum(len(np.intersect1d(f[f >= 0], t[t >= 0])) for f, t in zip(found, true, strict=True))
    return hits / int((true >= 0).sum())
