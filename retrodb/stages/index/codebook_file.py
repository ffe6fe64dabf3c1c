"""The file of a codebook, and the entry that describes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from retrodb.ann.codebook import Codebook, load_codebook, num_lists_of
from retrodb.config import IndexParams
from retrodb.errors import DamagedFileError
from retrodb.format.entries import IndexEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.stages.transaction import Transaction
from retrodb.store.digest import digest_bytes
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


def index_entry(codebook: Codebook, params: IndexParams, factory: str) -> IndexEntry:
    """The entry `index/<space>` of a codebook.

    Args:
        factory: the factory string that was asked for. The codebook is Flat where its sample was too small for it.
    """
    used = "Flat" if codebook.num_lists == 1 and num_lists_of(factory) > 1 else factory
    return IndexEntry(codebook.digest, used, codebook.num_lists, codebook.note, params)
