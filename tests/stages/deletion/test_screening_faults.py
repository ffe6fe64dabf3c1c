"""Tag, filter and undelete under faults of storage: old or new, and the same command again ends in the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from faulty_storage import SURVIVED, Crash, FaultyStorage, faults_of
from made_documents import made_text
from made_up import CLOCK

import retrodb
from retrodb.database import Database
from retrodb.errors import RetroDBError
from retrodb.store.storage import LocalStorage

STEPS: dict[str, Callable[[Database], object]] = {
    "tag": lambda db: db.tag("bad", regex="kaban"),
    "filter": lambda db: db.filter(where="bad > 0 and doc_id <> 'd0'"),
    "undelete": lambda db: db.undelete("filter", where="doc_id < 'd3'"),
}


def seen(root: Path) -> dict[str, bytes]:
    """The snapshots and all files that the newest one names."""
    view = retrodb.open(root).view()
    paths = [record.path for record in view.manifest.all_files()]
    return {path: (root / path).read_bytes() for path in [*paths, *view.storage.list("snapshots")]}


@pytest.mark.parametrize("command", STEPS)
def test_a_fault_leaves_the_old_or_the_new_version_and_can_be_continued(
    command: str,
    make_database: Callable[..., Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr("retrodb.store.storage._sync_file", lambda path: None)
    base = Path(make_database({f"d{n}": made_text(n, 12) + " kaban" * (n % 2) for n in range(6)}).path)
    for step in list(STEPS)[: list(STEPS).index(command)]:
        STEPS[step](retrodb.open(base, clock=CLOCK))

    def run(storage: LocalStorage | FaultyStorage) -> None:
        STEPS[command](retrodb.open(storage, clock=CLOCK))

    def fresh(name: str) -> LocalStorage:
        return LocalStorage(shutil.copytree(base, tmp_path / name))

    counting = FaultyStorage(fresh("counted"))
    run(counting)
    old, new = seen(base), seen(tmp_path / "counted")
    assert old != new
    faults = [(at, fault) for at, (name, _) in enumerate(counting.operations) for fault in faults_of(name)]
    for at, fault in faults:
        storage = fresh(f"{at}-{fault}")
        with suppress(RetroDBError, Crash):
            run(FaultyStorage(storage, at, fault))
        assert seen(storage.root) in (old, new), (at, fault)
        run(storage)
        assert seen(storage.root) == new, (at, fault)
        shutil.rmtree(storage.root)
    record_property(SURVIVED, len(faults))
