"""Copies of objects: used again, replaced when the object is, and removed when there are too many."""

from __future__ import annotations

import errno
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from flipped import flip_bit, forget_verified
from made_documents import made_text, write_documents
from object_server import ObjectServer

import retrodb
from retrodb.errors import DamagedFileError, RetroDBError, UsageError
from retrodb.format.arrays import save_array
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import FileRecord
from retrodb.store import object_cache
from retrodb.store.object_cache import DEFAULT_BYTES, SIZE_VARIABLE, ObjectCache, cache_limit
from retrodb.store.object_storage import ObjectStorage
from retrodb.store.publish import publish
from retrodb.store.verify import VerifiedFiles

MIB = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "objects", 10 * MIB, "s3://b/db")


def keep(cache: ObjectCache, path: str, etag: str, data: bytes) -> Path:
    with cache.temporary(path) as file:
        file.write_bytes(data)
        return cache.keep(path, etag, file)


def unused(path: Path, seconds: float) -> None:
    """Let a copy look as if nobody had used it for some time."""
    os.utime(path, ns=(time.time_ns() - int(seconds * 1e9), path.stat().st_mtime_ns))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_copy_is_found_under_its_name_with_its_etag(cache: ObjectCache) -> None:
    path = keep(cache, "a/x.parquet", '"1-2/3"', b"one")
    assert path.name == "x.parquet"
    found = cache.find("a/x.parquet")
    assert found is not None
    assert (found.path, found.etag) == (path, '"1-2/3"')
    assert cache.find("b/x.parquet") is None


def test_newer_copy_takes_the_place_of_an_older_one(cache: ObjectCache) -> None:
    old = keep(cache, "a", "1", b"one")
    new = keep(cache, "a", "2", b"two")
    assert not old.parent.exists()
    assert new.read_bytes() == b"two"


def test_least_recently_used_copies_go_first_and_the_limit_holds(cache: ObjectCache, tmp_path: Path) -> None:
    copies = [keep(cache, f"{number}", "1", bytes(MIB)) for number in range(9)]
    for age, copy in enumerate(copies):
        unused(copy, 1000 + age)  # the last one is the oldest
    keep(cache, "new", "1", bytes(3 * MIB))
    assert [copy.exists() for copy in copies] == [True] * 6 + [False] * 3
    assert size_of(tmp_path) <= 10 * MIB


def test_copy_is_kept_although_another_process_removes_its_folder_while_it_is_empty(
    cache: ObjectCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, removed = os.replace, []

    def replace_after_removal(source: Path, target: Path) -> None:
        if not removed:
            removed.append(target.parent)
            target.parent.rmdir()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_after_removal)
    assert keep(cache, "a", "1", b"one").read_bytes() == b"one"
    assert removed


def test_only_the_user_can_look_into_the_cache(cache: ObjectCache) -> None:
    keep(cache, "a", "1", b"one")
    assert cache.root.stat().st_mode & 0o777 == 0o700


def test_use_makes_a_copy_recent_and_leaves_its_time_of_change(cache: ObjectCache) -> None:
    copy = keep(cache, "a", "1", b"x")
    changed = copy.stat().st_mtime_ns
    unused(copy, 1000)
    cache.find("a")
    assert time.time() - copy.stat().st_atime < 100
    assert copy.stat().st_mtime_ns == changed


def test_copy_that_was_just_used_stays(cache: ObjectCache) -> None:
    copy = keep(cache, "a", "1", bytes(9 * MIB))
    keep(cache, "b", "1", bytes(9 * MIB))
    assert copy.exists()


def test_mapped_copy_can_be_removed(cache: ObjectCache) -> None:
    copy = keep(cache, "a", "1", b"x" * MIB)
    with copy.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        cache.forget("a")
        assert not copy.exists()
        assert mapped[-1:] == b"x"


def test_files_of_killed_processes_go(cache: ObjectCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, "a", "1", b"x")
    left = tmp_path / "objects" / "tmp" / "left"
    left.write_bytes(b"half")
    (tmp_path / "objects" / "tmp" / "folder").mkdir()
    monkeypatch.setattr(object_cache, "is_abandoned", lambda path: path in ("tmp/left", "tmp/folder"))
    keep(cache, "b", "1", bytes(9 * MIB))
    assert list((tmp_path / "objects" / "tmp").iterdir()) == []


def test_limit_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    assert cache_limit() == DEFAULT_BYTES
    for text, size_bytes in (("100GiB", 100 << 30), ("500 MB", 500 << 20), ("4096", 4096)):
        monkeypatch.setenv(SIZE_VARIABLE, text)
        assert cache_limit() == size_bytes
    monkeypatch.setenv(SIZE_VARIABLE, "much")
    with pytest.raises(UsageError, match="RETRODB_CACHE_SIZE: 'much' is not a size"):
        cache_limit()


def test_file_that_was_written_here_is_not_downloaded(s3_storage: ObjectStorage, object_server: ObjectServer) -> None:
    with s3_storage.stage("a/x.npy") as local:
        local.write_bytes(b"x")
    object_server.requests.clear()
    assert s3_storage.local("a/x.npy").read_bytes() == b"x"
    assert object_server.requests == []


def test_storage_asks_once_whether_a_copy_is_current(s3_storage: ObjectStorage, object_server: ObjectServer) -> None:
    s3_storage.write("a", b"x" * 1000)
    copy = s3_storage.local("a")
    object_server.requests.clear()
    again = ObjectStorage(s3_storage.url)
    assert again.local("a") == again.local("a") == copy
    assert [request.method for request in object_server.requests] == ["GET"]


