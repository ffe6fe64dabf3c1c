"""Writing shards: documents, chunks, tokens, hashes and ids files, in bounded memory.

A shard grows by batches of whole documents until the next batch would not fit. Row groups are always full, except the last one
of a file, so the group of a row is `row // ROW_GROUP_ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.corpus.chunking import Chunks
from retrodb.errors import InputError
from retrodb.format import MAX_SHARD_CHUNKS, ROW_GROUP_ROWS
from retrodb.format.arrays import AnyArray, growing_array, save_array
from retrodb.format.document_keys import HASH_DTYPE, IdArray, sort_ids, text_hashes
from retrodb.format.parquet import ParquetWriter, open_writer, write_table
from retrodb.format.records import FileRecord
from retrodb.format.schemas import DOCUMENTS, chunks_schema
from retrodb.format.settings import Settings
from retrodb.store.block_files import store_blocks
from retrodb.store.digest import digest_with_blocks
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_KINDS = ("documents", "chunks", "tokens", "hashes", "ids")


@dataclass(frozen=True)
class DocumentBatch:
    """Some whole documents and their chunks (M documents, N chunks): no more than a shard holds, or one document."""

    documents: pa.Table  # (M,) schema `spool_schema`
    ids: IdArray  # (M,) their keys and hashes
    chunks: Chunks


@dataclass(frozen=True)
class WrittenShard:
    """The files of one shard, before it has chunk ids."""

    files: tuple[FileRecord, ...]  # one of each of `SHARD_KINDS`
    num_chunks: int
    num_documents: int
    num_tokens: int


PathOf = Callable[[str, int], str]
"""From a kind ("documents", "chunks", ...) and the shard's number within its task to a path."""


def write_shards(
    storage: Storage, batches: Iterator[DocumentBatch], settings: Settings, *, source: str, clock: str, path: PathOf
) -> list[WrittenShard]:
    """Write batches into as few shards as possible.

    Raises:
        InputError: for a document that is longer than a shard may be.
    """
    shards: list[WrittenShard] = []
    following = next(batches, None)
    while following is not None:
        with ExitStack() as stack:
            paths = {kind: path(kind, len(shards)) for kind in SHARD_KINDS}
            local = {kind: stack.enter_context(storage.stage(paths[kind])) for kind in SHARD_KINDS}
            rows = _Rows(settings, source, clock)
            with (
                open_writer(local["chunks"], chunks_schema(settings.token_dtype)) as sink,
                growing_array(local["tokens"], np.dtype(settings.token_dtype), (settings.chunk_tokens,)) as add_tokens,
                growing_array(local["hashes"], HASH_DTYPE) as add_hashes,
            ):
                while following is not None and rows.have_room(following):
                    add_tokens(_fixed_stride(following.chunks, settings))
                    add_hashes(text_hashes(following.chunks.text))
                    rows.add(following)
                    _write_rows(sink, rows.take_chunks(ROW_GROUP_ROWS))
                    following = next(batches, None)
                _write_rows(sink, rows.take_chunks(1))
            write_table(local["documents"], rows.documents())
            save_array(local["ids"], rows.ids())
            files = [_record(storage, kind, paths[kind], local[kind], rows.num_chunks) for kind in SHARD_KINDS]
        shards.append(WrittenShard(tuple(files), rows.num_chunks, rows.num_documents, rows.num_tokens))
    return shards


def _write_rows(sink: ParquetWriter, table: pa.Table) -> None:
    if table.num_rows:  # no rows would become an empty row group
        sink.write_table(table, row_group_size=ROW_GROUP_ROWS)


def _record(storage: Storage, kind: str, path: str, local: Path, num_chunks: int) -> FileRecord:
    digest, digests = digest_with_blocks(local)
    record = FileRecord(kind, "", path, digest, -1, num_chunks, None, num_chunks)
    store_blocks(storage, record, digests)
    return record


