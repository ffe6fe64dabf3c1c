"""A storage that reads a database and keeps what is written in a temporary folder: for checks, measurements, and dry runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from retrodb.store.storage import FileStat, LocalStorage, Storage

SCHEME = "scratch://"
BASE_FILE = ".database"  # in the temporary folder: the URL of the database, for other processes


class ScratchStorage:
    """Files of the temporary folder come before those of the database, where nothing is written or deleted."""

    def __init__(self, folder: Path, base: Storage) -> None:
        self._folder, self._written, self._base = folder, LocalStorage(folder), base

    @staticmethod
    def create(folder: Path, base: Storage) -> ScratchStorage:
        """The storage with a new temporary folder, which other processes can open by its URL."""
        (folder / BASE_FILE).write_text(base.url, encoding="utf-8")
        return ScratchStorage(folder, base)

    def __hash__(self) -> int:
        return hash((self._folder, self._base))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScratchStorage) and (other._folder, other._base) == (self._folder, self._base)

    @property
    def url(self) -> str:
        return f"{SCHEME}{self._folder}"

    @property
    def database_url(self) -> str:
        """The URL of the database that it reads."""
        return self._base.url

    def probe(self) -> None:
        """Nothing is written to the database."""

    def _holder(self, path: str) -> Storage:
        return self._written if self._written.exists(path) else self._base

    def read(self, path: str) -> bytes:
        return self._holder(path).read(path)

    def local(self, path: str) -> Path:
        return self._holder(path).local(path)

    def fetch(self, path: str) -> Path:
        return self._holder(path).fetch(path)

    def stat(self, path: str) -> FileStat:
        return self._holder(path).stat(path)

    def stats(self, prefix: str) -> dict[str, FileStat]:
        written = {path: stat for path, stat in self._written.stats(prefix).items() if path != BASE_FILE}
        return dict(sorted({**self._base.stats(prefix), **written}.items()))

    def write(self, path: str, data: bytes) -> None:
        self._written.write(path, data)

    def read_pieces(self, path: str) -> Iterator[bytes]:
        return self._holder(path).read_pieces(path)

    def write_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        self._written.write_pieces(path, pieces)

    def stage(self, path: str) -> AbstractContextManager[Path]:
        return self._written.stage(path)

    def working_folder(self) -> AbstractContextManager[Path]:
        return self._written.working_folder()

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return not self._base.exists(path) and self._written.put_if_absent(path, data)

    def exists(self, path: str) -> bool:
        return self._holder(path).exists(path)

    def list(self, prefix: str) -> list[str]:
        written = (path for path in self._written.list(prefix) if path != BASE_FILE)
        return sorted({*self._base.list(prefix), *written})

    def delete(self, path: str) -> None:
        self._written.delete(path)

    def delete_all(self, paths: Sequence[str]) -> None:
        self._written.delete_all(paths)

    def remove_empty_folders(self, prefix: str) -> None:
        self._written.remove_empty_folders(prefix)

    @property
    def keeps_versions(self) -> bool:
        return False

    def forget_copies(self) -> None:
        """Those of the database stay."""


def is_read_only(storage: LocalStorage) -> bool:
    """Whether nothing can be written where a database is."""
    return storage.root.exists() and not os.access(storage.root, os.W_OK)
