"""SQL over one snapshot, by DuckDB: read-only, and confined to the files that the snapshot names.

DuckDB asks for only the columns that a query uses, and gets them file by file, see `sql_rows.py`. What the files do not hold is
made here: where each file's range of ids begins, and which chunks are deleted. So the bitmaps of few shards are in memory, and
only where a query uses `live`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retrodb.errors import NotEnoughMemory, UsageError
from retrodb.format.records import ChunkRange
from retrodb.format.rows import dense_rows, rows_in
from retrodb.memory import MIB, PROCESS_MEMORY, size_text
from retrodb.store.bounded_cache import CachedReader
from retrodb.view.sql_rows import LiveColumn, StoredRows
from retrodb.view.view import View

if TYPE_CHECKING:
    import duckdb

    from retrodb.format.arrays import BoolArray, Int64Array


@dataclass(frozen=True)
class SqlResult:
    """The rows that a query gave."""

    columns: list[str]  # each name once
    rows: list[tuple[object, ...]]
    renamed: tuple[str, ...] = ()  # the columns whose name got a number because another column has it


def run_sql(view: View, query: str) -> SqlResult:
    """Run one SELECT over the tables `documents`, `chunks`, `shards` and `files`.

    Raises:
        NotEnoughMemory: for a query that the memory limit is too small for, although it wrote to disk.
        UsageError: for SQL that is invalid, is not one SELECT, or uses anything other than these tables.
        MissingFileError, DamagedFileError: for a file that the query would have to read.
    """
    import duckdb

    attached: list[StoredRows] = []
    try:
        with (
            TemporaryDirectory(prefix="retrodb-sql-") as spilled,
            duckdb.connect(config={"python_enable_replacements": False}) as connection,
        ):
            connection.execute(f"SET memory_limit = '{_query_bytes() // MIB}MiB'")
            connection.execute(f"SET temp_directory = '{spilled}'")
            _refuse_all_but_one_select(query)
            named = [attach for name, attach in _TABLES.items() if re.search(rf"\b{name}\b", query, re.IGNORECASE)]
            attached = [rows for attach in named for rows in attach(connection, view)]
            # What is attached stays readable; nothing else is, and no statement can change that.
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            cursor = connection.execute(query)
            columns, renamed = unique_columns([column[0] for column in cursor.description or ()])
            return SqlResult(columns, cursor.fetchall(), renamed)
    except duckdb.OutOfMemoryException as error:
        raise NotEnoughMemory(
            f"the query needs more than {size_text(PROCESS_MEMORY.limit_bytes)} of memory",
            where="SQL",
            remedy=f"Give --memory {size_text(2 * PROCESS_MEMORY.limit_bytes)}, or ask for fewer rows.",
        ) from error
    except duckdb.Error as error:
        for rows in attached:
            if rows.error is not None:
                raise rows.error from error
        what = " ".join(str(error).partition("\n\nLINE")[0].split()).rstrip(".!")
        raise UsageError(what, where="SQL", remedy=f"The tables are {', '.join(_TABLES)}.") from error


def _query_bytes() -> int:
    """The memory limit of DuckDB: that of this process, without the library, Arrow's pages and the cache."""
    limit = PROCESS_MEMORY.limit_bytes
    return max(limit - PROCESS_MEMORY.cache_bytes - _LIBRARY_MIB * MIB, _LEAST_QUERY_MIB * MIB)


_LIBRARY_MIB = 130  # the library, DuckDB's code and threads, and Arrow's pages while it reads
_LEAST_QUERY_MIB = 64


def _refuse_all_but_one_select(query: str) -> None:
    import duckdb

    kinds = [statement.type for statement in duckdb.extract_statements(query)]
    if kinds != [duckdb.StatementType.SELECT]:
        raise UsageError("not one SELECT statement", where="SQL", remedy="The database is read-only here.")