class _Rows:
    """The rows of a shard so far. Of the chunks only those that do not fill a row group yet are in memory."""

    def __init__(self, settings: Settings, source: str, clock: str) -> None:
        self._settings, self._source = settings, source
        self._added_at = datetime.fromisoformat(clock)
        self.num_chunks = self.num_documents = self.num_tokens = 0
        self._documents: list[pa.Table] = []
        self._ids: list[IdArray] = []
        self._waiting = chunks_schema(settings.token_dtype).empty_table()

    def have_room(self, batch: DocumentBatch) -> bool:
        """Whether the batch still fits. Raises InputError when it does not fit an empty shard."""
        if self.num_chunks + len(batch.chunks.document) <= MAX_SHARD_CHUNKS:
            return True
        if self.num_chunks == 0:
            name = batch.documents.column("doc_id")[0].as_py()
            raise InputError(
                f"document '{name}' is longer than {MAX_SHARD_CHUNKS:,} chunks",
                remedy="Use 'retrodb ingest --max-document-chars 10000000 --oversize split'.",
            )
        return False

    def add(self, batch: DocumentBatch) -> None:
        """Add a batch that fits."""
        import pyarrow as pa

        self._documents.append(self._documents_table(batch))
        self._ids.append(batch.ids.copy())
        self._ids[-1]["row"] = batch.chunks.first_row + self.num_chunks
        chunks = _chunks_table(batch.chunks, self.num_chunks, self._settings.token_dtype)
        self._waiting = pa.concat_tables([self._waiting, chunks])
        self.num_chunks += len(batch.chunks.document)
        self.num_documents += batch.documents.num_rows
        self.num_tokens += int(batch.chunks.num_tokens.sum())

    def take_chunks(self, multiple: int) -> pa.Table:
        """The largest multiple of `multiple` of the waiting chunks, as one table."""
        num_rows = self._waiting.num_rows // multiple * multiple
        taken, self._waiting = self._waiting.slice(0, num_rows).combine_chunks(), self._waiting.slice(num_rows)
        return taken

    def documents(self) -> pa.Table:
        """The documents file."""
        import pyarrow as pa

        return pa.concat_tables(self._documents)

    def ids(self) -> IdArray:
        """The ids file."""
        return sort_ids(np.concatenate(self._ids))

    def _documents_table(self, batch: DocumentBatch) -> pa.Table:
        import pyarrow as pa

        chunks, documents = batch.chunks, batch.documents
        num_documents = documents.num_rows
        columns = {
            "doc_id": documents.column("doc_id"),
            "source": pa.repeat(pa.scalar(self._source), num_documents),
            "content_hash": documents.column("content_hash"),
            "first_row": chunks.first_row + self.num_chunks,
            "num_chunks": chunks.num_chunks,
            "num_key_chunks": chunks.num_key_chunks,
            "num_tokens": chunks.num_tokens,
            "num_key_tokens": chunks.num_key_tokens,
            "num_chars": chunks.num_chars,
            "added_at": pa.repeat(pa.scalar(self._added_at, type=pa.timestamp("us", tz="UTC")), num_documents),
            "metadata": documents.column("metadata").cast(pa.string()),
        }
        return pa.table(columns).cast(DOCUMENTS)


def _chunks_table(chunks: Chunks, first_row: int, token_dtype: str) -> pa.Table:
    import pyarrow as pa

    schema = chunks_schema(token_dtype)
    tokens = pa.LargeListArray.from_arrays(
        chunks.token_offsets, pa.array(chunks.tokens), type=schema.field("tokens").type
    )
    arrays = [
        pa.array(chunks.document + np.int32(first_row)),
        pa.array(chunks.position),
        pa.array(chunks.role),
        tokens,
        chunks.text,
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _fixed_stride(chunks: Chunks, settings: Settings) -> AnyArray:
    """(N, m) tokens. Each row is filled up with the pad token."""
    lengths = np.diff(chunks.token_offsets)
    table = np.full((len(lengths), settings.chunk_tokens), settings.pad_token, dtype=settings.token_dtype)
    table[np.arange(settings.chunk_tokens) < lengths[:, None]] = chunks.tokens
    return table
