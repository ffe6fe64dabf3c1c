"""Documents chosen by an SQL condition: `lang` of the metadata, a tagger's score, the text, and what the files say of them.

The condition is one expression over one row a document. DuckDB gets these rows from here, some of one shard at a time, with
the columns that the condition names and no others, and can reach nothing else: no file, no network, no setting.

Legend: M documents of a range, B of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import UsageError
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.entries import AttributeEntry
from retrodb.format.parquet import read_row_groups, read_table
from retrodb.format.records import FileRecord
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import BoolArray, Float64Array, Int64Array

STORED_COLUMNS = ("doc_id", "source", "num_chunks", "num_tokens", "num_chars", "added_at", "metadata")
"""Columns of a documents file that a condition may name."""
RESERVED_COLUMNS = ("first_chunk", "text", *STORED_COLUMNS)
"""What no tagger may be called."""

_BATCH_DOCUMENTS = 16 * ROW_GROUP_ROWS
_TEXT_BATCH_CHUNKS = 1 << 15  # about 10 MB of text


def documents_where(view: View, where: str, *, reason: str | None = None) -> Int64Array:
    """(Q,) int64: the first chunk ids of the live documents that an SQL condition chooses, ascending.

    Args:
        where: one expression over `STORED_COLUMNS`, `first_chunk`, `text` and the scores of taggers by their names; a score
            is NULL where its tagger has not seen the document. `metadata` is JSON: `metadata->>'lang' = 'en'`.
        reason: choose among the documents that this reason deletes, instead of the live ones.

    Raises:
        UsageError: with DuckDB's words for a condition that is wrong, or that reaches for anything else.
        MissingFileError, DamagedFileError: for a file that the condition has to read.
    """
    condition = DocumentCondition(view, where, reason=reason)
    return np.concatenate([np.empty(0, dtype=np.int64), *map(condition.documents_of, view.chunks.ranges)])


class DocumentCondition:
    """A condition on documents, evaluated for one range of ids at a time. Arguments and errors are those of `documents_where`."""

    def __init__(self, view: View, where: str, *, reason: str | None = None) -> None:
        """Raises UsageError for a condition that is wrong whatever the documents are. Reads no document."""
        import duckdb

        self._view, self._where, self._reason = view, where, reason
        self._columns = [name for name in column_names(view) if re.search(rf"\b{name}\b", where, re.IGNORECASE)]
        self._schema = _schema(self._columns)
        self._connection = duckdb.connect(config=_CONFINED)
        self._choose_from(self._schema.empty_table())

    def documents_of(self, record: FileRecord) -> Int64Array:
        """(Q,) int64: those documents of `documents_where` that one range has. Only files of this range are read."""
        tables = _tables(self._view, record, self._columns, self._schema, self._reason)
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *map(self._choose_from, tables)]))

    def _choose_from(self, table: pa.Table) -> Int64Array:
        import duckdb

        try:
            rows = self._connection.from_arrow(table).filter(self._where).project("first_chunk").fetchnumpy()
        except duckdb.Error as error:
            what = " ".join(str(error).partition("\n\nLINE")[0].split()).rstrip(".!")
            remedy = f"A condition may name: {', '.join(column_names(self._view))}."
            raise UsageError(what, where="condition", remedy=remedy) from error
        return np.asarray(rows["first_chunk"], dtype=np.int64)


_CONFINED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
    "lock_configuration": True,
}


def column_names(view: View) -> list[str]:
    """Everything that a condition may name."""
    return [*RESERVED_COLUMNS, *view.snapshot.names(AttributeEntry)]


def live_documents(chunks: ChunkSet, record: FileRecord) -> BoolArray:
    """(M,) bool: which documents of a range have a live chunk."""
    return _with_any(chunks, record, ~chunks.deleted_mask(*record.span))


def _deleted(chunks: ChunkSet, record: FileRecord, reason: str) -> BoolArray:
    """(M,) bool: which documents of a range have a chunk that a reason deletes."""
    masks = chunks.tombstones.deleted_by_reason(*record.span)
    return _with_any(chunks, record, masks.get(reason, np.zeros(record.num_chunks, dtype=bool)))


def _with_any(chunks: ChunkSet, record: FileRecord, mask: BoolArray) -> BoolArray:
    """(M,) bool: which documents of a range have a row in a mask (num_chunks,)."""
    layout = chunks.layout(record)
    before = np.concatenate(([0], np.cumsum(mask)))
    has_any: BoolArray = before[layout.first_row + layout.num_chunks] > before[layout.first_row]
    return has_any


def _schema(columns: list[str]) -> pa.Schema:
    import pyarrow as pa

    from retrodb.format.schemas import DOCUMENTS

    # Times are UTC and do not say so: a condition's literals are then UTC too, wherever it is run.
    special = {"first_chunk": pa.int64(), "text": pa.large_string(), "added_at": pa.timestamp("us")}

    def type_of(name: str) -> pa.DataType:
        return special.get(name) or (DOCUMENTS.field(name).type if name in STORED_COLUMNS else pa.float64())

    return pa.schema([pa.field(name, type_of(name)) for name in dict.fromkeys(["first_chunk", *columns])])


def _tables(
    view: View, record: FileRecord, columns: list[str], schema: pa.Schema, reason: str | None
) -> Iterator[pa.Table]:
    """The documents of a range to choose among, some of them at a time."""
    import pyarrow as pa

    stored = [name for name in columns if name in STORED_COLUMNS]
    scored = [name for name in columns if name not in RESERVED_COLUMNS]
    candidates = live_documents(view.chunks, record) if reason is None else _deleted(view.chunks, record, reason)
    if not candidates.any():
        return
    documents = record.first_chunk + view.chunks.layout(record).first_row
    scores = {name: attribute_scores(view, name, documents) for name in scored}
    for first, table in _stored_columns(view, record, stored, with_text="text" in columns):
        here = np.flatnonzero(candidates[first : first + table.num_rows])
        table = table.take(here).append_column("first_chunk", [documents[first + here]])
        for name, values in scores.items():
            table = table.append_column(name, pa.array(values[first + here], from_pandas=True))  # NaN becomes null
        yield table.select(schema.names).cast(schema)


def _stored_columns(
    view: View, record: FileRecord, columns: list[str], *, with_text: bool
) -> Iterator[tuple[int, pa.Table]]:
    """Columns of a range's documents: the number of the first one (0 .. M-1), and a table of these (B)."""
    num_documents = len(view.chunks.layout(record).first_row)
    for first in range(0, num_documents, _BATCH_DOCUMENTS):
        end = min(first + _BATCH_DOCUMENTS, num_documents)
        groups = range(first // ROW_GROUP_ROWS, -(-end // ROW_GROUP_ROWS))
        table = read_row_groups(view.files.open(record), groups, ["first_row", *columns])
        if not with_text:
            yield first, table
            continue
        for begin, texts in _texts(view, record, first, end):
            yield begin, table.slice(begin - first, len(texts)).append_column("text", texts)


def _texts(view: View, record: FileRecord, begin: int, end: int) -> Iterator[tuple[int, pa.LargeStringArray]]:
    """The texts of documents `begin .. end` of a range, so many at a time that memory is bounded, each time from where."""
    import pyarrow as pa

    chunks, layout = view.chunks.file("chunks", *record.span), view.chunks.layout(record)
    first_rows = np.append(layout.first_row, record.num_chunks)[begin : end + 1]
    bounds = np.searchsorted(view.files.rows(chunks).present, first_rows)
    while begin < end:
        count = max(1, int(np.searchsorted(bounds, bounds[0] + _TEXT_BATCH_CHUNKS)) - 1)
        group, last = int(bounds[0]) // ROW_GROUP_ROWS, (int(bounds[count]) - 1) // ROW_GROUP_ROWS
        table = read_row_groups(view.files.open(chunks), range(group, last + 1), ["text"])
        _, starts, data = table.column("text").combine_chunks().buffers()
        offsets = np.frombuffer(starts, np.int64)[bounds[: count + 1] - group * ROW_GROUP_ROWS]
        yield begin, pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), data)  # joined without a copy
        begin, bounds = begin + count, bounds[count:]


def attribute_scores(view: View, name: str, documents: Int64Array) -> Float64Array:
    """(Q,) float64: a tagger's scores of documents, by the ids of their first chunks; NaN where it gave none."""
    scores = np.full(len(documents), np.nan)
    for hit in view.coverage("attributes", name).lookup(documents):
        scores[hit.where] = read_table(view.files.open(hit.record)).column("score").to_numpy()[hit.positions]
    return scores
