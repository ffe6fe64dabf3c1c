"""Publishing a file and describing it: what every task does with its outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.digest import digest_file
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
        digest = digest_file(local)
    if rows is None:
        return FileRecord(kind, name, path, digest)
    return FileRecord(kind, name, path, digest, first_chunk, rows.num_rows_total, rows_digest, len(rows))
