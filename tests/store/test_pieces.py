"""A file passes through a storage piece by piece: whole or not at all, and without a copy on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_server import ObjectServer

from retrodb.errors import MissingFileError, RetroDBError
from retrodb.store import object_storage, scratch, storage
from retrodb.store.object_storage import ObjectStorage
from retrodb.store.storage import LocalStorage, Storage

DATA = bytes(range(256)) * 10
PATH = "tokens/x.npy"


@pytest.fixture(params=["directory", "store", "scratch"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(storage, "_PIECE", 100)
    monkeypatch.setattr(object_storage, "PIECE_BYTES", 100)
    if request.param == "store":
        return ObjectStorage(request.getfixturevalue("store_url"))
    if request.param == "scratch":
        (tmp_path / "written").mkdir()
        return scratch.ScratchStorage.create(tmp_path / "written", LocalStorage(tmp_path / "db"))
    return LocalStorage(tmp_path / "db")


@pytest.mark.parametrize("size", [1, 99, 100, 101, 2560])
def test_what_is_written_in_pieces_is_read_in_pieces(place: Storage, size: int, tmp_path: Path) -> None:
    data = DATA[:size]
    place.write_pieces(PATH, (data[start : start + 7] for start in range(0, size, 7)))
    assert place.read(PATH) == data
    pieces = list(place.read_pieces(PATH))
    assert (b"".join(pieces), max(map(len, pieces))) == (data, min(size, 100))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_error_between_two_pieces_writes_nothing(place: Storage) -> None:
    def pieces() -> Iterator[bytes]:
        yield DATA
        raise RetroDBError("the source is damaged")

    with pytest.raises(RetroDBError, match="the source is damaged"):
        place.write_pieces(PATH, pieces())
    assert not place.exists(PATH)
    place.write_pieces(PATH, [b"old"])
    with pytest.raises(RetroDBError, match="the source is damaged"):
        place.write_pieces(PATH, pieces())
    assert place.read(PATH) == b"old"
    assert place.list("tmp") == []


def test_a_missing_file_is_named(place: Storage) -> None:
    with pytest.raises(MissingFileError, match=f"{PATH}: file is missing"):
        list(place.read_pieces(PATH))


def test_an_object_that_is_replaced_while_it_is_read_is_no_mixture(
    store_url: str, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "PIECE_BYTES", 100)
    store = ObjectStorage(store_url)
    store.write(PATH, DATA)
    pieces = store.read_pieces(PATH)
    assert next(pieces) == DATA[:100]
    ObjectStorage(store_url).write(PATH, DATA[::-1])
    with pytest.raises(RetroDBError, match="another writer replaces this object"):
        list(pieces)


def test_a_written_object_replaces_an_older_copy_on_this_machine(store_url: str) -> None:
    store = ObjectStorage(store_url)
    store.write(PATH, b"old")
    assert store.local(PATH).read_bytes() == b"old"
    store.write_pieces(PATH, [b"new"])
    assert store.local(PATH).read_bytes() == b"new"
