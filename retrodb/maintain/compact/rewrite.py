"""The task of compaction: copy rows of some files, in their order, into one new file under the same ids.

Rows of most kinds of files are copied unchanged. Chunks, documents, their keys and their bands contain row numbers of the
range. These are shifted when the new range begins earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.engine.run import passing_run
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.arrays import growing_array, map_array, save_array
from retrodb.format.document_keys import sort_ids
from retrodb.format.parquet import iterate_row_groups, open_writer, read_table, write_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import DOCUMENTS, chunks_schema
from retrodb.format.settings import parse_settings
from retrodb.maintain.compact.range_contents import kept_rows, rewritten_files
from retrodb.maintain.compact.ranges import Rewrite
from retrodb.stages.context import Context
from retrodb.stages.planned_view import PlannedSnapshot, planned_view
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.tombstones import Tombstone
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_ROWS = 1 << 14  # rows of an array that are in memory at once


@dataclass(frozen=True)
class RewritePayload:
    """One range of ids."""

    snapshot: PlannedSnapshot
    query_set: str
    span: ChunkRange


@dataclass(frozen=True)
class RewrittenRange:
    """What a range is after it was rewritten."""

    num_documents: int
    num_dropped_documents: int
    tombstones: tuple[Tombstone, ...]  # that are still needed


REWRITE = TaskKind[RewritePayload, RewrittenRange]("compact", 4, RewrittenRange)
COUNT_DROPPED = TaskKind[RewritePayload, NoResult]("compact-count", 1, NoResult)


def count_dropped_documents(context: Context, view: View, rewrites: Sequence[Rewrite]) -> list[int]:
    """The number of documents of each range that would be dropped, counted in tasks."""
    snapshot = PlannedSnapshot.of(view)
    tasks = [
        COUNT_DROPPED.task(RewritePayload(snapshot, rewrite.query_set, rewrite.span), weight=rewrite.num_rows)
        for rewrite in rewrites
    ]
    if not tasks:
        return []
    engine = context.engine_for_chunks(sum(task.weight for task in tasks))
    with passing_run(context.storage, "compact", {"count": [task.id for task in tasks]}, context.clock) as run:
        records = engine.run(run, tasks, run_count_dropped, context.progress, unit="chunks")
    return [record.counts["documents"] for record in records]


def rewrite_task(view: View, rewrite: Rewrite) -> Task[RewritePayload, RewrittenRange]:
    """The task that rewrites a range.

    Its id depends on what the task reads of the snapshot, the files and the tombstones of the range, and not on the snapshot's
    number: after another commit, finished ranges that it did not change are not rewritten again.
    """
    task = REWRITE.task(RewritePayload(PlannedSnapshot.of(view), rewrite.query_set, rewrite.span))
    files = [(record.path, record.digest.sha256.hex()) for record in rewrite.replaced]
    deletions = view.deletions(rewrite.query_set, rewrite.span)
    task_id = identity(REWRITE.stage, REWRITE.version, rewrite.query_set, *rewrite.span, files, deletions)
    return replace(task, id=task_id, weight=rewrite.num_rows)


def run_count_dropped(storage: Storage, task: Task[RewritePayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Count the documents of a range that would be dropped."""
    del clock
    chunks = planned_view(storage, task.payload.snapshot).query_set(task.payload.query_set)
    return TaskRecord(task.id, counts={"documents": kept_rows(chunks, task.payload.span).num_dropped_documents})


def run_rewrite(storage: Storage, task: Task[RewritePayload, RewrittenRange], clock: str) -> TaskRecord[RewrittenRange]:
    """Write the files of one range, whose old files are verified first."""
    del clock  # a row keeps its age
    span, query_set = task.payload.span, task.payload.query_set
    view = planned_view(storage, task.payload.snapshot)
    chunks = view.query_set(query_set)
    kept = kept_rows(chunks, span)
    records = []
    for file in rewritten_files(view, query_set, span, kept):
        for record in file.inputs:
            view.files.open(record)
        documents = RowSet.all(span.num_chunks) if file.documents is None else file.documents
        write = partial(
            _WRITERS[file.content], _Selection(storage, file.inputs, span.first_chunk, file.rows, documents)
        )
        path = file.path.replace("{task}", task.id)
        records.append(
            publish(storage, file.kind, path, write, name=file.name, first_chunk=span.first_chunk, rows=file.rows)
        )
    tombstones = tuple(kept.remaining_tombstones(chunks, span))
    result = RewrittenRange(int(kept.documents_N.sum()), kept.num_dropped_documents, tombstones)
    return TaskRecord(task.id, tuple(records), result)


@dataclass(frozen=True)
class _Selection:
    """The rows that a writer copies."""

    storage: Storage
    inputs: Sequence[FileRecord]  # by ascending first chunk
    first_chunk: int  # of the new range
    rows: RowSet  # rows to copy
    documents: RowSet  # first rows of the documents to copy

    def offset(self, record: FileRecord) -> int:
        """The number to add to a row of an input's range."""
        return record.first_chunk - self.first_chunk

    def local(self, record: FileRecord) -> Path:
        """The local path of an input."""
        return self.storage.local(record.path)


