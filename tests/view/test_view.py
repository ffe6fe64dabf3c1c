"""What of a snapshot is screened, embedded and asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import change, shard, space_entry, testset_entry

from retrodb.errors import UsageError
from retrodb.format.arrays import save_array
from retrodb.format.entries import QueriesEntry
from retrodb.format.records import ScreenedRecord, screening_key
from retrodb.format.rows import RowSet
from retrodb.store.commit import commit_first
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.view.view import View

from .made_chunks import SETTINGS

DIGEST = "ab" * 16


def view_with(storage: LocalStorage, screened: dict[str, list[tuple[int, int]]], registered: list[str]) -> View:
    """Three shards of 100 chunks, registered test sets, and ranges (first, count) that were held against some."""
    records = [ScreenedRecord(screening_key(n, DIGEST), *span) for n, spans in screened.items() for span in spans]
    entries = {f"testset/{name}": testset_entry(DIGEST) for name in registered}
    shards = [shard(name) for name in ("one", "two", "three")]
    return View(
        storage, SETTINGS, commit_first(storage, change("init", shards=shards, screened=records, entries=entries))
    )


SPANS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 150)), max_size=5)


@settings(max_examples=40, deadline=None)
@given(screened=st.dictionaries(st.sampled_from("ab"), SPANS), registered=st.lists(st.sampled_from("ab"), unique=True))
def test_rows_are_visible_once_every_registered_test_set_saw_them(
    tmp_path_factory: pytest.TempPathFactory, screened: dict[str, list[tuple[int, int]]], registered: list[str]
) -> None:
    view = view_with(LocalStorage(tmp_path_factory.mktemp("db")), screened, registered)
    seen = {n: {i for f, c in screened.get(n, []) for i in range(f, f + c)} for n in registered}
    expected = [all(i in seen[name] for name in registered) for i in range(300)]
    assert view.screened_mask(0, 300).tolist() == expected
    assert view.screened_mask(130, 50).tolist() == expected[130:180]
    for name in registered:
        whole = [index for index in range(3) if {*range(100 * index, 100 * index + 100)} <= seen[name]]
        assert view.unscreened_shards(name) == [index for index in range(3) if index not in whole]


def test_screening_against_an_older_version_of_a_test_set_does_not_count(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    old = ScreenedRecord(screening_key("a", "cd" * 16), 0, 100)
    entries = {"testset/a": testset_entry(DIGEST)}
    storage = LocalStorage(tmp_path_factory.mktemp("db"))
    view = View(
        storage, SETTINGS, commit_first(storage, change("x", shards=[shard("one")], screened=[old], entries=entries))
    )
    assert view.unscreened_shards("a") == [0]


def test_vectors_come_from_any_file_that_holds_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("db"))
    files = []
    for number, rows in enumerate(([0, 2, 3], [1, 2])):
        content = np.array([[10 * number + row, 0] for row in rows], dtype=np.float16)
        mask = np.isin(np.arange(100), rows)
        path = f"vectors/s/{number}.npy"
        write = lambda local, content=content: save_array(local, content)  # noqa: E731
        files.append(publish(storage, "vectors", path, write, name="s", first_chunk=0, rows=RowSet.from_mask(mask)))
    own = change("x", shards=[shard("one")], files=files, entries={"space/s": space_entry(2)})
    view = View(storage, SETTINGS, commit_first(storage, own))
    vectors = view.vectors("s", np.array([3, 1, 2, 0]))
    assert vectors[:, 0].tolist() == [3, 11, 2, 0]


def test_unknown_query_set_is_refused_with_those_that_are_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("db"))
    view = View(
        storage, SETTINGS, commit_first(storage, change("x", entries={"queries/q": QueriesEntry("queries add")}))
    )
    with pytest.raises(UsageError, match=r"no query set 'p'.*self, q"):
        view.query_set("p")
    assert view.query_set("self") is view.chunks
    assert view.query_set("q").end == 0
