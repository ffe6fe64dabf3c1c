"""A database of made-up files, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrodb.format.snapshot import Snapshot
from retrodb.store.storage import LocalStorage

from .actions import found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRODB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "db")


@pytest.fixture
def base(storage: LocalStorage) -> Snapshot:
    """The first snapshot of a database with two shards and a space."""
    return found(storage)
