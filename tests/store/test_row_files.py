"""Row bitmaps are stored once, verified, read when they are asked for, and kept as long as a file needs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import orjson
import pytest
from made_documents import made_text, write_documents

import retrodb
from retrodb.database import Database
from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.rows import RowSet
from retrodb.store.collection import execute_collection, plan_collection
from retrodb.store.publish import publish
from retrodb.store.row_files import read_bitmap, store_rows
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles

Make = Callable[..., Database]
ROWS = RowSet.from_mask(np.arange(100) % 3 > 0)


@pytest.fixture
def compacted(make_database: Make) -> Database:
    """A shard, its vectors and a part, all without the rows of one document."""
    database = make_database({f"d{n}": made_text(n, 150) for n in range(9)})
    database.embed()
    database.index()
    database.filter(doc_ids=["d4"], reason="gone")
    database.compact(min_deleted=0)
    return database


def test_equal_rows_share_a_file_and_whole_files_have_none(storage: LocalStorage) -> None:
    files = [
        publish(storage, "tokens", f"tokens/{n}.npy", lambda local: local.write_bytes(b"x"), first_chunk=0, rows=ROWS)
        for n in range(3)
    ]
    assert len({file.rows_path for file in files}) == len(storage.list("rows")) == 1
    assert VerifiedFiles(storage).rows(files[0]).present.tolist() == ROWS.present.tolist()
    assert store_rows(storage, RowSet.all(7)) is None


def test_damaged_and_lost_bitmaps_are_named(storage: LocalStorage) -> None:
    digest = store_rows(storage, ROWS)
    assert digest is not None
    [path] = storage.list("rows")
    content = bytearray(storage.read(path))
    content[-1] ^= 1
    storage.write(path, bytes(content))
    with pytest.raises(DamagedFileError, match=rf"^{path}: checksum mismatch"):
        read_bitmap(storage, digest)
    storage.delete(path)
    with pytest.raises(MissingFileError, match=rf"^{path}: file is missing"):
        read_bitmap(storage, digest)


def test_files_of_a_shard_and_of_a_part_share_their_rows(compacted: Database) -> None:
    manifest = compacted.view().manifest
    with_gaps = [file for file in manifest.all_files() if file.rows]
    assert {file.kind for file in with_gaps} == {"documents", "chunks", "tokens", "hashes", "ids", "vectors", "parts"}
    assert len(manifest.row_files()) <= 3 < len(with_gaps)
    assert set(manifest.row_files()) <= set(manifest.paths())


def test_opening_reads_no_bitmap(compacted: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = LocalStorage.read
    monkeypatch.setattr(LocalStorage, "read", lambda self, path: read.append(path) or original(self, path))
    view = retrodb.open(compacted.path).view()
    assert view.chunks.ranges
    assert view.coverage("vectors", "default").records
    assert not [path for path in read if path.startswith("rows/")]
    assert not view.chunks.is_live(view.chunks.ranges[0].first_chunk + np.arange(view.chunks.end)).all()
    assert [path for path in read if path.startswith("rows/")] == [view.chunks.ranges[0].rows_path]


def test_a_check_finds_a_lost_and_a_damaged_bitmap(compacted: Database) -> None:
    storage = LocalStorage(Path(compacted.path))
    path = compacted.view().manifest.row_files()[0]
    content = storage.read(path)
    storage.write(path, content[:-1] + bytes([content[-1] ^ 1]))
    assert compacted.check().damaged == ()
    assert [damage.path for damage in compacted.check(read_data=True).damaged] == [path]
    storage.delete(path)
    assert [damage.path for damage in compacted.check().damaged] == [path]


def test_collection_keeps_the_bitmaps_that_a_snapshot_or_an_open_run_needs(compacted: Database, tmp_path: Path) -> None:
    storage = LocalStorage(Path(compacted.path))
    needed = set(compacted.view().manifest.row_files())
    store_rows(storage, ROWS)  # of no file
    [unneeded] = set(storage.list("rows")) - needed
    now = datetime.now(UTC)
    for later in (now, now + timedelta(days=30)):
        execute_collection(storage, plan_collection(storage, 1, later, timedelta(days=7)))
    assert set(storage.list("rows")) == needed
    assert unneeded not in needed
    assert compacted.check(read_data=True).damaged == ()
    compacted.ingest([write_documents(tmp_path / "more.jsonl", {"more": made_text(77, 90)})], source="more")
    assert compacted.search([made_text(3, 60)], k=3)[0]


def test_a_bitmap_that_a_command_uses_again_is_not_collected_by_an_old_mark(compacted: Database) -> None:
    """It is named by its content: a file that nothing needed for weeks may be needed by the next commit."""
    storage = LocalStorage(Path(compacted.path))
    store_rows(storage, ROWS)
    [path] = set(storage.list("rows")) - set(compacted.view().manifest.row_files())
    now, grace = datetime.now(UTC), timedelta(days=7)
    long_ago = (now - timedelta(days=20)).timestamp()
    marks = {path: (now - timedelta(days=10)).isoformat(timespec="seconds")}
    for is_used_again in (True, False):
        storage.write("collection.json", orjson.dumps(marks))
        os.utime(storage.local(path), (long_ago, long_ago))
        if is_used_again:
            store_rows(storage, ROWS)
        plan = plan_collection(storage, 1, now + timedelta(seconds=5), grace)
        assert (path in plan.delete) is not is_used_again
