"""An object that is read like a file."""

from __future__ import annotations

import io
import os

import pytest
from object_server import ObjectServer, RandomFaults

from retrodb.errors import InputError
from retrodb.store import object_file
from retrodb.store.object_file import ObjectFile, object_size, objects_below
from retrodb.store.object_storage import ObjectStorage
from retrodb.store.object_urls import bucket_and_key, is_object_url

PIECE = 1000


@pytest.fixture
def data(s3_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The content of `large` and `folder/a`, which is several pieces."""
    monkeypatch.setattr(object_file, "PIECE_BYTES", PIECE)
    content = os.urandom(5 * PIECE + 7)
    for path in ("large", "folder/a", "folder/b/c"):
        s3_storage.write(path, content)
    return content


def test_url_has_a_bucket_and_a_key() -> None:
    assert bucket_and_key("s3://bucket/a/b") == ("s3://bucket", "a/b")
    assert bucket_and_key("gs://bucket") == ("gs://bucket", "")
    assert [is_object_url(path) for path in ("s3://b/k", "az://b/k", "file:///a", "a/s3:", "-")] == [True, True] + [
        False
    ] * 3


def test_object_reads_as_a_file_does_under_faults(store_url: str, data: bytes, object_server: ObjectServer) -> None:
    object_server.choose = RandomFaults(0.2, seed=4)
    file = io.BytesIO(data)
    with ObjectFile(f"{store_url}/large") as opened:
        for offset, whence in (
            (0, os.SEEK_SET),
            (-100, os.SEEK_END),
            (2500, os.SEEK_SET),
            (-10, os.SEEK_CUR),
            (9, os.SEEK_END),
        ):
            assert opened.seek(offset, whence) == file.seek(offset, whence)
            assert opened.read(50) == file.read(50)
            assert opened.tell() == file.tell()
    with io.BufferedReader(ObjectFile(f"{store_url}/large"), 300) as buffered:
        assert buffered.read() == data


def test_object_that_is_replaced_while_it_is_read_is_an_error(store_url: str, data: bytes) -> None:
    with ObjectFile(f"{store_url}/large") as opened:
        assert opened.read(PIECE) == data[:PIECE]
        ObjectStorage(store_url).write("large", data[::-1])
        with pytest.raises(InputError, match="another version took its place"):
            opened.read(PIECE)


def test_sizes_and_names_of_objects(store_url: str, data: bytes) -> None:
    assert object_size(f"{store_url}/large") == len(data)
    assert object_size(f"{store_url}/folder") is None
    assert object_size(store_url.rpartition("/")[0]) is None
    assert objects_below(f"{store_url}/folder/") == ["a", "b/c"]
    assert objects_below(f"{store_url}/none") == []
    with pytest.raises(FileNotFoundError):
        ObjectFile(f"{store_url}/none")