def _write_array(selection: _Selection, out: Path) -> None:
    """Arrays with one entry per row."""
    coverage = Coverage(selection.inputs, VerifiedFiles(selection.storage))
    arrays = {record.path: map_array(selection.local(record)) for record in selection.inputs}
    sample = arrays[selection.inputs[0].path]
    wanted = selection.first_chunk + selection.rows.present
    with growing_array(out, sample.dtype, sample.shape[1:]) as append:
        for start in range(0, len(wanted), _BLOCK_ROWS):
            ids = wanted[start : start + _BLOCK_ROWS]
            block = np.empty((len(ids), *sample.shape[1:]), dtype=sample.dtype)
            for hit in coverage.lookup(ids):
                block[hit.where] = arrays[hit.record.path][hit.positions]
            append(block)


def _write_chunks(selection: _Selection, out: Path) -> None:
    """Chunks files, in full row groups: a row's group follows from its position."""
    import pyarrow as pa

    settings = parse_settings(selection.storage.read("retrodb.toml").decode(), where="retrodb.toml")
    schema = chunks_schema(settings.token_dtype)
    with open_writer(out, schema) as sink:
        waiting = schema.empty_table()
        for table in _chunk_tables(selection):
            waiting = pa.concat_tables([waiting, table])
            whole = waiting.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            if whole:
                sink.write_table(waiting.slice(0, whole).combine_chunks(), row_group_size=ROW_GROUP_ROWS)
                waiting = waiting.slice(whole)
        if waiting.num_rows:
            sink.write_table(waiting.combine_chunks(), row_group_size=ROW_GROUP_ROWS)


def _chunk_tables(selection: _Selection) -> Iterator[pa.Table]:
    """The rows to copy, one row group at a time, each with the row of its document in the new range."""
    import pyarrow as pa

    is_selected = selection.rows.mask
    for record in selection.inputs:
        present, position = VerifiedFiles(selection.storage).rows(record).present + selection.offset(record), 0
        for table in iterate_row_groups(selection.local(record)):
            rows = present[position : position + table.num_rows]
            position += table.num_rows
            document = table.column("document").to_numpy() + np.int32(selection.offset(record))
            yield _with_column(table, "document", document).filter(pa.array(is_selected[rows]))


def _with_column(table: pa.Table, name: str, values: np.ndarray[tuple[int], np.dtype[np.int32]]) -> pa.Table:
    import pyarrow as pa

    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values))


def _write_documents(selection: _Selection, out: Path) -> None:
    import pyarrow as pa

    tables = []
    for record in selection.inputs:
        table = read_table(selection.local(record))
        first_row = table.column("first_row").to_numpy() + np.int32(selection.offset(record))
        is_kept = pa.array(selection.documents.mask[first_row])
        tables.append(_with_column(table, "first_row", first_row).filter(is_kept))
    write_table(out, pa.concat_tables(tables).cast(DOCUMENTS))


def _write_ids(selection: _Selection, out: Path) -> None:
    parts = []
    for record in selection.inputs:
        entries = np.array(map_array(selection.local(record)))
        entries["row"] += selection.offset(record)
        parts.append(entries[selection.documents.mask[entries["row"]]])
    save_array(out, sort_ids(np.concatenate(parts)))


def _write_bands(selection: _Selection, out: Path) -> None:
    """MinHash bands, (B, M): every band holds the same documents, sorted by its own hashes."""
    parts = []
    for record in selection.inputs:
        bands = np.array(map_array(selection.local(record)))
        bands["document"] += selection.offset(record)
        is_kept = selection.documents.mask[bands["document"]]
        parts.append(bands[is_kept].reshape(len(bands), -1))
    joined = np.concatenate(parts, axis=1)
    for band in joined:
        band[:] = band[np.lexsort((band["document"], band["hash"]))]
    save_array(out, joined)


def _write_table(selection: _Selection, out: Path) -> None:
    """Parquet files with one line per row."""
    import pyarrow as pa

    coverage = Coverage(selection.inputs, VerifiedFiles(selection.storage))
    tables = {record.path: read_table(selection.local(record)) for record in selection.inputs}
    starts = dict(zip(tables, np.cumsum([0, *(table.num_rows for table in tables.values())]).tolist(), strict=False))
    lines = np.empty(len(selection.rows), dtype=np.int64)
    for hit in coverage.lookup(selection.first_chunk + selection.rows.present):
        lines[hit.where] = starts[hit.record.path] + hit.positions
    write_table(out, pa.concat_tables(tables.values()).take(lines))


_WRITERS: Mapping[str, Callable[[_Selection, Path], None]] = {
    "array": _write_array,
    "bands": _write_bands,
    "chunks": _write_chunks,
    "documents": _write_documents,
    "ids": _write_ids,
    "table": _write_table,
}
