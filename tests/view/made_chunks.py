"""Chunk sets from plain descriptions of documents, and what a plain loop says of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.arrays import Int64Array
from retrodb.format.parquet import open_writer
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.format.schemas import DOCUMENTS, ROLE_KEY, ROLE_TEXT, ROLE_VALUE, chunks_schema
from retrodb.format.settings import Settings
from retrodb.store.digest import digest_bytes
from retrodb.store.row_files import store_rows
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.tombstones import TombstoneSet, tombstone, write_tombstones

M, MIN_KEY = 4, 2
SETTINGS = Settings(M, MIN_KEY, "own", "", 1000, "uint16", pad_token=0)


@dataclass(frozen=True)
class Doc:
    """A document by its numbers of tokens."""

    tokens: int  # of its text, or of its key
    value: int = 0  # tokens of its value; 0 for a document that has none

    @property
    def chunks(self) -> list[tuple[int, int]]:
        """Role and length of each chunk."""
        roles = ((ROLE_KEY, self.tokens), (ROLE_VALUE, self.value)) if self.value else ((ROLE_TEXT, self.tokens),)
        return [(role, min(M, total - start)) for role, total in roles for start in range(0, total, M)]


@dataclass(frozen=True)
class Chunk:
    """What is true of one chunk."""

    id: int
    document: int  # id of the document's first chunk
    is_last: bool
    role: int
    tokens: tuple[int, ...]
    text: str


DOCS = st.lists(st.builds(Doc, st.integers(1, 3 * M + 1), st.sampled_from([0, 0, 1, M, M + 1])), min_size=1, max_size=6)


def expected_chunks(docs: list[Doc], first: int) -> list[Chunk]:
    """Every chunk of a shard, by ascending id."""
    chunks: list[Chunk] = []
    for doc in docs:
        start = first + len(chunks)
        for position, (role, length) in enumerate(doc.chunks):
            own = start + position
            tokens = tuple(1 + (own * M + i) % 900 for i in range(length))
            chunks.append(Chunk(own, start, position == len(doc.chunks) - 1, role, tokens, f"text {own}"))
    return chunks


def make_chunk_set(
    folder: Path, shards: list[tuple[int, list[Doc]]], deleted: list[int], absent: frozenset[int] = frozenset()
) -> ChunkSet:
    """A chunk set of shards (first chunk, documents).

    Args:
        deleted: ids under a tombstone.
        absent: ids whose rows the files do not hold, as after a compaction.
    """
    storage = LocalStorage(folder)
    records: dict[str, list[FileRecord]] = {"documents": [], "chunks": [], "tokens": []}
    stones = []
    for first, docs in shards:
        chunks = expected_chunks(docs, first)
        present = np.array([chunk.id not in absent for chunk in chunks])
        kept = [chunk for chunk in chunks if chunk.id not in absent]
        rows = RowSet.from_mask(present)
        for kind, data in (
            ("documents", _parquet(_documents(docs, first))),
            ("chunks", _parquet(_chunks(kept, first))),
            ("tokens", _tokens(kept)),
        ):
            path = f"{kind}/{first}"
            storage.write(path, data)
            digest = digest_bytes(data)
            records[kind].append(
                FileRecord(kind, "", path, digest, first, len(chunks), store_rows(storage, rows), len(rows))
            )
        own = np.array([i - first for i in deleted if first <= i < first + len(chunks)], dtype=np.int64)
        stones.append(tombstone(first, len(chunks), "removed", own))
    write_tombstones(folder / "tombstones.parquet", stones)
    return ChunkSet(
        VerifiedFiles(storage), SETTINGS, records.__getitem__, TombstoneSet([folder / "tombstones.parquet"])
    )


def all_ids(shards: list[tuple[int, list[Doc]]]) -> Int64Array:
    """The ids of all chunks, those just outside of the shards, and -1."""
    inside = [chunk.id for first, docs in shards for chunk in expected_chunks(docs, first)]
    around = [first - 1 for first, _ in shards] + [max(inside) + 1, -1, -(2**40), 2**60]
    return np.array(inside + around, dtype=np.int64)


def _documents(docs: list[Doc], first: int) -> pa.Table:
    rows, start = [], 0
    for number, doc in enumerate(docs):
        is_pair = doc.value > 0
        rows.append(
            {
                "doc_id": f"{first}-{number}",
                "source": "s",
                "content_hash": bytes(16),
                "first_row": start,
                "num_chunks": len(doc.chunks),
                "num_key_chunks": sum(role == ROLE_KEY for role, _ in doc.chunks),
                "num_tokens": doc.tokens + doc.value,
                "num_key_tokens": doc.tokens if is_pair else 0,
                "num_chars": 0,
                "added_at": 0,
                "metadata": "{}",
            }
        )
        start += len(doc.chunks)
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


def _chunks(chunks: list[Chunk], first: int) -> pa.Table:
    rows = [
        {
            "document": c.document - first,
            "position": c.id - c.document,
            "role": c.role,
            "tokens": c.tokens,
            "text": c.text,
        }
        for c in chunks
    ]
    return pa.Table.from_pylist(rows, schema=chunks_schema("uint16"))


def _tokens(chunks: list[Chunk]) -> bytes:
    table = np.zeros((len(chunks), M), dtype=np.uint16)
    for row, chunk in zip(table, chunks, strict=True):
        row[: len(chunk.tokens)] = chunk.tokens
    buffer = io.BytesIO()
    np.save(buffer, table)
    return buffer.getvalue()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with open_writer(buffer, table.schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return buffer.getvalue()
