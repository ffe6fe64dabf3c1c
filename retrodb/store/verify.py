"""Opening the live files of a database: no byte is read before this process has compared it with the manifest.

A file that is read whole is verified at its opening, a mapped file block by block when it is touched. Of a Parquet file
the opening verifies the footer, and Arrow the pages, by their checksums. Without the file of a file's block digests its readers
still work: they verify the whole file.

A copy of an object can be damaged although the object is whole. Such a copy is replaced. What is read whole is then read from
the new copy. A mapping has the old bytes, so its error asks for the same command again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.arrays import AnyArray
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.block_files import read_blocks
from retrodb.store.bounded_cache import CachedReader
from retrodb.store.digest import digests_of_blocks
from retrodb.store.row_files import read_bitmap
from retrodb.store.storage import Storage
from retrodb.store.verified_array import VerifiedArray
from retrodb.store.verified_bytes import VerifiedBlocks, VerifiedBytes, blocks_of

T = TypeVar("T")

_PARQUET_MAGIC, _PARQUET_TAIL = 4, 8  # bytes at the beginning; and at the end, with the length of the footer


class VerifiedFiles:
    """Opens the files of one database."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._bitmap = CachedReader(partial(read_bitmap, storage), len)

    def rows(self, record: FileRecord) -> RowSet:
        """The rows of its range that a live file holds.

        Raises:
            MissingFileError, DamagedFileError: for its row bitmap.
        """
        return RowSet(record.num_chunks, None if record.rows is None else self._bitmap(record.rows))

    def open(self, record: FileRecord) -> Path:
        """The local path of a live file: verified, or of a Parquet file the footer, because reading verifies its pages.

        Raises:
            MissingFileError: when it is not there.
            DamagedFileError: when its size or digest is not that of the record.
        """
        path, blocks = self._find(record)
        try:
            self._verify_opened(record, path, blocks)
        except DamagedFileError:
            if not self._replaces_copy(record, blocks):
                raise
            return self._find(record)[0]
        return path

    def verify(self, record: FileRecord) -> None:
        """Verify all bytes of a file of any kind, and its block digests.

        Raises:
            MissingFileError, DamagedFileError: for one of both.
        """
        self._verify_whole(record, *self._find(record))
        if record.blocks_path is not None:
            read_blocks(self.storage, record)

    def bytes(self, record: FileRecord) -> VerifiedBytes:
        """The mapped bytes of a live file, which are verified when they are declared. Raises as `open` for its size."""
        return self._map(record, *self._find(record))

    def array(self, record: FileRecord) -> VerifiedArray:
        """A live `.npy` file, mapped, whose rows are verified when they are read. Raises as `open` for its size and header."""
        return _tried_twice(lambda: VerifiedArray(self.bytes(record)))

    def whole_array(self, record: FileRecord) -> AnyArray:
        """All rows of a live `.npy` file, mapped. They prove each other, so no block digest is read. Raises as `array`."""

        def array() -> AnyArray:
            file = self.bytes(record)
            file.whole()
            return VerifiedArray(file).whole()

        return _tried_twice(array)

    def _find(self, record: FileRecord) -> tuple[Path, VerifiedBlocks]:
        """The path, and what was verified already."""
        try:
            path = self.storage.local(record.path)
            stat = path.stat()
        except (MissingFileError, FileNotFoundError) as error:
            raise MissingFileError("file is missing", where=record.path, remedy=remedy(record)) from error
        if stat.st_size != record.digest.size_bytes:
            raise damage(record, f"{stat.st_size} bytes instead of {record.digest.size_bytes}")
        return path, blocks_of(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, record.digest.xxh3)

    def _verify_opened(self, record: FileRecord, path: Path, blocks: VerifiedBlocks) -> None:
        if not (record.path.endswith(".parquet") and record.blocks_path is not None):
            self._verify_whole(record, path, blocks)
        elif not (blocks.is_whole or blocks.has_footer):
            read_digests = partial(_find_digests, self.storage, record)
            _verify_footer(VerifiedBytes(path, blocks, record.digest.xxh3, read_digests, partial(damage, record)))
            blocks.has_footer = True

    def _verify_whole(self, record: FileRecord, path: Path, blocks: VerifiedBlocks) -> None:
        if blocks.is_whole:
            return
        read_digests = partial(_find_digests, self.storage, record)
        blocks.verify_whole(digests_of_blocks(path), record.digest.xxh3, read_digests, partial(damage, record))

    def _map(self, record: FileRecord, path: Path, blocks: VerifiedBlocks) -> VerifiedBytes:
        read_digests = partial(_find_digests, self.storage, record)
        error_of = partial(self._damage_of_mapping, record, blocks)
        return VerifiedBytes(path, blocks, record.digest.xxh3, read_digests, error_of)

    def _damage_of_mapping(self, record: FileRecord, damaged: VerifiedBlocks, what: str) -> DamagedFileError:
        if not self._replaces_copy(record, damaged):
            return damage(record, what)
        what = f"the copy of this object on this machine was damaged, and is replaced ({what})"
        return DamagedFileError(what, where=record.path, remedy="Run the same command again.")

    def _replaces_copy(self, record: FileRecord, damaged: VerifiedBlocks) -> bool:
        """Whether the damaged bytes are only those of a copy, and a whole one has taken its place."""
        try:
            self.storage.fetch(record.path)
            path, blocks = self._find(record)
            if blocks is damaged:  # the file itself
                return False
            self._verify_whole(record, path, blocks)
        except DamagedFileError:
            return False
        return True


_READ_BLOCKS = CachedReader(read_blocks, len)  # those of 15,000 files of 2 GB are 4 GB, so a process cannot keep all


def _find_digests(storage: Storage, record: FileRecord) -> bytes:
    """The digests of a file's blocks; none where they are not there or damaged: the file proves its bytes, as a whole."""
    if record.blocks_path is None:
        return b""
    try:
        return _READ_BLOCKS(storage, record)
    except DamagedFileError:  # a check reports it
        return b""


def _tried_twice(read: Callable[[], T]) -> T:
    """What is read; the second time, from the copy that has taken the place of a damaged one."""
    try:
        return read()
    except MissingFileError:
        raise
    except DamagedFileError:
        return read()


def _verify_footer(file: VerifiedBytes) -> None:
    """Verify what no page checksum of a Parquet file protects: its magic, and its footer."""
    size = len(file.data)
    file.between(0, _PARQUET_MAGIC)
    length = int.from_bytes(file.between(size - _PARQUET_TAIL, size)[:4], "little")
    file.between(max(0, size - _PARQUET_TAIL - length), size)


def remedy(record: FileRecord) -> str:
    """What to do about a bad file of this kind."""
    from retrodb.format.kinds import KINDS

    if KINDS[record.kind].derived_from == "-":
        return "Restore it from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'."
    command = "run 'retrodb check --repair'"
    if record.kind == "parts":
        command += ", or 'retrodb index --retrain', which rebuilds the index"
    return f"It can be rebuilt from {KINDS[record.kind].derived_from}: {command}."


def damage(record: FileRecord, what: str) -> DamagedFileError:
    """The error for a live file whose bytes are not those of its record."""
    return DamagedFileError(what, where=record.path, remedy=remedy(record))
