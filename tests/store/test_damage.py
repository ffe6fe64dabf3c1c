"""Whatever is damaged, missing or foreign is refused by name, with a remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up import change, file

from retrodb.errors import (
    DamagedFileError,
    FormatVersionError,
    MissingFileError,
    NotADatabaseError,
    RetroDBError,
)
from retrodb.format import FORMAT_VERSION
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.format.settings import Settings, dump_settings
from retrodb.format.snapshot import Snapshot, dump_snapshot
from retrodb.stages.context import Context
from retrodb.store.commit import commit, commit_first
from retrodb.store.digest import digest_bytes
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_head
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles

SETTINGS = Settings(64, 8, "own", "00" * 32, 300, "uint16", 0)


@pytest.fixture
def opened(storage: LocalStorage) -> Context:
    """A database with settings and a tokenizer."""
    files = []
    for kind, data in (("settings", dump_settings(SETTINGS).encode()), ("tokenizer", b"{}")):
        storage.write(path_of(kind), data)
        files.append(FileRecord(kind, "", path_of(kind), digest_bytes(data)))
    commit_first(storage, change("init", files=files))
    assert len(Context(storage).view().manifest.paths()) == 2
    return Context(storage)


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, cut, empty, os.remove])
@pytest.mark.parametrize("kind", ["snapshots", "manifests", "retrodb.toml", "tokenizer.json"])
def test_harm_to_a_fixed_file_is_found_at_opening(opened: Context, kind: str, harm: Callable[[Path], None]) -> None:
    root = Path(opened.storage.url)
    [path] = [root / kind] if (root / kind).is_file() else (root / kind).iterdir()
    harm(path)
    expected = NotADatabaseError if (kind, harm) == ("snapshots", os.remove) else DamagedFileError
    with pytest.raises(expected) as raised:
        Context(opened.storage).view().manifest.paths()
    if expected is DamagedFileError:
        assert path.name in str(raised.value)
        assert isinstance(raised.value, MissingFileError) == (harm is os.remove)
    assert raised.value.remedy


def test_every_flipped_bit_of_a_snapshot_is_found(opened: Context) -> None:
    [path] = (Path(opened.storage.url) / "snapshots").iterdir()
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 5):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        with pytest.raises(DamagedFileError):
            read_head(opened.storage)


def test_changed_settings_are_not_believed(opened: Context) -> None:
    """Valid, but not those that the database was made with."""
    opened.storage.write("retrodb.toml", dump_settings(replace(SETTINGS, chunk_tokens=32)).encode())
    with pytest.raises(DamagedFileError, match=r"retrodb\.toml"):
        _ = opened.view().manifest


@pytest.mark.parametrize("text", ["chunk_tokens = ", "x = 1", 'chunk_tokens = "64"', "format_version = 'a'", "\0"])
def test_settings_that_make_no_sense_are_damage(opened: Context, text: str) -> None:
    opened.storage.write("retrodb.toml", text.encode())
    with pytest.raises(DamagedFileError, match=r"retrodb\.toml: damaged settings.*backup"):
        opened.settings()


def test_settings_that_are_no_text_are_damage(opened: Context) -> None:
    opened.storage.write("retrodb.toml", b"\xff\xfe")
    with pytest.raises(DamagedFileError, match=r"retrodb\.toml"):
        opened.settings()


@pytest.mark.parametrize(
    "change",
    [
        {"token_dtype": "wint16"},
        {"chunk_tokens": 0},
        {"chunk_tokens": 2**40},
        {"pad_token": 300},
        {"min_key_tokens": 65},
    ],
)
def test_settings_that_no_init_writes_are_damage(opened: Context, change: dict[str, Any]) -> None:
    """A flipped bit can leave valid TOML."""
    opened.storage.write("retrodb.toml", dump_settings(replace(SETTINGS, **change)).encode())
    with pytest.raises(DamagedFileError, match=rf"retrodb\.toml: damaged settings .*{next(iter(change))}"):
        opened.settings()


def test_newer_settings_are_refused(opened: Context) -> None:
    text = dump_settings(replace(SETTINGS, format_version=FORMAT_VERSION + 1)) + "future = true\n"
    opened.storage.write("retrodb.toml", text.encode())
    with pytest.raises(FormatVersionError, match=rf"retrodb\.toml: .*{FORMAT_VERSION + 1}.*newer retrodb"):
        opened.view()


def test_newer_snapshot_is_refused(storage: LocalStorage, base: Snapshot) -> None:
    storage.write(base.path, dump_snapshot(replace(base, format_version=FORMAT_VERSION + 1)))
    with pytest.raises(FormatVersionError, match=rf"{base.path}: .*{FORMAT_VERSION + 1}.*newer retrodb"):
        read_head(storage)


@pytest.mark.parametrize("path", ["", "nothing/here"])
def test_folder_without_snapshots_is_no_database(tmp_path: Path, path: str) -> None:
    with pytest.raises(NotADatabaseError, match=r"not a retrodb database.*retrodb init"):
        Context(LocalStorage(tmp_path / path)).view()


def test_damaged_segment_of_an_older_snapshot_leaves_the_newer_readable(storage: LocalStorage, base: Snapshot) -> None:
    head = commit(storage, base, change("x", files=[file("rejects", "rejects/x.parquet")]))
    flip(storage.local(path_of("manifests", digest=base.segments[0].digest)))
    assert len(load_manifest(storage, head).paths()) == 11
    with pytest.raises(DamagedFileError, match=base.segments[0].digest):
        load_manifest(storage, base)


@pytest.mark.parametrize("path", ["../outside.npy", "/etc/hostname", "vectors/../../x"])
def test_manifest_path_out_of_the_database_is_refused(storage: LocalStorage, base: Snapshot, path: str) -> None:
    head = commit(storage, base, change("x", files=[file("rejects", path)]))
    [record] = load_manifest(storage, head).files("rejects")
    with pytest.raises(DamagedFileError, match="leads outside of the database"):
        VerifiedFiles(storage).open(record)


@pytest.mark.parametrize("harm", [flip, cut, empty, os.remove])
@pytest.mark.parametrize(("kind", "remedy"), [("vectors", "rebuilt from chunks"), ("chunks", "backup")])
def test_harm_to_a_live_file_is_found_at_its_opening(
    storage: LocalStorage, kind: str, remedy: str, harm: Callable[[Path], None]
) -> None:
    storage.write(f"{kind}/a", b"some bytes")
    record = FileRecord(kind, "", f"{kind}/a", digest_bytes(b"some bytes"))
    assert VerifiedFiles(storage).open(record) == storage.root / kind / "a"
    harm(storage.root / kind / "a")
    with pytest.raises(DamagedFileError, match=rf"{kind}/a: .*{remedy}") as raised:
        VerifiedFiles(storage).open(record)
    assert isinstance(raised.value, MissingFileError) == (harm is os.remove)


def test_verified_file_is_not_read_again(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write("chunks/a", b"some bytes")
    record = FileRecord("chunks", "", "chunks/a", digest_bytes(b"some bytes"))
    VerifiedFiles(storage).open(record)
    monkeypatch.setattr("retrodb.store.verify.digests_of_blocks", lambda path: pytest.fail("read again"))
    VerifiedFiles(storage).open(record)


def test_errors_tell_what_where_and_the_remedy(storage: LocalStorage) -> None:
    with pytest.raises(RetroDBError) as raised:
        read_head(storage)
    assert str(raised.value).startswith(f"{storage.url}: not a retrodb database. ")
