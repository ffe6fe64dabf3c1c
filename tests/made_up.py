"""Manifest records of files that do not exist: the store never looks into the files that it names."""

from __future__ import annotations

import hashlib
from typing import Any

from retrodb.config import DedupParams, EmbedParams, NeighboursParams
from retrodb.format.entries import SpaceEntry, TableEntry, TestsetEntry
from retrodb.format.records import FileDigest, FileRecord, ShardRecord
from retrodb.store.chunk_ids import NewShard
from retrodb.store.commit import Change
from retrodb.store.conflict_keys import ConflictKeys

CLOCK = "2026-01-01T00:00:00.000000+00:00"
NO_MARKS = ConflictKeys(frozenset(), frozenset())
SHARD_KINDS = {"documents": "parquet", "chunks": "parquet", "tokens": "npy", "ids": "npy"}


def change(transaction: str, conflict_keys: ConflictKeys = NO_MARKS, **parts: Any) -> Change:
    """A change with nothing in it but what is given."""
    return Change(
        transaction=transaction, command=transaction, arguments={}, clock=CLOCK, conflict_keys=conflict_keys, **parts
    )


def space_entry(dimension: int = 4) -> SpaceEntry:
    """The entry of a made-up space."""
    return SpaceEntry(EmbedParams("hashing:4"), {}, "f", dimension, "inner_product")


def testset_entry(digest: str) -> TestsetEntry:
    """The entry of a made-up test set."""
    return TestsetEntry(digest, 1, DedupParams(), 1)


testset_entry.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def table_entry(k: int = 2) -> TableEntry:
    """The entry of a made-up neighbour table."""
    return TableEntry(
        queries="self",
        space="default",
        state="state",
        dependencies=None,
        **vars(NeighboursParams(k=k)),
        nprobe=0,
        num_rows=0,
        num_short=0,
        recall_expected=1.0,
        snapshot=0,
    )


def file(kind: str, path: str, *, name: str = "", first: int = -1, count: int = 0) -> FileRecord:
    """The record of a made-up file."""
    return FileRecord(kind, name, path, digest(path), first, count, None, count)


def shard(task: str, source: str = "a", num_chunks: int = 100, num_documents: int = 10, *, first: int = -1) -> NewShard:
    """A shard with the files that every shard has."""
    files = tuple(file(k, f"{k}/{task}.{end}", first=first, count=num_chunks) for k, end in SHARD_KINDS.items())
    return NewShard(ShardRecord(task, source, num_chunks, num_documents, first), files)


def id_of(word: str) -> str:
    """32 hexadecimal digits for a word, as a task or a run has."""
    return hashlib.md5(word.encode(), usedforsecurity=False).hexdigest()


def digest(path: str) -> FileDigest:
    """As incompressible as a real one."""
    sha256 = hashlib.sha256(path.encode()).digest()
    return FileDigest(1000 + sha256[0], sha256, sha256[:16])
