"""SQL over one snapshot, by DuckDB: read-only, and confined to the files that the snapshot names.

DuckDB reads the Parquet files through Arrow, which verifies the checksums of pages, and asks it for only the columns that a
query uses. What the files do not hold is made here: where each file's range of ids begins, and which chunks are deleted.
DuckDB asks for `live` some rows at a time, so that the bitmaps of few shards are in memory, and only where a query uses it.
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
from retrodb.format.parquet import FileWithConstants, iterate_row_groups, open_dataset
from retrodb.format.records import FileRecord
from retrodb.memory import MIB, PROCESS_MEMORY, size_text
from retrodb.store.bounded_cache import CachedReader
from retrodb.view.view import View

if TYPE_CHECKING:
    import duckdb

    from retrodb.format.arrays import Int64Array


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

    records: list[FileRecord] = []
    liveness = _Liveness(view)
    try:
        with (
            TemporaryDirectory(prefix="retrodb-sql-") as spilled,
            duckdb.connect(config={"python_enable_replacements": False}) as connection,
        ):
            connection.execute(f"SET memory_limit = '{_query_bytes() // MIB}MiB'")
            connection.execute(f"SET temp_directory = '{spilled}'")
            _refuse_all_but_one_select(query)
            arguments = ["BIGINT", "BIGINT", "BIGINT"]
            connection.create_function(_IS_LIVE, liveness.of_rows, arguments, "BOOLEAN", type="arrow")  # type: ignore[call-overload]
            named = [attach for name, attach in _TABLES.items() if re.search(rf"\b{name}\b", query, re.IGNORECASE)]
            records = [record for attach in named for record in attach(connection, view)]
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
        if liveness.error is not None:
            raise liveness.error from error
        is_of_query = isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException)
        if not is_of_query and _READING.search(str(error)):
            for record in records:
                _read_whole(view, record)
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


_READING = re.compile(
    r"checksum|CRC|parquet|page|column|OSError|IOError|Arrow|thrift|zstd|decompress|deserialize|reading the stream",
    re.I,
)
"""Words of an error that may come from a damaged file, and not from the query."""


def _read_whole(view: View, record: FileRecord) -> None:
    """Raises DamagedFileError if a file cannot be read."""
    for _ in iterate_row_groups(view.files.open(record)):
        pass


_COUNTS = ("num_chunks", "num_key_chunks", "num_tokens", "num_key_tokens", "num_chars")


def _attach_documents(connection: duckdb.DuckDBPyConnection, view: View) -> list[FileRecord]:
    """`documents`: the columns of the files, and `first_chunk`, `shard` and `live` (some chunk of it is)."""
    from retrodb.format import schemas

    records = _attach_kind(connection, view, "documents", schemas.DOCUMENTS)
    # No condition on these columns reaches Arrow, which would skip pages by statistics that no checksum protects.
    texts = [f"coalesce(f.{name}, '') AS {name}" for name in ("doc_id", "source", "metadata")]
    numbers = [f"coalesce(f.{field.name}, 0) AS {field.name}" for field in schemas.DOCUMENTS if field.name in _COUNTS]
    columns = ", ".join([*texts, *numbers])
    connection.execute(
        f"""CREATE VIEW documents AS
        SELECT f.* EXCLUDE (base, first_row, shard)
            REPLACE (lower(hex(f.content_hash)) AS content_hash, f.added_at AT TIME ZONE 'UTC' AS added_at,
            {columns}),
            f.base + f.first_row AS first_chunk, f.shard, {_IS_LIVE}(f.base, f.first_row, f.num_chunks) AS live
        FROM documents_files f"""
    )
    return records


def _attach_chunks(connection: duckdb.DuckDBPyConnection, view: View) -> list[FileRecord]:
    """`chunks`: `chunk_id`, `first_chunk` of its document, `position`, `role`, `num_tokens`, `text`, `live`."""
    from retrodb.format import schemas

    records = _attach_kind(connection, view, "chunks", schemas.chunks_schema(view.settings.token_dtype))
    connection.execute(
        f"""CREATE VIEW chunks AS
        SELECT f.base + f.document + f.position AS chunk_id, f.base + f.document AS first_chunk,
            coalesce(f.position, 0) AS position,
            CASE f.role WHEN {schemas.ROLE_KEY} THEN 'key' WHEN {schemas.ROLE_VALUE} THEN 'value' ELSE 'text' END AS role,
            len(f.tokens) AS num_tokens, coalesce(f.text, '') AS text,
            {_IS_LIVE}(f.base, f.document + f.position, 1) AS live
        FROM chunks_files f"""
    )
    return records


def _attach_kind(connection: duckdb.DuckDBPyConnection, view: View, kind: str, schema: pa.Schema) -> list[FileRecord]:
    """`<kind>_files`: all rows of the files of a kind, each with the `base` id of its file, and its `shard`.

    Returns:
        The records of the files.
    """
    records = view.coverage(kind).records
    shards, _ = view.shards.locate(np.array([record.first_chunk for record in records], dtype=np.int64))
    num_documents = view.shards.num_documents[shards].tolist()
    num_rows = num_documents if kind == "documents" else [record.num_rows for record in records]
    files = [
        FileWithConstants(view.files.open(record), count, {"base": record.first_chunk, "shard": shard})
        for record, shard, count in zip(records, shards.tolist(), num_rows, strict=True)
    ]
    # To count rows DuckDB reads the first column, which must be one that no page has to be read for.
    with_constants = [pa.field("base", pa.int64()), pa.field("shard", pa.int64()), *schema]
    rows = open_dataset(files, schema) if files else pa.schema(with_constants).empty_table()
    connection.register(f"{kind}_files", rows)
    return records


_IS_LIVE = "has_live_chunk"
"""The function of queries that says what is live, see `_Liveness.of_rows`."""


class _Liveness:
    """Tells DuckDB which documents and chunks are live."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._live_before = CachedReader(self._count_live, lambda counts: counts.nbytes)
        self.error: Exception | None = None  # that ended the query

    def of_rows(self, base: pa.Array, first_row: pa.Array, num_rows: pa.Array) -> pa.Array:
        """(Q,) bool: whether some chunk is live among rows `first_row .. first_row + num_rows` of a shard.

        Args:
            base: the first chunk of the shard; of none, nothing is live. Each argument (Q,) int64.
        """
        bases, first, count = (column.to_numpy() for column in (base, first_row, num_rows))
        is_live = np.zeros(len(bases), dtype=bool)
        try:
            for shard in np.unique(bases).tolist():
                where = np.flatnonzero(bases == shard)
                live_before = self._live_before(shard)
                begin, end = (np.clip(rows[where], 0, len(live_before) - 1) for rows in (first, first + count))
                is_live[where] = live_before[end] > live_before[begin]
        except Exception as error:
            self.error = error  # DuckDB raises an error of its own instead
            raise
        return pa.array(is_live)

    def _count_live(self, first_chunk: int) -> Int64Array:
        """(rows + 1,) int64: the number of live chunks before each row of a shard, and the number of all."""
        records = self._view.coverage("documents").overlapping(first_chunk, 1)
        if not records or records[0].first_chunk != first_chunk:
            return np.zeros(1, dtype=np.int64)
        return np.concatenate(([0], np.cumsum(~self._view.chunks.deleted_mask(*records[0].span))))


def _attach_shards(connection: duckdb.DuckDBPyConnection, view: View) -> list[FileRecord]:
    """`shards`: `shard`, `source`, `first_chunk`, `num_chunks`, `num_documents`."""
    shards = view.shards
    columns = {name: getattr(shards, name) for name in ("source", "first_chunk", "num_chunks", "num_documents")}
    connection.register("shards", pa.table({"shard": np.arange(len(shards)), **columns}))
    return []


def _attach_files(connection: duckdb.DuckDBPyConnection, view: View) -> list[FileRecord]:
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
"""Attaches a table and returns the files that it reads; only tables whose name is a word of the query are attached."""
