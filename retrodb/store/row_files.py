"""Row bitmaps: small files that are named by their digest, so that all files with the same rows share one."""

from __future__ import annotations

import hashlib
import time

from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.kinds import path_of
from retrodb.format.rows import RowSet
from retrodb.store.storage import Storage

_REMEDY = "Restore it from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'."


def store_rows(storage: Storage, rows: RowSet) -> str | None:
    """Publish a bitmap; gives its digest, or None if all rows are present.

    One that is there is written again unless it is new: collection may have marked it, and begins again with a file that was
    written since.
    """
    digest = rows_digest(rows)
    if digest is None or rows.bitmap is None:
        return None
    path = path_of("rows", digest=digest)
    if not written_since(storage, path, time.time() - _NEW_S):
        storage.write(path, rows.bitmap)
    return digest


def rows_digest(rows: RowSet) -> str | None:
    """The digest that names the bitmap of some rows; None if all rows of their range are present."""
    return None if rows.bitmap is None else hashlib.sha256(rows.bitmap).hexdigest()


def written_since(storage: Storage, path: str, seconds: float) -> bool:
    """Whether a bitmap is there and was written after a time in seconds since 1970."""
    try:
        return storage.stat(path).modified_s > seconds
    except MissingFileError:
        return False


_NEW_S = 60.0


def digest_of(path: str) -> str:
    """The digest in the path of a bitmap."""
    return path.rpartition("/")[2].partition(".")[0]


def find_bitmap(storage: Storage, digest: str) -> None:
    """Raises MissingFileError when a bitmap is not there."""
    storage.stat(path_of("rows", digest=digest))


def read_bitmap(storage: Storage, digest: str) -> bytes:
    """The bytes of a bitmap.

    Raises:
        MissingFileError: when it is not there.
        DamagedFileError: when its bytes are not those that name it.
    """
    path = path_of("rows", digest=digest)
    try:
        bitmap = storage.read(path)
    except MissingFileError as error:
        raise MissingFileError("file is missing", where=path, remedy=_REMEDY) from error
    if hashlib.sha256(bitmap).hexdigest() != digest:
        raise DamagedFileError("checksum mismatch in a row bitmap", where=path, remedy=_REMEDY)
    return bitmap
