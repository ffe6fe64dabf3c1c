"""Second pass of an ingest: tokenize the records of one spool segment that become documents, and write them as shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from retrodb.corpus.chunking import Chunks, chunk_documents
from retrodb.corpus.lm_tokenizer import Tokenizer
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import InputError
from retrodb.format import MAX_SHARD_CHUNKS
from retrodb.format.arrays import BoolArray, map_array
from retrodb.format.document_keys import IdArray
from retrodb.format.kinds import path_of
from retrodb.format.settings import Settings, parse_settings
from retrodb.stages.ingest.shard import SHARD_KINDS, DocumentBatch, PathOf, WrittenShard, write_shards
from retrodb.store.storage import Storage
from retrodb.view.view import SELF

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_VERSION = 1


@dataclass(frozen=True)
class TokenizePayload:
    """Which records of a segment become documents of the database, or of a query set."""

    spool: str  # path of the segment
    keys: str  # path of its keys
    outcomes: str  # path of the outcomes of all records of the run, (R,) codes of `upsert.OUTCOMES`
    first_record: int  # number of the segment's first record among all records
    num_records: int  # of the segment
    keep: tuple[int, ...]  # codes of the outcomes whose records become documents
    source: str
    query_set: str  # that the documents belong to, or `SELF`


@dataclass(frozen=True)
class TokenizeResult:
    """What became of one segment."""

    shards: tuple[WrittenShard, ...]


TOKENIZE = TaskKind[TokenizePayload, TokenizeResult]("tokenize", STAGE_VERSION, TokenizeResult)


def run_tokenize(
    storage: Storage, task: Task[TokenizePayload, TokenizeResult], clock: str
) -> TaskRecord[TokenizeResult]:
    """Write the shards of one segment, or the files of the held-out documents in it."""
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    payload = task.payload
    records = slice(payload.first_record, payload.first_record + payload.num_records)
    keep = np.isin(map_array(storage.local(payload.outcomes))[records], payload.keep)
    shards = write_shards(
        storage,
        _batches(storage, payload, keep, settings),
        settings,
        source=payload.source,
        clock=clock,
        path=_shard_paths(task.id) if payload.query_set == SELF else query_paths(task.id, payload.query_set),
    )
    counts = {
        "chunks": sum(shard.num_chunks for shard in shards),
        "tokens": sum(shard.num_tokens for shard in shards),
    }
    files = tuple(file for shard in shards for file in shard.files)
    return TaskRecord(task.id, files, TokenizeResult(tuple(shards)), counts)


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


def _batches(
    storage: Storage, payload: TokenizePayload, keep: BoolArray, settings: Settings
) -> Iterator[DocumentBatch]:
    """The kept documents of a segment in chunks; `keep` is (num_records,) bool."""
    tokenizer = load_tokenizer(storage.url, settings.tokenizer_sha256)
    keys = map_array(storage.local(payload.keys))
    first = 0
    for table in _spooled_tables(storage, payload.spool):
        rows = slice(first, first + table.num_rows)
        first += table.num_rows
        if keep[rows].any():
            yield from _chunked(table.filter(keep[rows]), keys[rows][keep[rows]], tokenizer, settings)


def _chunked(documents: pa.Table, ids: IdArray, tokenizer: Tokenizer, settings: Settings) -> Iterator[DocumentBatch]:
    """One batch of the documents, or several when they have more chunks together than a shard may have."""
    half = documents.num_rows // 2
    try:
        chunks = _chunks(documents, tokenizer, settings)
    except InputError as error:
        raise _at_document(error, documents, tokenizer, settings) from error
    if len(chunks.document) <= MAX_SHARD_CHUNKS or not half:
        yield DocumentBatch(documents, ids, chunks)
        return
    yield from _chunked(documents.slice(0, half), ids[:half], tokenizer, settings)
    yield from _chunked(documents.slice(half), ids[half:], tokenizer, settings)


def _chunks(documents: pa.Table, tokenizer: Tokenizer, settings: Settings) -> Chunks:
    values = documents.column("value")
    return chunk_documents(
        documents.column("text").combine_chunks(),
        values.combine_chunks() if values.null_count == 0 else None,
        tokenizer,
        settings.chunk_tokens,
        num_threads=1,
    )


def _at_document(error: InputError, documents: pa.Table, tokenizer: Tokenizer, settings: Settings) -> InputError:
    """The error of the tokenizer, with the id of the first document at which it fails."""
    for row in range(documents.num_rows):
        document = documents.slice(row, 1)
        try:
            _chunks(document, tokenizer, settings)
        except InputError as fault:
            where = f"document '{document.column('doc_id')[0].as_py()}'"
            remedy = "Leave this document out of the input, or take another tokenizer with 'retrodb init --tokenizer'."
            return InputError(fault.what, where=where, remedy=remedy)
    return error


def _spooled_tables(storage: Storage, spool: str) -> Iterator[pa.Table]:
    import pyarrow as pa

    with pa.OSFile(str(storage.local(spool))) as file:  # mapped, its pages would count as memory
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])


@lru_cache(maxsize=4)
def load_tokenizer(url: str, digest: str) -> Tokenizer:
    """The database's tokenizer, loaded once per process.

    Args:
        digest: of the tokenizer. It distinguishes a database that was re-created at the same path.
    """
    from retrodb.store.open_storage import open_storage

    del digest
    return Tokenizer.load(open_storage(url).local("tokenizer.json"))
