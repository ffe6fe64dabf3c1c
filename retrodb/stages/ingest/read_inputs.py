"""First pass of an ingest: read a split once and spool the accepted documents.

The second pass tokenizes the spool and never reads the input again. So a file may change between the passes, a pipe is
read only once, and slow HTML is parsed only once. The spool is stored with the run and deleted after the commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.corpus.document import Document, Fields, Limits, Reject, content_id
from retrodb.corpus.readers import UNREADABLE_FILE, read_split_leniently
from retrodb.corpus.skipped_files import SkippedFiles, count_skipped
from retrodb.corpus.split import Split
from retrodb.engine.task import NoResult, Task, TaskKind, TaskRecord
from retrodb.format import MAX_SHARD_CHUNKS
from retrodb.format.arrays import save_array
from retrodb.format.document_keys import IdArray, content_hash, id_entries, key_of, record_hash
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.stages.ingest.inputs import on_disk
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_CHARS = 1 << 20  # characters of one Arrow batch, text and metadata: bounds the memory of both passes
_BATCH_DOCUMENTS = 1 << 14  # and its documents, when they are tiny
STAGE_VERSION = 3
CRASHED = "reader-crashed"
"""Reason of a reject that stands for a whole file: the process that read the file died."""
WHOLE_FILE = (CRASHED, UNREADABLE_FILE)
"""Reasons of rejects that stand for a whole file."""


@dataclass(frozen=True)
class ReadPayload:
    """Which records to read, and how."""

    run: str  # id of the run that stores the spool
    source: str
    fields: Fields
    limits: Limits
    segment_bytes: int  # characters of a segment, about
    split: Split
    limit: int | None  # records to read at most
    crashed: tuple[str, ...] = ()  # paths of files that crash their reader: they become rejects, unread
    unreadable: tuple[tuple[str, str], ...] = ()  # paths of files that cannot be read to their end, and why: likewise


@dataclass(frozen=True)
class Segment:
    """Some accepted documents in reading order."""

    spool: FileRecord  # Arrow file of `spool_schema`
    keys: FileRecord  # (R,) keys and hashes, `format/ids.py`
    num_records: int


@dataclass(frozen=True)
class ReadResult:
    """What one split held."""

    segments: tuple[Segment, ...]
    rejects: FileRecord | None  # schema `REJECTS`
    skipped: SkippedFiles | None = None  # in archives
    unreadable: tuple[tuple[str, str], ...] = ()  # files that turned out so: path and fault. Then the task is not used.


READ = TaskKind[ReadPayload, ReadResult]("read", STAGE_VERSION, ReadResult)
PROBE = TaskKind[ReadPayload, NoResult]("probe", STAGE_VERSION, NoResult)


def run_read(storage: Storage, task: Task[ReadPayload, ReadResult], clock: str) -> TaskRecord[ReadResult]:
    """Read one split into spool segments, their keys, and its rejects."""
    del clock  # the spool does not depend on the time
    payload = task.payload
    rejects: list[Reject] = []
    skipped: list[str] = []
    documents = _accepted(_read_records(storage, payload, skipped), rejects)
    segments: list[Segment] = []
    following = next(documents, None)
    while following is not None:
        path = path_of("runs", run=payload.run, file=f"spool/{task.id}-{len(segments):04d}")
        segment, following = _write_segment(storage, path, payload, following, documents)
        segments.append(segment)
    files = [file for segment in segments for file in (segment.spool, segment.keys)]
    rejects_file = None
    if rejects:
        path = path_of("runs", run=payload.run, file=f"spool/{task.id}-rejects.parquet")
        rejects_file = _write_rejects(storage, path, rejects)
        files.append(rejects_file)
    counts = {"rejected": len(rejects), "read": sum(segment.num_records for segment in segments)}
    unread = {path for path, _ in payload.unreadable}
    unreadable = tuple((r.path, r.excerpt) for r in rejects if r.reason == UNREADABLE_FILE and r.path not in unread)
    result = ReadResult(tuple(segments), rejects_file, count_skipped(skipped), unreadable)
    return TaskRecord(task.id, tuple(files), result, counts)


def run_probe(storage: Storage, task: Task[ReadPayload, NoResult], clock: str) -> TaskRecord[NoResult]:
    """Read a split as `run_read` does and keep nothing, to see whether its reader crashes the process."""
    del clock
    deque(_read_records(storage, task.payload, []), maxlen=0)
    return TaskRecord(task.id)


def _read_records(storage: Storage, payload: ReadPayload, skipped: list[str]) -> Iterator[Document | Reject]:
    split = payload.split
    refused = [Reject(path, "byte 0", CRASHED, "") for path in payload.crashed]
    refused += [Reject(path, "file", UNREADABLE_FILE, fault) for path, fault in payload.unreadable]
    unread = {reject.path for reject in refused}
    readable = replace(split, files=tuple(on_disk(storage, file) for file in split.files if file.path not in unread))
    records = read_split_leniently(readable, payload.fields, payload.limits, skipped) if readable.files else iter(())
    # Of a file that is cut into several splits, the first one has the reject.
    return islice(chain(refused if split.start == 0 else (), records), payload.limit)


def _accepted(records: Iterator[Document | Reject], rejects: list[Reject]) -> Iterator[Document]:
    """The documents among some records; the others are appended to `rejects`."""
    for record in records:
        if isinstance(record, Reject):
            rejects.append(record)
        else:
            yield record


def spool_schema() -> pa.Schema:
    """Columns of a spool segment."""
    import pyarrow as pa

    text = pa.large_string()
    return pa.schema(
        [("doc_id", pa.string()), ("text", text), ("value", text), ("metadata", text), ("content_hash", pa.binary(16))]
    )


def _write_segment(
    storage: Storage, path: str, payload: ReadPayload, first: Document, documents: Iterator[Document]
) -> tuple[Segment, Document | None]:
    """Write `first` and the documents after it until the segment is full; gives the segment and the next document."""
    import pyarrow as pa

    entries: list[IdArray] = []
    following: Document | None = first

    def write(local: Path) -> None:
        nonlocal following
        size = 0
        with ExitStack() as stack:
            sink = stack.enter_context(pa.OSFile(str(local), "wb"))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = stack.enter_context(pa.ipc.new_file(sink, spool_schema(), options=options))
            while following is not None and size < payload.segment_bytes and sum(map(len, entries)) < MAX_SHARD_CHUNKS:
                batch = [following]
                chars = _num_chars(following)
                while (following := next(documents, None)) is not None and _has_room(batch, chars):
                    batch.append(following)
                    chars += _num_chars(following)
                size += chars
                ids = [d.doc_id if d.doc_id is not None else content_id(d.text, d.value) for d in batch]
                entries.append(_entries(batch, ids, payload.source))
                writer.write_batch(_to_batch(batch, ids))

    spool = publish(storage, "runs", f"{path}.arrow", write)
    all_entries = np.concatenate(entries)
    keys = publish(storage, "runs", f"{path}.keys.npy", lambda local: save_array(local, all_entries))
    return Segment(spool, keys, len(all_entries)), following


def _num_chars(document: Document) -> int:
    return len(document.text) + len(document.value or "") + len(document.metadata)


def _has_room(batch: list[Document], chars: int) -> bool:
    return chars < _BATCH_CHARS and len(batch) < _BATCH_DOCUMENTS


def _entries(documents: list[Document], ids: list[str], source: str) -> IdArray:
    """Keys and hashes. The rows are numbered later, when all segments are known."""
    keys = [key_of(source, doc_id) for doc_id in ids]
    hashes = [record_hash(d.text, d.value, d.metadata) for d in documents]
    return id_entries(keys, hashes, [0] * len(ids))


def _to_batch(documents: list[Document], ids: list[str]) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [
        pa.array(ids, pa.string()),
        pa.array([d.text for d in documents], pa.large_string()),
        pa.array([d.value for d in documents], pa.large_string()),
        pa.array([d.metadata for d in documents], pa.large_binary()).view(pa.large_string()),
        pa.array([content_hash(d.text, d.value) for d in documents], pa.binary(16)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=spool_schema())


def _write_rejects(storage: Storage, path: str, rejects: list[Reject]) -> FileRecord:
    import pyarrow as pa

    from retrodb.format.schemas import REJECTS

    rows = [{"path": r.path, "place": r.location, "reason": r.reason, "excerpt": r.excerpt} for r in rejects]
    table = pa.Table.from_pylist(rows, schema=REJECTS)
    return publish(storage, "runs", path, lambda local: write_table(local, table))
