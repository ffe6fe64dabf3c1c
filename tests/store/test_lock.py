"""The advisory lock: it names who holds it, and does no harm."""

from __future__ import annotations

import multiprocessing

import pytest

from retrodb.errors import LockedError
from retrodb.store.lock import advisory_lock
from retrodb.store.storage import LocalStorage


def test_second_holder_is_told_who_holds_it(storage: LocalStorage) -> None:
    storage.root.mkdir()
    context = multiprocessing.get_context("spawn")
    begin, end = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(storage.url, begin, end))
    holder.start()
    assert begin.wait(60)
    with pytest.raises(LockedError, match=rf"another command is running: ingest \(process {holder.pid} on "):
        with advisory_lock(storage, "source/a", "ingest"):
            pass
    with advisory_lock(storage, "source/b", "ingest"):
        pass
    end.set()
    holder.join()
    with advisory_lock(storage, "source/a", "ingest"):
        assert [p for p in storage.list("locks") if p.endswith(".json")] == ["locks/source_a.json"]
    assert not [p for p in storage.list("locks") if p.endswith(".json")]


def _hold(url: str, begin: object, end: object) -> None:
    with advisory_lock(LocalStorage(url), "source/a", "ingest"):
        begin.set()  # type: ignore[attr-defined]
        end.wait(60)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["über/äöü", "x" * 5000, "..", "a\nb"])
def test_any_name_can_be_locked(storage: LocalStorage, name: str) -> None:
    storage.root.mkdir()
    with advisory_lock(storage, name, "x"):
        assert storage.list("locks")


def test_lock_is_free_again_after_an_error(storage: LocalStorage) -> None:
    storage.root.mkdir()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), advisory_lock(storage, "a", "x"):
            _ = 1 / 0


def test_holder_that_left_nothing_readable_is_called_by_the_locks_name(storage: LocalStorage) -> None:
    storage.root.mkdir()
    with advisory_lock(storage, "a", "x"):
        (storage.root / "locks" / "a.json").write_text("{")
        with pytest.raises(LockedError, match="running: a"), advisory_lock(storage, "a", "x"):
            pass
