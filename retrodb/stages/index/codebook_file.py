"""A codebook as a file of the database, and what its space's index entry says of it."""

from __future__ import annotations

from pathlib import Path

from retrodb.ann.codebook import Codebook, num_lists_of
from retrodb.config import IndexParams
from retrodb.format.entries import IndexEntry
from retrodb.format.kinds import path_of
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage


def publish_codebook(storage: Storage, space: str, codebook: Codebook) -> FileRecord:
    """Publish a codebook under its digest."""
    data = codebook.serialize()

    def write(local: Path) -> None:
        local.write_bytes(data)

    return publish(storage, "codebooks", path_of("codebooks", name=space, digest=codebook.digest), write, name=space)


def index_entry(codebook: Codebook, params: IndexParams, factory: str) -> IndexEntry:
    """The entry `index/<space>` of a codebook that was asked for as `factory`."""
    used = "Flat" if codebook.num_lists == 1 and num_lists_of(factory) > 1 else factory
    return IndexEntry(codebook.digest, used, codebook.num_lists, codebook.note, params)
