"""A database of made-up files, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrodb.format.snapshot import Snapshot
from retrodb.store.object_storage import ObjectStorage
from retrodb.store.storage import LocalStorage, Storage

from .actions import found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def local_storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "db")


@pytest.fixture
def s3_storage(store_url: str) -> ObjectStorage:
    return ObjectStorage(store_url)


@pytest.fixture
def storage(local_storage: LocalStorage) -> LocalStorage:
    return local_storage


@pytest.fixture(params=["local", "s3"])
def any_storage(request: pytest.FixtureRequest) -> Storage:
    """A new place in a directory, and in an object store: what a test of it says is true of every storage."""
    kept: Storage = request.getfixturevalue(f"{request.param}_storage")
    return kept


@pytest.fixture
def base(storage: Storage) -> Snapshot:
    """The first snapshot of a database with two shards and a space."""
    return found(storage)
