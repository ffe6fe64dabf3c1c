"""Second pass of an ingest: tokenize what is kept of one spool segment and write it as shards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.corpus.chunking import chunk_documents
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.engine.task import Task, TaskRecord
from retrodb.format import MAX_SHARD_CHUNKS
from retrodb.format.arrays import BoolArray, map_array
from retrodb.format.ids import IdArray
from retrodb.format.kinds import path_of
from retrodb.format.settings import Settings, parse_settings
from retrodb.stages.ingest.shard import SHARD_KINDS, Batch, PathOf, write_shards
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


def run_tokenize(storage: Storage, task: Task[Any, Any], clock: str) -> TaskRecord[Any]:
    """Write the shards of one segment.

    The payload names the spool file, its keys, a file with one outcome a record, and the outcomes to keep; with
    `queries` set, the shards become files of that query set instead of the database's own.
    """
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    payload = task.payload
    outcome = map_array(storage.local(payload["outcomes"]))[payload["first"] : payload["first"] + payload["records"]]
    keep = np.isin(outcome, payload["keep"])
    keys = map_array(storage.local(payload["keys"]))
    batches = _batches(storage, payload["spool"], keys, keep, settings)
    queries = payload.get("queries", "")
    shards = write_shards(
        storage,
        batches,
        settings,
        source=payload["source"],
        clock=clock,
        path=query_paths(task.id, queries) if queries else _shard_paths(task.id),
    )
    result = [{"chunks": s.num_chunks, "documents": s.num_documents, "files": len(s.files)} for s in shards]
    counts = {
        "chunks": sum(s.num_chunks for s in shards),
        "tokens": sum(s.num_tokens for s in shards),
    }
    return TaskRecord(task.id, tuple(f for s in shards for f in s.files), {"shards": result}, counts)


def shard_task(task_id: str, number: int) -> str:
    """The name of a task's n-th shard: nearly every task has just one."""
    return task_id if number == 0 else f"{task_id}-{number}"


def _shard_paths(task_id: str) -> PathOf:
    return lambda kind, number: path_of(kind, task=shard_task(task_id, number))


def query_paths(task_id: str, name: str) -> PathOf:
    """Paths of the files of a query set."""
    ending = dict.fromkeys(SHARD_KINDS, "npy") | {"documents": "parquet", "chunks": "parquet"}
    return lambda kind, number: path_of(
        "queries", name=name, task=shard_task(task_id, number), file=f"{kind}.{ending[kind]}"
    )


def _batches(storage: Storage, spool: str, keys: IdArray, keep: BoolArray, settings: Settings) -> Iterator[Batch]:
    tokenizer = load_tokenizer(storage.url, settings.tokenizer_sha256)
    first = 0
    for table in _spooled(storage, spool):
        own = keep[first : first + table.num_rows]
        ids = keys[first : first + table.num_rows][own]
        first += table.num_rows
        if own.any():
            yield from _cut_whole(table.filter(own), ids, tokenizer, settings)


def _cut_whole(documents: pa.Table, ids: IdArray, tokenizer: Tokenizer, settings: Settings) -> Iterator[Batch]:
    """One batch of the documents, or several when all together have more chunks than a shard."""
    values = documents.column("value")
    chunks = chunk_documents(
        documents.column("text").combine_chunks(),
        values.combine_chunks() if values.null_count == 0 else None,
        tokenizer,
        settings.chunk_tokens,
        num_threads=1,
    )
    half = documents.num_rows // 2
    if len(chunks.document) <= MAX_SHARD_CHUNKS or not half:
        yield Batch(documents, ids, chunks)
        return
    yield from _cut_whole(documents.slice(0, half), ids[:half], tokenizer, settings)
    yield from _cut_whole(documents.slice(half), ids[half:], tokenizer, settings)


def _spooled(storage: Storage, spool: str) -> Iterator[pa.Table]:
    import pyarrow as pa

    with pa.OSFile(str(storage.local(spool))) as source:  # mapped, its pages would count as memory
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])


@lru_cache(maxsize=4)
def load_tokenizer(url: str, digest: str) -> Tokenizer:
    """The database's tokenizer, loaded once a process; the digest tells databases apart that followed each other at a URL."""
    from retrodb.store.storage import open_storage

    del digest
    return Tokenizer.load(open_storage(url).local("tokenizer.json"))
