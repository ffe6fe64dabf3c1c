"""The task of compaction: rows of some files, in their order, written into one new file under the same ids.

What a row is in depends on the kind of file: of most kinds it is copied as it is; documents, their keys and their bands name
rows of the range, and a range that begins earlier numbers them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.engine.task import Task, TaskRecord
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.arrays import BoolArray, growing_array, map_array, save_array
from retrodb.format.ids import sort_ids
from retrodb.format.parquet import iterate_row_groups, open_writer, read_table, write_table
from retrodb.format.records import FileDigest, FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import DOCUMENTS, chunks_schema
from retrodb.format.settings import parse_settings
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.coverage import Coverage

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 1 << 14  # rows of an array that are held at once


@dataclass(frozen=True)
class Input:
    """A file to take rows from."""

    path: str
    first_chunk: int
    num_chunks: int
    rows: str | None  # its row bitmap in hexadecimal

    @staticmethod
    def of(record: FileRecord) -> Input:
        """The part of a record that its rows are found by."""
        rows = None if record.rows is None else record.rows.hex()
        return Input(record.path, record.first_chunk, record.num_chunks, rows)

    @property
    def record(self) -> FileRecord:
        """The file's record, without its digest, which the plan has verified."""
        rows = None if self.rows is None else bytes.fromhex(self.rows)
        return FileRecord("", "", self.path, _NO_DIGEST, self.first_chunk, self.num_chunks, rows)


_NO_DIGEST = FileDigest(0, b"", b"")


@dataclass(frozen=True)
class Output:
    """A file to write."""

    content: str  # a key of `_WRITERS`
    kind: str  # of its manifest record
    name: str
    path: str  # with {task} for the id of the task
    rows: str | None  # bitmap of the rows of the range that it holds
    inputs: tuple[Input, ...]
    documents: str | None = None  # where rows are of documents: bitmap of the first rows of those to keep


def hex_rows(mask: BoolArray) -> str | None:
    """A bitmap as a task's payload has it; None when all rows are present."""
    bitmap = RowSet.from_mask(mask).bitmap
    return None if bitmap is None else bitmap.hex()


def repack_payload(first_chunk: int, num_chunks: int, outputs: Sequence[Output]) -> dict[str, Any]:
    """The payload of a task that writes files of one range of ids."""
    return {"first_chunk": first_chunk, "num_chunks": num_chunks, "outputs": [asdict(output) for output in outputs]}


