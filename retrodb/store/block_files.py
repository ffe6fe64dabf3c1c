"""Files of block digests: they prove a part of a file without the rest, and the manifest's xxh3 proves them.

Each is named by the SHA-256 of the file that it describes, from which it can be computed again at any time.
"""

from __future__ import annotations

from retrodb.errors import DamagedFileError, MissingFileError
from retrodb.format.blocks import root_digest
from retrodb.format.records import FileRecord
from retrodb.store.digest import digests_of_blocks
from retrodb.store.storage import Storage

REBUILD = "It can be rebuilt from the file that it describes: run 'retrodb check --repair'."


def store_blocks(storage: Storage, record: FileRecord, digests: bytes) -> None:
    """Publish the digests of a file's blocks, where the file needs them.

    They are written again where they are there already: collection may have marked them, and begins again with a file that was
    written since.
    """
    if record.blocks_path is not None:
        storage.write(record.blocks_path, digests)


def read_blocks(storage: Storage, record: FileRecord) -> bytes:
    """The digests of a file's blocks.

    Raises:
        MissingFileError: when they are not there.
        DamagedFileError: when they are not those that the record promises.
    """
    path = record.blocks_path
    assert path is not None
    try:
        digests = storage.read(path)
    except MissingFileError as error:
        raise MissingFileError("file is missing", where=path, remedy=REBUILD) from error
    if root_digest(digests) != record.digest.xxh3:
        raise DamagedFileError(f"not the block digests of {record.path}", where=path, remedy=REBUILD)
    return digests


def find_blocks(storage: Storage, record: FileRecord) -> None:
    """Raises MissingFileError when the digests of a file's blocks are not there."""
    if record.blocks_path is not None and not storage.exists(record.blocks_path):
        raise MissingFileError("file is missing", where=record.blocks_path, remedy=REBUILD)


def rebuild_blocks(storage: Storage, record: FileRecord) -> None:
    """Write the digests of the blocks of an undamaged file again.

    Raises:
        DamagedFileError: the file is damaged itself.
    """
    digests = digests_of_blocks(storage.local(record.path))
    if root_digest(digests) != record.digest.xxh3:
        raise DamagedFileError("checksum mismatch", where=record.path, remedy=REBUILD)
    assert record.blocks_path is not None
    storage.write(record.blocks_path, digests)
