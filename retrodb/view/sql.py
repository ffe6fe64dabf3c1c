"""SQL over one snapshot, by DuckDB: read-only, and confined to the files that the snapshot names.

DuckDB reads the Parquet files itself, so that a query reads only the columns it wants. What the files do not hold is made
here: where each file's range of ids begins, which rows it holds, and which chunks are deleted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.records import FileRecord
from retrodb.view.view import View
from retrodb.view.where import live_documents

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from retrodb.format.arrays import Int64Array


@dataclass(frozen=True)
class SqlResult:
    """The rows that a query gave."""

    columns: list[str]
    rows: list[tuple[object, ...]]


def run_sql(view: View, query: str) -> SqlResult:
    """Run one SELECT over the tables `documents`, `chunks`, `shards` and `files`.

    Raises:
        UsageError: for SQL that is invalid, is not one SELECT, or uses anything other than these tables.
        MissingFileError, DamagedFileError: for a file that the query would have to read.
    """
    import duckdb

    try:
        with duckdb.connect(config={"python_enable_replacements": False}) as connection:
            _refuse_all_but_one_select(query)
            named = [attach for name, attach in _TABLES.items() if re.search(rf"\b{name}\b", query, re.IGNORECASE)]
            paths = [path for attach in named for path in attach(connection, view)]
            # What is attached stays readable; nothing else is, and no statement can change that.
            connection.execute("SET allowed_paths = $paths", {"paths": paths})
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            cursor = connection.execute(query)
            return SqlResult([column[0] for column in cursor.description or ()], cursor.fetchall())
    except duckdb.Error as error:
        what = " ".join(str(error).partition("\n\nLINE")[0].split()).rstrip(".!")
        raise UsageError(what, where="SQL", remedy=f"The tables are {', '.join(_TABLES)}.") from error


def _refuse_all_but_one_select(query: str) -> None:
    import duckdb

    kinds = [statement.type for statement in duckdb.extract_statements(query)]
    if kinds != [duckdb.StatementType.SELECT]:
        raise UsageError("not one SELECT statement", where="SQL", remedy="The database is read-only here.")


def _attach_documents(connection: duckdb.DuckDBPyConnection, view: View) -> list[str]:
    """`documents`: the columns of the files, and `first_chunk`, `shard` and `live` (some chunk of it is)."""
    from retrodb.format import schemas

    dead = [
        record.first_chunk + view.chunks.layout(record).first_row[~live_documents(view.chunks, record)]
        for record in view.chunks.ranges
    ]
    connection.register("dead_documents", _ids_table(dead))
    paths = _attach_kind(connection, view, "documents", schemas.DOCUMENTS)
    connection.execute(
        """CREATE VIEW documents AS
        SELECT f.* EXCLUDE (base, row, first_row, shard)
            REPLACE (lower(hex(f.content_hash)) AS content_hash, f.added_at AT TIME ZONE 'UTC' AS added_at),
            f.base + f.first_row AS first_chunk, f.shard, dead.id IS NULL AS live
        FROM documents_files f LEFT JOIN dead_documents dead ON dead.id = f.base + f.first_row"""
    )
    return paths


def _attach_chunks(connection: duckdb.DuckDBPyConnection, view: View) -> list[str]:
    """`chunks`: `chunk_id`, `first_chunk` of its document, `position`, `role`, `num_tokens`, `text`, `live`."""
    from retrodb.format import schemas

    live = [(r.first_chunk, view.chunks.live_mask(*r.span)) for r in view.chunks.ranges]
    connection.register("dead_chunks", _ids_table([first + np.flatnonzero(~mask) for first, mask in live]))
    paths = _attach_kind(connection, view, "chunks", schemas.chunks_schema(view.settings.token_dtype))
    connection.execute(
        f"""CREATE VIEW chunks AS
        SELECT f.base + f.row AS chunk_id, f.base + f.document AS first_chunk, f.position,
            CASE f.role WHEN {schemas.ROLE_KEY} THEN 'key' WHEN {schemas.ROLE_VALUE} THEN 'value' ELSE 'text' END AS role,
            len(f.tokens) AS num_tokens, f.text, dead.id IS NULL AS live
        FROM chunks_files f LEFT JOIN dead_chunks dead ON dead.id = f.base + f.row"""
    )
    return paths


def _attach_kind(connection: duckdb.DuckDBPyConnection, view: View, kind: str, schema: pa.Schema) -> list[str]:
    """`<kind>_files`: all rows of the files of a kind, each with its `row`, the `base` id of its file, and its `shard`.

    Returns:
        The files, verified.
    """
    import pyarrow as pa

    records = view.coverage(kind).records
    paths = [str(view.files.open(record).absolute()) for record in records]
    base = np.array([record.first_chunk for record in records], dtype=np.int64)
    shard, _ = view.shards.locate(base)
    connection.register(
        f"{kind}_ranges", pa.table({"path": pa.array(paths, pa.string()), "base": base, "shard": shard})
    )
    connection.register(f"{kind}_packed", _packed_rows(paths, records))
    empty = pa.schema(
        [*schema, pa.field("filename", pa.string()), pa.field("file_row_number", pa.int64())]
    ).empty_table()
    connection.register(f"no_{kind}", empty)
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    files = f"read_parquet([{quoted}], filename = true, file_row_number = true)" if paths else f"no_{kind}"
    connection.execute(
        f"""CREATE VIEW {kind}_files AS
        SELECT f.* EXCLUDE (filename, file_row_number), r.base, r.shard, coalesce(p.row, f.file_row_number) AS row
        FROM {files} f JOIN {kind}_ranges r ON f.filename = r.path
        LEFT JOIN {kind}_packed p ON p.path = f.filename AND p.position = f.file_row_number"""
    )
    return paths


def _packed_rows(paths: list[str], records: list[FileRecord]) -> pa.Table:
    """The row at each position of those files that do not hold every row of their range."""
    import pyarrow as pa

    packed = [(path, r.row_set.present) for path, r in zip(paths, records, strict=True) if r.rows is not None]
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(present for _, present in packed)])
    positions = np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(len(present)) for _, present in packed)])
    names = [path for path, present in packed for _ in range(len(present))]
    return pa.table({"path": pa.array(names, pa.string()), "position": positions, "row": rows})


def _ids_table(parts: list[Int64Array]) -> pa.Table:
    import pyarrow as pa

    return pa.table({"id": np.concatenate([np.empty(0, dtype=np.int64), *parts])})


def _attach_shards(connection: duckdb.DuckDBPyConnection, view: View) -> list[str]:
    """`shards`: `shard`, `source`, `first_chunk`, `num_chunks`, `num_documents`."""
    import pyarrow as pa

    shards = view.shards
    columns = {name: getattr(shards, name) for name in ("source", "first_chunk", "num_chunks", "num_documents")}
    connection.register("shards", pa.table({"shard": np.arange(len(shards)), **columns}))
    return []


def _attach_files(connection: duckdb.DuckDBPyConnection, view: View) -> list[str]:
    """`files`: what the manifest says of every live file; digests in hexadecimal."""
    import pyarrow as pa

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
