"""Publishing a file and describing it: what every task does with its outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.block_files import store_blocks
from retrodb.store.digest import digest_with_blocks
from retrodb.store.row_files import store_rows
from retrodb.store.storage import Storage


def publish(
    storage: Storage,
    kind: str,
    path: str,
    write: Callable[[Path], None],
    *,
    name: str = "",
    first_chunk: int = -1,
    rows: RowSet | None = None,
) -> FileRecord:
    """Write a file with `write(local path)`, publish it atomically, and give its record.

    Args:
        rows: the rows of the id range that the file holds; None for files without ids.
    """
    rows_digest = None if rows is None else store_rows(storage, rows)
    with storage.stage(path) as local:
        write(local)
        digest, digests = digest_with_blocks(local)
        if rows is None:
            record = FileRecord(kind, name, path, digest)
        else:
            record = FileRecord(kind, name, path, digest, first_chunk, rows.num_rows_total, rows_digest, len(rows))
        store_blocks(storage, record, digests)  # before the file: what is there can be read
    return record
