"""Edits of a table: every reader applies them, repair and rebuild keep them, and they can be undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_documents import made_text, write_documents
from marked import mark

from retrodb.database import Database
from retrodb.errors import UsageError

from .test_repair_neighbours import up_to_date

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    database = up_to_date(make_database({str(i): made_text(i, 100) for i in range(15)}))
    database.neighbours(k=2, spare_neighbours=3, exact=True)
    return database


def neighbours(database: Database, row: int) -> list[int]:
    ids, distances = database.neighbour_table().read(np.array([row]))
    assert (np.isfinite(distances) == (ids >= 0)).all()
    return ids[0].tolist()


def test_the_next_neighbour_takes_the_position_of_a_banned_one(database: Database, tmp_path: Path) -> None:
    stored = database.neighbour_table().stored(np.array([3]))[0][0].tolist()
    result = database.edit_neighbours(3, ban=stored[0])
    assert (list(result.before), list(result.after)) == (stored[:2], stored[1:3])
    assert neighbours(database, 3) == stored[1:3]
    assert neighbours(database, 4) == database.neighbour_table().stored(np.array([4]))[0][0, :2].tolist()
    database.export(tmp_path / "out", to="parquet")
    table = pq.read_table(tmp_path / "out" / "rows").to_pydict()
    exported = dict(zip(table["row"], table["neighbours"], strict=True))
    assert exported[3] == stored[1:3]
    assert database.edit_neighbours(3, ban=stored[0], undo=True).after == tuple(stored[:2])
    assert neighbours(database, 3) == stored[:2]
    assert not database.view().manifest.files("edits")


def test_a_pinned_chunk_comes_first_with_its_own_distance(database: Database) -> None:
    before = neighbours(database, 0)
    view = database.view()
    far = next(i for i in range(view.chunks.end - 1, 0, -1) if view.embeddable_mask(i, 1)[0] and i not in before)
    database.edit_neighbours(0, pin=far)
    ids, distances = database.neighbour_table().read(np.array([0]))
    vectors = database.view().vectors("default", np.array([0, far])).astype(np.float32)
    assert ids[0].tolist() == [far, before[0]]
    assert distances[0, 0] == pytest.approx(-(vectors[0] @ vectors[1]), abs=1e-6)
    assert database.edit_neighbours(0, ban=far).pins == (), "a ban replaces the pin"
    assert neighbours(database, 0) == before


def test_replacing_is_a_ban_and_a_pin_that_are_undone_together(database: Database) -> None:
    first, second = neighbours(database, 5)
    view = database.view()
    other = next(
        i for i in range(view.chunks.end - 1, 0, -1) if view.embeddable_mask(i, 1)[0] and i not in (first, second)
    )
    result = database.edit_neighbours(5, replace=(first, other))
    assert (result.after, result.bans, result.pins) == ((other, second), (first,), (other,))
    again = database.edit_neighbours(5, pin=other)
    assert again.snapshot == result.snapshot, "the same edit again changes nothing"
    database.edit_neighbours(5, replace=(first, other), undo=True)
    assert neighbours(database, 5) == [first, second]


def test_repair_and_rebuild_keep_edits_and_deleted_pins_are_hidden(database: Database, tmp_path: Path) -> None:
    first, second = neighbours(database, 5)
    view = database.view()
    pinned = next(
        i for i in range(view.chunks.end - 1, 0, -1) if view.embeddable_mask(i, 1)[0] and i not in (first, second)
    )
    database.edit_neighbours(5, replace=(first, pinned))
    more = {"more": view.chunks.texts(np.array([5]))[0] + " " + made_text(90, 20)}
    database.ingest([write_documents(tmp_path / "more.jsonl", more)], source="more")
    assert up_to_date(database).repair_neighbours()[0].num_improved > 0
    after = neighbours(database, 5)
    assert after[0] == pinned
    assert after[1] not in (first, pinned)
    database.neighbours(k=2, spare_neighbours=4, exact=True)
    assert neighbours(database, 5) == after
    mark(database, [pinned])
    assert pinned not in neighbours(database, 5)
    assert neighbours(database, 5)[0] == after[1]


def test_a_dry_run_shows_the_effect_and_changes_nothing(database: Database) -> None:
    before, number = neighbours(database, 1), database.view().snapshot.number
    result = database.edit_neighbours(1, ban=before[0], dry_run=True)
    assert result.after[0] == before[1]
    assert database.view().snapshot.number == number
    assert neighbours(database, 1) == before


def test_invalid_edits_are_refused(database: Database) -> None:
    first, second = neighbours(database, 1)
    end = database.view().chunks.end
    for match, row, options in [
        ("no live row", 2**33, {"ban": first}),
        ("no live chunk", 1, {"ban": end}),
        ("no live chunk", 1, {"pin": -1}),
        ("no live chunk", 1, {"pin": 2**33}),
        ("excluded", 1, {"pin": 0}),
        ("excluded", 1, {"pin": 1}),
        ("is not a neighbour", 1, {"replace": (end - 1, second)}),
        ("cannot replace itself", 1, {"replace": (first, first)}),
        ("no ban of chunk", 1, {"ban": first, "undo": True}),
        ("give exactly one edit", 1, {}),
        ("give exactly one edit", 1, {"ban": first, "pin": second}),
    ]:
        with pytest.raises(UsageError, match=match):
            database.edit_neighbours(row, **options)
    assert neighbours(database, 1) == [first, second]