def run_repack(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Write the files of one range."""
    del clock  # a row is as old as it was
    first, count = task.payload["first_chunk"], task.payload["num_chunks"]
    files = []
    for value in task.payload["outputs"]:
        output = Output(**{**value, "inputs": tuple(Input(**each) for each in value["inputs"])})
        rows, documents = _row_set(count, output.rows), _row_set(count, output.documents)
        write = partial(_WRITERS[output.content], Rows(storage, output.inputs, first, rows, documents))
        path = output.path.replace("{task}", task.id)
        files.append(publish(storage, output.kind, path, write, name=output.name, first_chunk=first, rows=rows))
    return TaskRecord(task.id, tuple(files))


def _row_set(count: int, rows: str | None) -> RowSet:
    return RowSet(count, None if rows is None else bytes.fromhex(rows))


@dataclass(frozen=True)
class Rows:
    """What a writer is given."""

    storage: Storage
    inputs: Sequence[Input]  # by ascending first chunk
    first_chunk: int  # of the range that is written
    rows: RowSet  # to take
    documents: RowSet  # first rows of the documents to take

    def offset(self, source: Input) -> int:
        """What is added to a row of an input's range."""
        return source.first_chunk - self.first_chunk

    def local(self, source: Input) -> Path:
        """Where an input lies."""
        return self.storage.local(source.path)


def _write_array(rows: Rows, out: Path) -> None:
    """Arrays with one entry a row."""
    coverage = Coverage([source.record for source in rows.inputs])
    arrays = {source.path: map_array(rows.local(source)) for source in rows.inputs}
    sample = arrays[rows.inputs[0].path]
    wanted = rows.first_chunk + rows.rows.present
    with growing_array(out, sample.dtype, sample.shape[1:]) as append:
        for start in range(0, len(wanted), _BLOCK_ROWS):
            ids = wanted[start : start + _BLOCK_ROWS]
            block = np.empty((len(ids), *sample.shape[1:]), dtype=sample.dtype)
            for hit in coverage.lookup(ids):
                block[hit.where] = arrays[hit.record.path][hit.positions]
            append(block)


def _write_chunks(rows: Rows, out: Path) -> None:
    """Chunks files, in full row groups: a row's group follows from its position."""
    import pyarrow as pa

    settings = parse_settings(rows.storage.read("retrodb.toml").decode(), where="retrodb.toml")
    schema = chunks_schema(settings.token_dtype)
    with open_writer(out, schema) as sink:
        waiting = schema.empty_table()
        for table in _chunk_tables(rows):
            waiting = pa.concat_tables([waiting, table])
            whole = waiting.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            if whole:
                sink.write_table(waiting.slice(0, whole).combine_chunks(), row_group_size=ROW_GROUP_ROWS)
                waiting = waiting.slice(whole)
        if waiting.num_rows:
            sink.write_table(waiting.combine_chunks(), row_group_size=ROW_GROUP_ROWS)


def _chunk_tables(rows: Rows) -> Iterator[pa.Table]:
    """The wanted rows of the chunks files, a row group at a time, each with the row of its document in the new range."""
    import pyarrow as pa

    is_wanted = rows.rows.mask
    for source in rows.inputs:
        present, position = source.record.row_set.present + rows.offset(source), 0
        for table in iterate_row_groups(rows.local(source)):
            here = present[position : position + table.num_rows]
            position += table.num_rows
            document = pa.array(table.column("document").to_numpy() + np.int32(rows.offset(source)))
            at = table.schema.get_field_index("document")
            moved = table.set_column(at, table.schema.field("document"), document)
            yield moved.filter(pa.array(is_wanted[here]))


def _write_documents(rows: Rows, out: Path) -> None:
    import pyarrow as pa

    tables = []
    for source in rows.inputs:
        table = read_table(rows.local(source))
        first_row = table.column("first_row").to_numpy() + np.int32(rows.offset(source))
        at = table.schema.get_field_index("first_row")
        table = table.set_column(at, DOCUMENTS.field("first_row"), pa.array(first_row))
        tables.append(table.filter(pa.array(rows.documents.mask[first_row])))
    write_table(out, pa.concat_tables(tables).cast(DOCUMENTS))


def _write_ids(rows: Rows, out: Path) -> None:
    parts = []
    for source in rows.inputs:
        entries = np.array(map_array(rows.local(source)))
        entries["row"] += rows.offset(source)
        parts.append(entries[rows.documents.mask[entries["row"]]])
    save_array(out, sort_ids(np.concatenate(parts)))


def _write_bands(rows: Rows, out: Path) -> None:
    """Runs of MinHash bands, (B, M): every band holds the same documents, each in the order of its own hashes."""
    runs = []
    for source in rows.inputs:
        run = np.array(map_array(rows.local(source)))
        run["document"] += rows.offset(source)
        kept = rows.documents.mask[run["document"]]
        runs.append(run[kept].reshape(len(run), -1))
    joined = np.concatenate(runs, axis=1)
    for band in joined:
        band[:] = band[np.lexsort((band["document"], band["hash"]))]
    save_array(out, joined)


def _write_table(rows: Rows, out: Path) -> None:
    """Parquet files with one line a row."""
    import pyarrow as pa

    coverage = Coverage([source.record for source in rows.inputs])
    tables = {source.path: read_table(rows.local(source)) for source in rows.inputs}
    begins = dict(zip(tables, np.cumsum([0, *(table.num_rows for table in tables.values())]).tolist(), strict=False))
    places = np.empty(len(rows.rows), dtype=np.int64)
    for hit in coverage.lookup(rows.first_chunk + rows.rows.present):
        places[hit.where] = begins[hit.record.path] + hit.positions
    write_table(out, pa.concat_tables(tables.values()).take(places))


_WRITERS: Mapping[str, Callable[[Rows, Path], None]] = {
    "array": _write_array,
    "bands": _write_bands,
    "chunks": _write_chunks,
    "documents": _write_documents,
    "ids": _write_ids,
    "table": _write_table,
}
