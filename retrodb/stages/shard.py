"""Writing shards: documents, chunks, tokens and ids files, in bounded memory.

A shard grows by batches of whole documents until the next batch would not fit; row groups are full ones, whatever the
batches were, so that a row's group is `row // ROW_GROUP_ROWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.corpus.chunking import Chunks
from retrodb.errors import InputError
from retrodb.format import MAX_SHARD_CHUNKS, ROW_GROUP_ROWS
from retrodb.format.arrays import AnyArray, save_array
from retrodb.format.ids import IdArray, sort_ids, text_hashes
from retrodb.format.parquet import open_writer, write_table
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import DOCUMENTS, chunks_schema
from retrodb.format.settings import Settings
from retrodb.store.publish import publish
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Batch:
    """Some whole documents, cut into chunks (M documents, N chunks)."""

    documents: pa.Table  # (M,) columns of a spool segment
    ids: IdArray  # (M,) their keys and hashes
    chunks: Chunks


@dataclass(frozen=True)
class WrittenShard:
    """The files of one shard."""

    files: tuple[FileRecord, ...]  # one of each kind
    num_chunks: int
    num_documents: int
    num_tokens: int


PathOf = Callable[[str, int], str]
"""From a kind ("documents", "chunks", ...) and the shard's number within its task to a path."""


def write_shards(
    storage: Storage,
    batches: Iterator[Batch],
    settings: Settings,
    *,
    source: str,
    clock: str,
    path: PathOf,
    kinds: Sequence[str],
) -> list[WrittenShard]:
    """Write batches into as few shards as hold them.

    Args:
        kinds: which of documents, chunks, tokens and ids to write; query sets have no ids.

    Raises:
        InputError: for a document that is longer than a shard may be.
    """
    shards: list[WrittenShard] = []
    following = next(batches, None)
    while following is not None:
        writer = _ShardWriter(settings, source, clock)
        files: list[FileRecord] = []

        def write_chunks(local: Path, writer: _ShardWriter = writer) -> None:
            nonlocal following
            with open_writer(local, chunks_schema(settings.token_dtype)) as sink:
                while following is not None and writer.has_room(following):
                    for table in writer.add(following):
                        sink.write_table(table, row_group_size=ROW_GROUP_ROWS)
                    following = next(batches, None)
                for table in writer.rest():
                    sink.write_table(table, row_group_size=ROW_GROUP_ROWS)

        number = len(shards)
        chunk_file = publish(storage, "chunks", path("chunks", number), write_chunks)
        rows = RowSet.all(writer.num_chunks)
        for kind in kinds:
            if kind == "chunks":
                files.append(
                    FileRecord("chunks", "", chunk_file.path, chunk_file.digest, -1, len(rows), None, len(rows))
                )
            else:
                files.append(publish(storage, kind, path(kind, number), writer.writes(kind), rows=rows))
        shards.append(WrittenShard(tuple(files), writer.num_chunks, writer.num_documents, writer.num_tokens))
    return shards


class _ShardWriter:
    """Collects one shard; only text goes to disk as it comes."""

    def __init__(self, settings: Settings, source: str, clock: str) -> None:
        self._settings, self._source = settings, source
        self._added_at = datetime.fromisoformat(clock)
        self.num_chunks = self.num_documents = self.num_tokens = 0
        self._documents: list[pa.Table] = []
        self._tokens: list[AnyArray] = []
        self._hashes: list[AnyArray] = []
        self._pending: list[pa.Table] = []
        self._ids: list[IdArray] = []

    def has_room(self, batch: Batch) -> bool:
        """Whether the batch still fits; an empty shard that it does not fit is an error of the input."""
        num_chunks = len(batch.chunks.document)
        if self.num_chunks + num_chunks <= MAX_SHARD_CHUNKS:
            return True
        if self.num_chunks == 0:
            longest = int(np.argmax(batch.chunks.num_chunks))
            raise InputError(
                f"document '{batch.documents.column('doc_id')[longest].as_py()}' is longer than {MAX_SHARD_CHUNKS:,} chunks",
                remedy="Ingest with '--max-document-chars 10000000 --oversize split'.",
            )
        return False

    def add(self, batch: Batch) -> Iterator[pa.Table]:
        """Take a batch; gives the chunks that fill whole row groups."""
        self._documents.append(self._documents_table(batch))
        self._tokens.append(_fixed_stride(batch.chunks, self._settings))
        self._hashes.append(text_hashes(batch.chunks.text))
        self._ids.append(batch.ids.copy())
        self._ids[-1]["row"] = batch.chunks.first_row + self.num_chunks
        self._pending.append(_chunks_table(batch.chunks, self.num_chunks, self._settings.token_dtype))
        self.num_chunks += len(batch.chunks.document)
        self.num_documents += batch.documents.num_rows
        self.num_tokens += int(batch.chunks.num_tokens.sum())
        yield from self._flush(ROW_GROUP_ROWS)

    def rest(self) -> Iterator[pa.Table]:
        """The chunks of the last, partly filled row group."""
        yield from self._flush(1)

    def writes(self, kind: str) -> Callable[[Path], None]:
        """The function that writes the documents, tokens, hashes or ids file."""
        import pyarrow as pa

        if kind == "documents":
            return lambda local: write_table(local, pa.concat_tables(self._documents))
        if kind == "hashes":
            return lambda local: save_array(local, np.concatenate(self._hashes))
        if kind == "tokens":
            return lambda local: save_array(local, np.concatenate(self._tokens))
        return lambda local: save_array(local, sort_ids(np.concatenate(self._ids)))

    def _flush(self, at_least: int) -> Iterator[pa.Table]:
        import pyarrow as pa

        waiting = sum(table.num_rows for table in self._pending)
        if waiting < at_least:
            return
        table = pa.concat_tables(self._pending).combine_chunks()
        whole = waiting // at_least * at_least if at_least > 1 else waiting
        yield table.slice(0, whole)
        self._pending = [table.slice(whole)] if whole < waiting else []

    def _documents_table(self, batch: Batch) -> pa.Table:
        import pyarrow as pa

        chunks, given = batch.chunks, batch.documents
        num_documents = given.num_rows
        columns: dict[str, Any] = {
            "doc_id": given.column("doc_id"),
            "source": pa.repeat(pa.scalar(self._source), num_documents),
            "content_hash": given.column("content_hash"),
            "first_row": chunks.first_row + self.num_chunks,
            "num_chunks": chunks.num_chunks,
            "num_key_chunks": chunks.num_key_chunks,
            "num_tokens": chunks.num_tokens,
            "num_key_tokens": chunks.num_key_tokens,
            "num_chars": chunks.num_chars,
            "added_at": pa.repeat(pa.scalar(self._added_at, type=pa.timestamp("us", tz="UTC")), num_documents),
            "metadata": given.column("metadata").cast(pa.string()),
        }
        arrays = {n: c if isinstance(c, pa.Array | pa.ChunkedArray) else pa.array(c) for n, c in columns.items()}
        return pa.table(arrays).cast(DOCUMENTS)


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
    """(N, m) tokens, each row filled up with the pad token."""
    lengths = np.diff(chunks.token_offsets)
    table = np.full((len(lengths), settings.chunk_tokens), settings.pad_token, dtype=settings.token_dtype)
    table[np.arange(settings.chunk_tokens) < lengths[:, None]] = chunks.tokens
    return table
