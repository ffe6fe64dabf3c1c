"""Opening a live file after its bytes were compared with its record.

A file's xxh3-128 is computed when it is first opened on a machine. A match is remembered by device, inode, size and
modification time in a small file of the user's cache folder, so that the next process does not compute it again. A process
reads every line of this file at most once, however many tasks and views open files.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.records import FileRecord
from retrodb.store.digest import xxh3_file
from retrodb.store.storage import Storage

CACHE_VARIABLE = "RETRODB_CACHE_DIR"


class VerifiedFiles:
    """Opens the files of one database."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._verified = _verified_keys(_cache_file())

    def open(self, record: FileRecord) -> Path:
        """The local path of a live file, verified.

        Raises:
            MissingFileError: when it is not there.
            DamagedFileError: when its size or digest is not that of the record.
        """
        try:
            path = self.storage.local(record.path)
        except MissingFileError as error:
            raise MissingFileError("file is missing", where=record.path, remedy=remedy(record)) from error
        stat = path.stat()
        if stat.st_size != record.digest.size_bytes:
            raise damage(record, f"{stat.st_size} bytes instead of {record.digest.size_bytes}")
        key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{record.digest.xxh3.hex()}"
        if key not in self._verified:
            actual = xxh3_file(path)
            if actual != record.digest.xxh3:
                raise damage(
                    record, f"checksum mismatch (expected {record.digest.xxh3.hex()[:12]}.., got {actual.hex()[:12]}..)"
                )
            self._verified.add(key)
        return path


class _VerifiedKeys:
    """The keys of verified files: the lines of a cache file, to which other processes append too."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._keys: set[str] = set()
        self._num_bytes = 0  # of the cache file that were read

    def __contains__(self, key: str) -> bool:
        if key not in self._keys:
            self._read_new_lines()
        return key in self._keys

    def add(self, key: str) -> None:
        """Remember a key, also for other processes."""
        self._keys.add(key)
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a") as file:
                file.write(key + "\n")
        except OSError:  # a cache that cannot be written costs time, never correctness
            return

    def _read_new_lines(self) -> None:
        try:
            size = self._cache.stat().st_size
            if size == self._num_bytes:
                return
            with self._cache.open("rb") as file:
                file.seek(self._num_bytes if size > self._num_bytes else 0)  # a shorter file is another one
                start, data = file.tell(), file.read()
        except OSError:  # no cache yet, or one that cannot be read: then every file is verified again
            return
        complete = data.rpartition(b"\n")[0]
        self._keys.update(complete.decode(errors="replace").split("\n"))
        self._num_bytes = start + len(complete) + (b"\n" in data)


@lru_cache(maxsize=4)
def _verified_keys(cache: Path) -> _VerifiedKeys:
    return _VerifiedKeys(cache)


def remedy(record: FileRecord) -> str:
    """What to do about a bad file of this kind."""
    from retrodb.format.kinds import KINDS

    if KINDS[record.kind].derived_from == "-":
        return "Restore it from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'."
    return f"It can be rebuilt from {KINDS[record.kind].derived_from}: run 'retrodb check --repair'."


def damage(record: FileRecord, what: str) -> DamagedFileError:
    """The error for a live file whose bytes are not those of its record."""
    return DamagedFileError(what, where=record.path, remedy=remedy(record))


def cache_folder() -> Path:
    """The user's cache folder of retrodb; `RETRODB_CACHE_DIR` moves it."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrodb"


def _cache_file() -> Path:
    return cache_folder() / "verified"
