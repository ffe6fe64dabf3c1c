"""Storage: publishing is atomic, one of several writers wins, and no path leads out."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
from pathlib import Path

import pytest

from retrodb.errors import DamagedFileError, MissingFileError, NoSpaceError, RetroDBError
from retrodb.store.lock import advisory_lock
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import LocalStorage, Storage
from retrodb.store.temporary import TEMPORARY, is_abandoned, is_temporary

WRITERS, ROUNDS = 8, 50


def test_exactly_one_of_eight_processes_puts_each_file(any_storage: Storage) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(WRITERS) as pool:
        won = pool.starmap(_put_all, [(any_storage.url, writer) for writer in range(WRITERS)])
    winners = [[writer for writer in range(WRITERS) if won[writer][number]] for number in range(ROUNDS)]
    assert all(len(each) == 1 for each in winners)
    assert [any_storage.read(f"x/{n}") for n in range(ROUNDS)] == [str(each[0]).encode() for each in winners]
    assert any_storage.list(TEMPORARY) == []


def _put_all(url: str, writer: int) -> list[bool]:
    storage = open_storage(url)
    return [storage.put_if_absent(f"x/{number}", str(writer).encode()) for number in range(ROUNDS)]


def test_written_bytes_are_read_again(any_storage: Storage) -> None:
    any_storage.write("a/b.bin", b"one")
    assert (any_storage.read("a/b.bin"), any_storage.local("a/b.bin").read_bytes()) == (b"one", b"one")
    assert any_storage.exists("a/b.bin")
    assert not any_storage.exists("a")
    assert any_storage.list("a") == ["a/b.bin"]
    any_storage.delete("a/b.bin")
    any_storage.delete("a/b.bin")
    assert not any_storage.exists("a/b.bin")


def test_listing_is_sorted_deep_and_empty_where_nothing_is(any_storage: Storage) -> None:
    for path in ("k/b", "k/a/x", "k/a-"):
        any_storage.write(path, b"")
    assert any_storage.list("k") == ["k/a-", "k/a/x", "k/b"]
    assert any_storage.list("nothing") == []


def test_empty_folders_are_removed_and_made_again_for_a_file_that_was_begun(storage: LocalStorage) -> None:
    storage.write("runs/a/plan.json", b"x")
    storage.write("runs/b/tasks/1.json", b"x")
    storage.delete("runs/b/tasks/1.json")
    storage.remove_empty_folders("runs")
    storage.remove_empty_folders("nothing")
    assert [path.name for path in (storage.root / "runs").iterdir()] == ["a"]
    with storage.stage("runs/c/tasks/1.json") as local:
        local.write_bytes(b"y")
        storage.remove_empty_folders("runs")
    assert storage.list("runs") == ["runs/a/plan.json", "runs/c/tasks/1.json"]


@pytest.mark.parametrize("fault", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_failed_stage_publishes_nothing_and_leaves_nothing(any_storage: Storage, fault: BaseException) -> None:
    any_storage.write("a", b"old")
    with pytest.raises((type(fault), RetroDBError)):
        _stage_half(any_storage, fault)
    assert any_storage.read("a") == b"old"
    assert any_storage.list(TEMPORARY) == []


def _stage_half(storage: Storage, fault: BaseException) -> None:
    with storage.stage("a") as local:
        local.write_bytes(b"ne")
        raise fault


def test_file_is_whole_or_absent_while_it_is_staged(any_storage: Storage) -> None:
    with any_storage.stage("a") as local:
        local.write_bytes(b"half")
        assert not any_storage.exists("a")
        local.write_bytes(b"whole")
    assert any_storage.read("a") == b"whole"


def test_data_is_durable_before_the_name_is_there(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: file synced, renamed or linked, directory synced."""
    order: list[str] = []
    fsync, replace, link = os.fsync, os.replace, os.link
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), replace(a, b))[1])
    monkeypatch.setattr(os, "link", lambda a, b: (order.append("name"), link(a, b))[1])
    storage.write("a", b"")
    storage.put_if_absent("b", b"")
    assert order == ["sync", "name", "sync"] * 2


