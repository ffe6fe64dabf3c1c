"""First pass of an ingest: read a split once and spool what was accepted.

The spool is what the second pass tokenizes. It makes the input immaterial once it was read: a file that changes between the
passes, a pipe, or a slow HTML parser cost nothing more. It lies with the run and goes with the commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.corpus.document import Document, Fields, Limits, Reject, content_id
from retrodb.corpus.readers import read_split
from retrodb.corpus.split import Split
from retrodb.engine.task import Task, TaskRecord
from retrodb.format import MAX_SHARD_CHUNKS
from retrodb.format.arrays import save_array
from retrodb.format.ids import IdArray, content_hash, id_entries, key_of, record_hash
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_CHARS = 1 << 20  # characters of one Arrow batch, text and metadata: bounds the memory of both passes
_BATCH_DOCUMENTS = 1 << 14  # and its documents, when they are tiny
CRASHED = "reader-crashed"
"""Reason of a reject that stands for a whole file: the process that read it died."""


def run_scan(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Read one split into spool segments, their keys, and its rejects.

    The result's `segments` names, for each segment, the indices of its two files and its number of records.
    """
    del clock  # nothing that is spooled knows the time
    source, run = task.payload["source"], task.payload["run"]
    rejects: list[Reject] = []
    documents = _sift(_records(task), rejects)
    files: list[FileRecord] = []
    segments: list[dict[str, int]] = []
    first = next(documents, None)
    while first is not None:
        path = path_of("runs", run=run, file=f"spool/{task.id}-{len(segments):04d}")
        spool, keys, records, first = _write_segment(
            storage, path, source, first, documents, task.payload["segment_bytes"]
        )
        segments.append({"spool": len(files), "keys": len(files) + 1, "records": records})
        files += [spool, keys]
    if rejects:
        files.append(
            _write_rejects(storage, path_of("runs", run=run, file=f"spool/{task.id}-rejects.parquet"), rejects)
        )
    records = sum(segment["records"] for segment in segments)
    return TaskRecord(
        task.id,
        tuple(files),
        {"segments": segments, "has_rejects": bool(rejects)},
        {"rejected": len(rejects), "read": records},
    )


def run_probe(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Read a split as `run_scan` does and keep nothing: the process lives to the end, or it does not."""
    del storage, clock
    deque(_records(task), maxlen=0)
    return TaskRecord(task.id)


def _records(task: Task[Any, Any]) -> Iterator[Document | Reject]:
    """What the task's split holds, at most `limit` records; a file in `crashed` is a reject, unread."""
    payload = task.payload
    split, crashed = Split.from_json(payload["split"]), payload.get("crashed", [])
    sound = replace(split, files=tuple(file for file in split.files if file.path not in crashed))
    refused = (Reject(path, "byte 0", CRASHED, "") for path in crashed)
    found = read_split(sound, Fields(**payload["fields"]), Limits(**payload["limits"])) if sound.files else iter(())
    return islice(chain(refused, found), payload["limit"])


def _sift(reader: Iterator[Document | Reject], rejects: list[Reject]) -> Iterator[Document]:
    for item in reader:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            yield item


def spool_schema() -> pa.Schema:
    """Columns of a spool segment."""
    import pyarrow as pa

    text = pa.large_string()
    return pa.schema(
        [("doc_id", pa.string()), ("text", text), ("value", text), ("metadata", text), ("content_hash", pa.binary(16))]
    )


def _write_segment(
    storage: Storage, path: str, source: str, first: Document, documents: Iterator[Document], segment_bytes: int
) -> tuple[FileRecord, FileRecord, int, Document | None]:
    """Write documents from `first` on until the segment is full; gives its files, its records, and the next document."""
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
            while following is not None and size < segment_bytes and sum(map(len, entries)) < MAX_SHARD_CHUNKS:
                batch = [following]
                chars = _num_chars(following)
                while (following := next(documents, None)) is not None and _has_room(batch, chars):
                    batch.append(following)
                    chars += _num_chars(following)
                size += chars
                ids = [d.doc_id if d.doc_id is not None else content_id(d.text, d.value) for d in batch]
                entries.append(_entries(batch, ids, source))
                writer.write_batch(_to_batch(batch, ids))

    spool = publish(storage, "runs", f"{path}.arrow", write)
    all_entries = np.concatenate(entries)
    keys = publish(storage, "runs", f"{path}.keys.npy", lambda local: save_array(local, all_entries))
    return spool, keys, len(all_entries), following


def _num_chars(document: Document) -> int:
    return len(document.text) + len(document.value or "") + len(document.metadata)


def _has_room(batch: list[Document], chars: int) -> bool:
    return chars < _BATCH_CHARS and len(batch) < _BATCH_DOCUMENTS


def _entries(documents: list[Document], ids: list[str], source: str) -> IdArray:
    """Keys and hashes; the stage numbers the rows when it has those of all segments."""
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
