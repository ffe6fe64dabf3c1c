"""The file of a codebook."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

from retrodb.ann.codebook import Codebook, load_codebook
from retrodb.errors import DamagedFileError
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.transaction import Transaction
from retrodb.store.digest import digest_bytes
from retrodb.store.open_storage import open_storage
from retrodb.store.storage import Storage


def publish_codebook(transaction: Transaction, space: str, codebook: Codebook) -> FileRecord:
    """Publish a codebook under its digest, and add it to the change."""
    data = codebook.serialize()
    path = path_of("codebooks", name=space, digest=codebook.digest)
    return transaction.publish("codebooks", path, partial(_write, data=data), name=space)


def stored_codebook(storage: Storage, path: str) -> Codebook:
    """The codebook in the file of a path, which has its SHA-256.

    Raises:
        MissingFileError: when it is not there.
        DamagedFileError: when its bytes are not those that name it.
    """
    data = storage.read(path)
    if digest_bytes(data).sha256.hex() != path.rpartition("/")[2].partition(".")[0]:
        remedy = "Run 'retrodb check --repair', or 'retrodb index --retrain'."
        raise DamagedFileError("checksum mismatch in a codebook", where=path, remedy=remedy)
    return load_codebook(data)


def _write(local: Path, data: bytes) -> None:
    local.write_bytes(data)


@lru_cache(maxsize=1)
def codebook_of_tasks(url: str, path: str) -> Codebook:
    """A codebook of the storage at a URL, read once by a process that runs tasks. Raises as `stored_codebook`."""
    return stored_codebook(open_storage(url), path)


def codebook_bytes(num_lists: int, dim: int) -> int:
    """What a process holds of a codebook: its bytes, the index, its centroids, and these checked for products."""
    return 4 * 4 * num_lists * dim