def test_missing_file_is_named(any_storage: Storage) -> None:
    for read in (any_storage.read, any_storage.local):
        with pytest.raises(MissingFileError, match=r"chunks/x\.parquet: file is missing.*retrodb check"):
            read("chunks/x.parquet")


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError)])
def test_full_disk_is_told(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[RetroDBError]
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match="Free some space and run the same command again"):
        storage.write("a", b"")
    assert not storage.exists("a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_is_told(storage: LocalStorage) -> None:
    storage.write("a", b"")
    storage.root.chmod(0o500)
    with pytest.raises(RetroDBError, match="no permission"):
        storage.write("b/c", b"")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/hostname", "a/..", "a\0b"])
def test_path_out_of_the_database_is_refused(any_storage: Storage, path: str) -> None:
    any_storage.write("inside", b"")
    for act in (any_storage.read, any_storage.local, any_storage.exists, any_storage.delete, any_storage.list):
        with pytest.raises(DamagedFileError, match="leads outside of the database"):
            act(path)
    with pytest.raises(DamagedFileError, match="leads outside of the database"):
        any_storage.write(path, b"")


@pytest.mark.parametrize("path", ["link", "folder/secret"])
def test_link_out_of_the_database_is_not_followed(storage: LocalStorage, tmp_path: Path, path: str) -> None:
    storage.root.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (storage.root / "link").symlink_to(outside / "secret")
    (storage.root / "folder").symlink_to(outside)
    with pytest.raises(DamagedFileError, match="leads outside of the database"):
        storage.read(path)
    with pytest.raises(DamagedFileError, match="leads outside of the database"):
        storage.write(path, b"")
    assert (outside / "secret").read_text() == "secret"


def test_database_may_itself_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage = open_storage(str(tmp_path / "link"))
    storage.write("a", b"x")
    assert storage.read("a") == b"x"


def test_unknown_scheme_is_refused_and_file_urls_are_directories(tmp_path: Path) -> None:
    with pytest.raises(RetroDBError, match=r"scheme 'ftp' is not supported.*s3://, gs://, az://"):
        open_storage("ftp://host/db")
    assert open_storage(f"file://{tmp_path}").url == str(tmp_path)


def test_folder_that_cannot_be_listed_is_an_error_and_not_empty(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    storage.write("snapshots/a", b"")
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(RetroDBError, match="Input/output error"):
        storage.list("snapshots")


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("4096 requested and 12 written"),  # NumPy
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),  # Arrow
        RuntimeError("Error in virtual size_t faiss::FileIOWriter::operator(): write error: No space left on device"),
    ],
)
def test_full_disk_has_one_error_whatever_library_reports_it(any_storage: Storage, fault: Exception) -> None:
    with pytest.raises(NoSpaceError, match=r"a: no space left.*Free some space"):
        _stage_half(any_storage, fault)
    assert any_storage.list(TEMPORARY) == []


def test_unfinished_files_name_their_process(storage: LocalStorage) -> None:
    with storage.stage("a/b") as local:
        local.write_bytes(b"")
        [path] = storage.list(TEMPORARY)
        assert is_temporary(path)
        assert not is_abandoned(path)
    gone = re.sub(r"\.\d+-", f".{_ended_process()}-", path)
    assert is_abandoned(gone)
    assert not is_temporary(f"{TEMPORARY}/thesis.pdf")


def _ended_process() -> int:
    process = multiprocessing.get_context("spawn").Process(target=_nothing)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def _nothing() -> None:
    """Ends at once."""


def test_lock_in_a_folder_that_cannot_be_written_does_not_stop_a_reader(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with advisory_lock(storage, "embed", "embed"):
        pass
