"""Storage in an object store: `s3://`, `gs://` and `az://`.

Objects are written whole and are never changed in part. Reading to memory asks the store each time. A local path is a copy in
`object_cache.py`, for which the store is asked once: whether the copy is still the object.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from retrodb.errors import RetroDBError
from retrodb.store.object_cache import object_cache
from retrodb.store.object_client import CONCURRENT_PIECES, PIECE_BYTES, Fetched, ObjectClient, ObjectInfo
from retrodb.store.object_probe import probe_store
from retrodb.store.storage import FileStat, missing_file, outside_database, translated_errors

_DOWNLOADS = 3  # of an object that another writer replaces meanwhile


class ObjectStorage:
    """The objects below a URL such as `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            UsageError, MissingDependency: as of `ObjectClient`.
        """
        self._client = ObjectClient(url)
        self._cache = object_cache(self.url)
        self._copies: dict[str, tuple[str, Path]] = {}  # etag and copy of the objects that this storage has asked for

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStorage) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def url(self) -> str:
        return self._client.url

    def probe(self) -> None:
        probe_store(self._client)

    def read(self, path: str) -> bytes:
        fetched = self._client.get(_checked(path))
        assert fetched is not None
        return fetched.data.to_bytes()

    def local(self, path: str) -> Path:
        _, copy = self._copies.get(_checked(path), ("", None))
        if copy is not None and self._cache.has(copy):
            return copy
        with self._errors(path):
            for _ in range(_DOWNLOADS):
                if (copy := self._copy(path)) is not None:
                    return copy
        raise self._replaced(path)

    def fetch(self, path: str) -> Path:
        self._copies.pop(_checked(path), None)
        self._cache.forget(path)
        return self.local(path)

    def stat(self, path: str) -> FileStat:
        info = self._client.info(_checked(path))
        if info is None:
            raise missing_file(path)
        if self._copies.get(path, (info.etag,))[0] != info.etag:
            del self._copies[path]
        return _stat_of(info)

    def stats(self, prefix: str) -> dict[str, FileStat]:
        return {path: _stat_of(info) for path, info in self._client.infos(_checked(prefix)).items()}

    def write(self, path: str, data: bytes) -> None:
        self._copies.pop(_checked(path), None)
        self._client.put(path, data)
        self._cache.forget(path)

    def read_pieces(self, path: str) -> Iterator[bytes]:
        first = self._client.get(_checked(path), (0, PIECE_BYTES))
        assert first is not None
        yield first.data.to_bytes()
        for start in range(PIECE_BYTES, first.info.size_bytes, PIECE_BYTES):
            piece = self._client.get(path, (start, start + PIECE_BYTES), version=first.info.etag)
            if piece is None:
                raise self._replaced(path)
            yield piece.data.to_bytes()

    def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        with self._errors(_checked(path)), self._cache.temporary(path) as temporary:
            with temporary.open("wb") as file:
                file.writelines(pieces)
            self.upload(path, temporary)

    @contextmanager
    def stage(self, path: str) -> Iterator[Path]:
        with self._errors(_checked(path)), self._cache.temporary(path) as temporary:
            yield temporary
            etag = self._client.put(path, temporary)
            assert etag is not None
            self._copies[path] = etag, self._cache.keep(path, etag, temporary)

    def upload(self, path: str, file: Path) -> None:
        """Write an object from a local file, of which no copy is kept."""
        self._copies.pop(_checked(path), None)
        with self._errors(path):
            self._client.put(path, file)
        self._cache.forget(path)

    def working_folder(self) -> AbstractContextManager[Path]:
        return self._cache.working_folder()

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return self._client.put(_checked(path), data, create=True) is not None

    def exists(self, path: str) -> bool:
        return self._client.info(_checked(path)) is not None

    def list(self, prefix: str) -> list[str]:
        return list(self._client.infos(_checked(prefix)))

    def delete(self, path: str) -> None:
        self.delete_all([path])

    def delete_all(self, paths: Sequence[str]) -> None:
        self._client.delete([_checked(path) for path in paths])
        for path in paths:
            self._copies.pop(path, None)
            self._cache.forget(path)

    def remove_empty_folders(self, prefix: str) -> None:
        """An object store has no folders."""

    @property
    def keeps_versions(self) -> bool:
        return self._client.keeps_versions

    def forget_copies(self) -> None:
        listed_s = time.time()
        objects = {path: (info.etag, info.size_bytes) for path, info in self._client.infos("").items()}
        self._cache.forget_others(objects, listed_s)

    def _errors(self, path: str) -> AbstractContextManager[None]:
        """Errors of the local disk, with the folder that they are about."""
        return translated_errors(path, f"{self._cache.root}, the copy of {self._url_of(path)}")

    def _replaced(self, path: str) -> RetroDBError:
        what = "another writer replaces this object while it is read"
        return RetroDBError(what, where=self._url_of(path), remedy="Run the same command again.")

    def _url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    def _copy(self, path: str) -> Path | None:
        """The copy of an object, downloaded if it is not there; None when the object was replaced meanwhile."""
        copy = self._cache.find(path)
        first = self._client.get(path, (0, PIECE_BYTES), unless=copy.etag if copy else None)
        if first is None:
            if copy is None or not self._cache.has(copy.path):  # it went for another copy
                return None
            self._copies[path] = copy.etag, copy.path
            return copy.path
        with self._cache.temporary(path) as temporary:
            if not self._download(path, first, temporary):
                return None
            self._copies[path] = first.info.etag, self._cache.keep(path, first.info.etag, temporary)
        return self._copies[path][1]

    def _download(self, path: str, first: Fetched, file: Path) -> bool:
        """Write an object to a file, several pieces at a time; whether it was the same object to its end."""
        with file.open("wb") as out:

            def transfer(start: int) -> bool:
                piece = self._client.get(path, (start, start + PIECE_BYTES), version=first.info.etag)
                return piece is not None and os.pwrite(out.fileno(), piece.data, start) == len(piece.data)

            os.pwrite(out.fileno(), first.data, 0)
            starts = range(PIECE_BYTES, first.info.size_bytes, PIECE_BYTES)
            if not starts:
                return True
            with ThreadPoolExecutor(min(CONCURRENT_PIECES, len(starts))) as pool:
                return all(pool.map(transfer, starts))


def _stat_of(info: ObjectInfo) -> FileStat:
    """The etag says whether the bytes have changed. A list may round the time in another way than an answer about one object."""
    return FileStat(info.size_bytes, info.modified_ns, info.modified_ns, f"{info.etag}:{info.size_bytes}")


def _checked(path: str) -> str:
    """The path, unless it leads out of the database."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise outside_database(path)
    return path
