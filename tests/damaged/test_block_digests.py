"""Block digests that are lost or damaged are listed and computed again; they go when the file goes that they describe."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flipped import flip_bit, forget_verified

import retrodb
from retrodb.database import Database
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.store.collection import execute_collection, plan_collection, unused_blocks
from retrodb.store.digest import digest_file
from retrodb.store.storage import LocalStorage

from .asked import answers


def described(root: Path) -> set[str]:
    """The names that files of block digests may have: one for each file that is there."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path_of("blocks", digest=digest_file(path).sha256.hex()) for path in files}


def file_of(database: Database, kind: str) -> FileRecord:
    return next(record for record in database.view().manifest.files(kind) if record.blocks_path)


def lose(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    flip_bit(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [lose, damage])
@pytest.mark.parametrize("kind", ["chunks", "vectors", "parts", "neighbours"])
def test_a_repair_computes_block_digests_again(
    kind: str, harm: Callable[[Path], None], copy: Callable[[], Path], truth: dict[str, Any]
) -> None:
    root = copy()
    database = retrodb.open(root)
    path = file_of(database, kind).blocks_path
    assert path is not None
    before = (root / path).read_bytes()
    harm(root / path)
    forget_verified()
    assert answers(retrodb.open(root)) == truth
    damaged = database.check(read_data=True).damaged
    assert [each.path for each in damaged] == [path]
    assert "retrodb check --repair" in damaged[0].remedy
    assert [each.path for each in database.check().damaged] == ([path] if harm is lose else [])
    result = database.repair()
    assert (result.plan.rebuilt, result.plan.recomputed, result.plan.lost, result.is_whole) == ((path,), (), (), True)
    assert (root / path).read_bytes() == before
    assert (root / "quarantine" / path).exists() == (harm is damage)
    assert database.check(read_data=True).damaged == ()


@pytest.mark.parametrize("kind", ["tokens", "vectors", "parts"])
def test_a_file_and_its_block_digests_are_repaired_together(kind: str, copy: Callable[[], Path]) -> None:
    root = copy()
    database = retrodb.open(root)
    record = file_of(database, kind)
    assert record.blocks_path is not None
    for path in (record.path, record.blocks_path):
        damage(root / path)
    forget_verified()
    assert {each.path for each in database.check(read_data=True).damaged} == {record.path, record.blocks_path}
    assert database.repair().is_whole
    assert database.check(read_data=True).damaged == ()
    assert database.search(["ban kaban lodor"], k=4)[0]


def test_a_purge_deletes_the_block_digests_of_what_it_deletes(copy: Callable[[], Path]) -> None:
    root = copy()
    database = retrodb.open(root)
    before = {file.blocks_path for file in database.view().manifest.files("chunks") if file.blocks_path}
    LocalStorage(root).write(path_of("blocks", digest="ab" * 32), b"digests of a file that an interrupted task wrote")
    result = database.purge(["a3"])
    assert result.is_clean
    left = set(LocalStorage(root).list("blocks"))
    assert before - left
    assert left <= described(root)
    assert unused_blocks(LocalStorage(root)) == []
    assert database.check(read_data=True).damaged == ()


def test_collection_keeps_the_block_digests_of_files_that_are_needed(copy: Callable[[], Path]) -> None:
    root = copy()
    storage, database = LocalStorage(root), retrodb.open(root)
    database.filter(doc_ids=["a2"], reason="gone")
    database.compact(min_deleted=0)
    assert set(database.view().manifest.block_files()) < set(storage.list("blocks"))
    now = datetime.now(UTC)
    for later in (now, now + timedelta(days=30)):
        execute_collection(storage, plan_collection(storage, 1, later, timedelta(days=7)))
    assert storage.list("blocks") == database.view().manifest.block_files()
    assert database.check(read_data=True).damaged == ()