def unique_columns(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The names, where a repeated one gets a number as in `doc_id_1`; and the names that were made so."""
    columns, renamed = list[str](), list[str]()
    for name in names:
        column, number = name, 0
        while column in columns or (number and column in names):
            number += 1
            column = f"{name}_{number}"
        columns.append(column)
        renamed += [column] if number else []
    return columns, tuple(renamed)


_COUNTS = ("num_chunks", "num_key_chunks", "num_tokens", "num_key_tokens", "num_chars")


def _attach_documents(connection: duckdb.DuckDBPyConnection, view: View) -> list[StoredRows]:
    """`documents`: the columns of the files, and `first_chunk`, `shard` and `live` (some chunk of it is)."""
    from retrodb.format import schemas

    deleted = _deleted_rows(view)

    def are_live(span: ChunkRange, rows: pa.Table) -> BoolArray:
        first, count = (rows.column(name).to_numpy().astype(np.int64) for name in ("first_row", "num_chunks"))
        return _has_live(deleted(*span), first, count)

    live = LiveColumn(("first_row", "num_chunks"), are_live)
    stored = _attach_kind(connection, view, "documents", schemas.DOCUMENTS, live)
    # Only a condition on `shard` may reach the table, see `StoredRows`: no checksum protects the statistics of pages.
    texts = [f"coalesce(f.{name}, '') AS {name}" for name in ("doc_id", "source", "metadata")]
    numbers = [f"coalesce(f.{field.name}, 0) AS {field.name}" for field in schemas.DOCUMENTS if field.name in _COUNTS]
    columns = ", ".join([*texts, *numbers])
    connection.execute(
        f"""CREATE VIEW documents AS
        SELECT f.* EXCLUDE (base, first_row, shard, live)
            REPLACE (lower(hex(f.content_hash)) AS content_hash, f.added_at AT TIME ZONE 'UTC' AS added_at,
            {columns}),
            f.base + f.first_row AS first_chunk, f.shard, coalesce(f.live, false) AS live
        FROM documents_files f"""
    )
    return [stored]


def _attach_chunks(connection: duckdb.DuckDBPyConnection, view: View) -> list[StoredRows]:
    """`chunks`: `chunk_id`, `first_chunk` of its document, `position`, `role`, `num_tokens`, `text`, `live`."""
    from retrodb.format import schemas

    deleted = _deleted_rows(view)

    def are_live(span: ChunkRange, rows: pa.Table) -> BoolArray:
        document, position = (rows.column(name).to_numpy().astype(np.int64) for name in ("document", "position"))
        return _has_live(deleted(*span), document + position, 1)

    live = LiveColumn(("document", "position"), are_live)
    stored = _attach_kind(connection, view, "chunks", schemas.chunks_schema(view.settings.token_dtype), live)
    connection.execute(
        f"""CREATE VIEW chunks AS
        SELECT f.base + f.document + f.position AS chunk_id, f.base + f.document AS first_chunk,
            coalesce(f.position, 0) AS position,
            CASE f.role WHEN {schemas.ROLE_KEY} THEN 'key' WHEN {schemas.ROLE_VALUE} THEN 'value' ELSE 'text' END AS role,
            len(f.tokens) AS num_tokens, coalesce(f.text, '') AS text, coalesce(f.live, false) AS live
        FROM chunks_files f"""
    )
    return [stored]


def _attach_kind(
    connection: duckdb.DuckDBPyConnection, view: View, kind: str, schema: pa.Schema, live: LiveColumn
) -> StoredRows:
    """`<kind>_files`: all rows of the files of a kind, each with the `base` id of its file, its `shard`, and `live`."""
    records = view.coverage(kind).records
    shards, _ = view.shards.locate(np.array([record.first_chunk for record in records], dtype=np.int64))
    num_documents = view.shards.num_documents[shards].tolist()
    num_rows = num_documents if kind == "documents" else [record.num_rows for record in records]
    rows = StoredRows(view.files, records, shards.tolist(), num_rows, schema, live)
    connection.register(f"{kind}_files", rows.table)
    return rows


def _deleted_rows(view: View) -> CachedReader[[int, int], Int64Array]:
    """Reads the rows of a shard that are deleted or dropped, (d,) int64 ascending: a few of its rows, unless it is compacted."""

    def read(first_chunk: int, num_chunks: int) -> Int64Array:
        return rows_in(dense_rows(0, num_chunks) - view.chunks.live_rows(first_chunk, num_chunks))

    return CachedReader(read, lambda rows: rows.nbytes)


def _has_live(deleted: Int64Array, first_Q: Int64Array, count_Q: Int64Array | int) -> BoolArray:
    """(Q,) bool: whether fewer rows are deleted than there are, of ranges of rows."""
    num_deleted_Q = np.searchsorted(deleted, first_Q + count_Q) - np.searchsorted(deleted, first_Q)
    return np.asarray(num_deleted_Q < count_Q)


def _attach_shards(connection: duckdb.DuckDBPyConnection, view: View) -> list[StoredRows]:
    """`shards`: `shard`, `source`, `first_chunk`, `num_chunks`, `num_documents`."""
    shards = view.shards
    columns = {name: getattr(shards, name) for name in ("source", "first_chunk", "num_chunks", "num_documents")}
    connection.register("shards", pa.table({"shard": np.arange(len(shards)), **columns}))
    return []


def _attach_files(connection: duckdb.DuckDBPyConnection, view: View) -> list[StoredRows]:
    """`files`: what the manifest says of every live file; digests in hexadecimal."""
    rows = [
        {
            **{name: getattr(file, name) for name in ("kind", "name", "path", "first_chunk", "num_chunks", "num_rows")},
            "size_bytes": file.digest.size_bytes,
            "sha256": file.digest.sha256.hex(),
        }
        for file in view.manifest.all_files()
    ]
    connection.register("files", pa.Table.from_pylist(rows))
    return []


_TABLES = {
    "documents": _attach_documents,
    "chunks": _attach_chunks,
    "shards": _attach_shards,
    "files": _attach_files,
}
"""Attaches a table, and returns its rows if they are read from files. Only tables that a query names are attached."""
