"""First pass of an ingest: read a split once and spool what was accepted.

The spool is what the second pass tokenizes. It makes the input immaterial once it was read: a file that changes between the
passes, a pipe, or a slow HTML parser cost nothing more. It lies with the run and goes when the run is collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.corpus.document import Document, Fields, Limits, Reject, content_id
from retrodb.corpus.readers import read_split
from retrodb.corpus.split import Split
from retrodb.engine.task import Task, TaskRecord
from retrodb.format.arrays import save_array
from retrodb.format.ids import content_hash, id_entries, key_of, record_hash
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_CHARS = 4 << 20  # documents of one Arrow batch: bounds the memory of both passes


def run_scan(storage: Storage, task: Task, clock: str) -> TaskRecord:
    """Read one split into spool segments, their keys, and its rejects.

    The result's `segments` names, for each segment, the indices of its two files and its number of records.
    """
    del clock  # nothing that is spooled knows the time
    source, run = task.payload["source"], task.payload["run"]
    split = Split.from_json(task.payload["split"])
    rejects: list[Reject] = []
    reader = _limited(read_split(split, Fields(**task.payload["fields"]), Limits(**task.payload["limits"])), task)
    documents = _sift(reader, rejects)
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


def _limited(reader: Iterator[Document | Reject], task: Task) -> Iterator[Document | Reject]:
    limit = task.payload["limit"]
    for number, item in enumerate(reader):
        if limit is not None and number >= limit:
            return
        yield item


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

    keys: list[int] = []
    hashes: list[int] = []
    following: Document | None = first

    def write(local: Path) -> None:
        nonlocal following
        size = 0
        with ExitStack() as stack:
            sink = stack.enter_context(pa.OSFile(str(local), "wb"))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = stack.enter_context(pa.ipc.new_file(sink, spool_schema(), options=options))
            while following is not None and size < segment_bytes:
                batch = [following]
                chars = len(following.text)
                while (following := next(documents, None)) is not None and chars < _BATCH_CHARS:
                    batch.append(following)
                    chars += len(following.text) + len(following.value or "")
                size += chars
                writer.write_batch(_to_batch(batch, source, keys, hashes))

    spool = publish(storage, "runs", f"{path}.arrow", write)
    entries = id_entries(keys, hashes, list(range(len(keys))))
    ids = publish(storage, "runs", f"{path}.keys.npy", lambda local: save_array(local, entries))
    return spool, ids, len(keys), following


def _to_batch(documents: list[Document], source: str, keys: list[int], hashes: list[int]) -> pa.RecordBatch:
    import pyarrow as pa

    ids = [d.doc_id if d.doc_id is not None else content_id(d.text, d.value) for d in documents]
    keys.extend(key_of(source, doc_id) for doc_id in ids)
    hashes.extend(record_hash(d.text, d.value, d.metadata) for d in documents)
    columns = {
        "doc_id": ids,
        "text": [d.text for d in documents],
        "value": [d.value for d in documents],
        "metadata": [d.metadata.decode() for d in documents],
        "content_hash": [content_hash(d.text, d.value) for d in documents],
    }
    return pa.RecordBatch.from_pydict(columns, schema=spool_schema())


def _write_rejects(storage: Storage, path: str, rejects: list[Reject]) -> FileRecord:
    import pyarrow as pa

    from retrodb.format.schemas import REJECTS

    rows = [{"path": r.path, "place": r.place, "reason": r.reason, "excerpt": r.excerpt} for r in rejects]
    table = pa.Table.from_pylist(rows, schema=REJECTS)
    return publish(storage, "runs", path, lambda local: write_table(local, table))