def test_storage_takes_a_new_copy_of_an_object_that_another_process_replaced(s3_storage: ObjectStorage) -> None:
    s3_storage.write("a", b"old")
    old = s3_storage.local("a")
    ObjectStorage(s3_storage.url).write("a", b"new")
    assert s3_storage.stat("a").size_bytes == 3  # tells that the object is another one
    assert s3_storage.local("a").read_bytes() == b"new"
    assert not old.exists()


def test_copy_that_was_removed_is_made_again(s3_storage: ObjectStorage) -> None:
    s3_storage.write("a", b"x")
    s3_storage.local("a").unlink()
    assert s3_storage.local("a").read_bytes() == b"x"


def test_check_reads_the_store_and_replaces_a_damaged_copy(
    store_url: str, made_tokenizer: Path, tmp_path: Path
) -> None:
    retrodb.create(store_url, tokenizer=str(made_tokenizer), encoder="hashing:32")
    database = retrodb.open(store_url)
    database.ingest([write_documents(tmp_path / "one.jsonl", {"a": made_text("a", 100)})], source="made")
    [record] = database.view().manifest.files("chunks")
    copy = ObjectStorage(store_url).local(record.path)
    copy.write_bytes(bytes(copy.stat().st_size))
    assert retrodb.open(store_url).check(read_data=True).damaged == ()
    assert ObjectStorage(store_url).local(record.path).read_bytes() != bytes(record.digest.size_bytes)
    ObjectStorage(store_url).write(record.path, bytes(record.digest.size_bytes))
    [damage] = retrodb.open(store_url).check(read_data=True).damaged
    assert damage.path == record.path


def damaged_copy(storage: ObjectStorage, record: FileRecord, position: int) -> VerifiedFiles:
    """The files as a new process sees them, after a bit of a copy has flipped."""
    flip_bit(storage.local(record.path), position)
    forget_verified()
    return VerifiedFiles(ObjectStorage(storage.url))


def test_damaged_copy_of_a_whole_object_is_replaced_where_a_file_is_read_whole(s3_storage: ObjectStorage) -> None:
    array = np.arange(100_000, dtype=np.int64)
    record = publish(s3_storage, "vectors", "vectors/s/a.npy", lambda local: save_array(local, array))
    table = pa.table({"a": range(10)})
    footer = publish(s3_storage, "documents", "documents/a.parquet", lambda local: write_table(local, table))
    for position in (3, record.digest.size_bytes - 1):
        path = damaged_copy(s3_storage, record, position).open(record)
        assert np.array_equal(np.load(path), array)
        assert np.array_equal(damaged_copy(s3_storage, record, position).whole_array(record), array)
    assert read_table(damaged_copy(s3_storage, footer, 2).open(footer)) == table


def test_damaged_copy_of_a_whole_object_is_replaced_where_its_rows_are_read(s3_storage: ObjectStorage) -> None:
    array = np.arange(100_000, dtype=np.int64)
    record = publish(s3_storage, "vectors", "vectors/s/a.npy", lambda local: save_array(local, array))
    assert len(damaged_copy(s3_storage, record, 3).array(record)) == len(array)  # in its header
    mapped = damaged_copy(s3_storage, record, record.digest.size_bytes - 1).array(record)
    with pytest.raises(DamagedFileError, match=r"copy .* was damaged, and is replaced .*Run the same command again"):
        mapped[-1]
    forget_verified()
    assert VerifiedFiles(ObjectStorage(s3_storage.url)).array(record)[-1] == array[-1]


def test_damaged_object_is_damaged_and_a_whole_one_is_not_downloaded_again(
    s3_storage: ObjectStorage, object_server: ObjectServer
) -> None:
    record = publish(s3_storage, "vectors", "vectors/s/a.npy", lambda local: save_array(local, np.arange(1000)))
    forget_verified()
    object_server.requests.clear()
    VerifiedFiles(s3_storage).open(record)
    assert VerifiedFiles(s3_storage).array(record)[5] == 5
    assert not object_server.requests
    content = bytearray(s3_storage.read(record.path))
    content[-1] ^= 1
    s3_storage.write(record.path, bytes(content))
    forget_verified()
    files = VerifiedFiles(ObjectStorage(s3_storage.url))
    for act in (files.open, files.whole_array, lambda record: files.array(record)[-1]):
        with pytest.raises(DamagedFileError, match=r"checksum mismatch .*check --repair"):
            act(record)


def test_copy_that_lost_bytes_is_made_again(s3_storage: ObjectStorage) -> None:
    s3_storage.write("a", b"whole")
    s3_storage.local("a").write_bytes(b"")
    assert ObjectStorage(s3_storage.url).local("a").read_bytes() == b"whole"


def test_folder_that_cannot_be_written_is_named(s3_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    s3_storage.write("a", b"x")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RetroDBError, match=r"cache/objects, the copy of s3://.*/db/a: no permission to write here"):
        s3_storage.local("a")


def test_copies_of_objects_that_are_gone_can_be_removed(s3_storage: ObjectStorage) -> None:
    for path in ("a", "b", "c"):
        s3_storage.write(path, b"old")
    copies = [s3_storage.local(path) for path in ("a", "b", "c")]
    s3_storage._client.delete(["a"])  # by another machine, which does not know of the copies here
    s3_storage._client.put("b", b"new")
    time.sleep(0.01)
    ObjectStorage(s3_storage.url).forget_copies()
    assert [copy.exists() for copy in copies] == [False, False, True]
