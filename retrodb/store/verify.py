"""Opening a live file after its bytes were compared with its record.

A file's xxh3-128 is computed when it is first opened on a machine. A match is remembered by device, inode, size and
modification time in a small file of the user's cache folder, so that the next process does not compute it again.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.cached_lines import cached_lines
from retrodb.store.digest import xxh3_file
from retrodb.store.row_files import read_bitmap
from retrodb.store.storage import Storage

_BITMAPS = 256  # in memory, at most 128 KiB each for the rows of a shard


class VerifiedFiles:
    """Opens the files of one database."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._verified = cached_lines("verified")
        self._bitmap = lru_cache(maxsize=_BITMAPS)(lambda digest: read_bitmap(storage, digest))

    def rows(self, record: FileRecord) -> RowSet:
        """The rows of its range that a live file holds.

        Raises:
            MissingFileError, DamagedFileError: for its row bitmap.
        """
        return RowSet(record.num_chunks, None if record.rows is None else self._bitmap(record.rows))

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
            self._verified.add([key])
        return path


def remedy(record: FileRecord) -> str:
    """What to do about a bad file of this kind."""
    from retrodb.format.kinds import KINDS

    if KINDS[record.kind].derived_from == "-":
        return "Restore it from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'."
    return f"It can be rebuilt from {KINDS[record.kind].derived_from}: run 'retrodb check --repair'."


def damage(record: FileRecord, what: str) -> DamagedFileError:
    """The error for a live file whose bytes are not those of its record."""
    return DamagedFileError(what, where=record.path, remedy=remedy(record))
