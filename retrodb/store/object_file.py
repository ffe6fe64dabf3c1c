"""One object outside of a database, read like a file: an input of a command."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from retrodb.errors import InputError, MissingFileError
from retrodb.store.object_client import PIECE_BYTES, ObjectClient
from retrodb.store.object_urls import bucket_and_key

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def object_size(url: str) -> int | None:
    """The size of an object in bytes; None where there is none. Raises RetroDBError when the store cannot be read."""
    bucket, key = bucket_and_key(url)
    info = ObjectClient(bucket).info(key) if key and not key.endswith("/") else None
    return None if info is None else info.size_bytes


def objects_below(url: str) -> list[str]:
    """The names of all objects below a folder, without its own, sorted. Raises RetroDBError when the store cannot be read."""
    bucket, key = bucket_and_key(url)
    folder = f"{key.strip('/')}/" if key.strip("/") else ""
    return [path.removeprefix(folder) for path in ObjectClient(bucket).infos(folder.strip("/"))]


class ObjectFile(io.RawIOBase):
    """The bytes of one version of an object. One piece of it is in memory."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            FileNotFoundError: there is no such object.
            RetroDBError: the store cannot be read.
        """
        bucket, key = bucket_and_key(url)
        self._client, self._key, self._url = ObjectClient(bucket), key, url
        try:
            first = self._client.get(key, (0, PIECE_BYTES))
        except MissingFileError:
            raise FileNotFoundError(url) from None
        assert first is not None
        self._info, self._piece, self._start, self._position = first.info, memoryview(first.data), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some bytes.

        Raises:
            InputError: another version has taken the place of the object.
            RetroDBError: the store cannot be read.
        """
        view = memoryview(buffer).cast("B")
        if not len(view) or self._position >= self._info.size_bytes:
            return 0
        if not self._start <= self._position < self._start + len(self._piece):
            self._read_piece()
        offset = self._position - self._start
        data = self._piece[offset : offset + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read_piece(self) -> None:
        span = (self._position, self._position + PIECE_BYTES)
        piece = self._client.get(self._key, span, version=self._info.etag)
        if piece is None:
            raise InputError(
                "another version took its place while it was read", where=self._url, remedy="Run it again."
            )
        self._piece, self._start = memoryview(piece.data), self._position
