"""The records a manifest is made of, and the table of one manifest segment.

A manifest is a log cut into immutable segments. Every record either adds something or takes something away; the state
of a snapshot is what is left after applying all records of its segments in order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from retrodb.format.blocks import has_block_file
from retrodb.format.kinds import path_of

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT_RECORDS = 4096
"""A segment is closed at this many records; only the newest, open one is ever rewritten (under a new digest)."""

OP_FILE, OP_SHARD, OP_SCREENED, OP_COUNTS, OP_COVERED = "file", "shard", "screened", "counts", "covered"
OP_DROP_FILE, OP_DROP_SHARD = "drop-file", "drop-shard"


class ChunkRange(NamedTuple):
    """A range of chunk ids, or of the rows of a query set: `[first_chunk, first_chunk + num_chunks)`."""

    first_chunk: int
    num_chunks: int

    @property
    def end(self) -> int:
        """One past the last id."""
        return self.first_chunk + self.num_chunks


@dataclass(frozen=True)
class FileDigest:
    """Size and digests of a file's bytes."""

    size_bytes: int  # length of the file
    sha256: bytes  # 32 bytes, for `check` and for trust
    xxh3: (
        bytes  # 16 bytes that prove the digests of its blocks, which every process verifies when it first touches them
    )


@dataclass(frozen=True)
class FileRecord:
    """One live file: its path, the rows it holds, and the digests of its bytes."""

    kind: str  # a key of `kinds.KINDS`
    name: str  # space, source, test set, query set, table or attribute; "" where there is none
    path: str  # relative to the database
    digest: FileDigest
    first_chunk: int = -1  # start of the id range (or of the query rows), -1 for files without ids
    num_chunks: int = 0  # length of the id range
    rows: str | None = (
        None  # digest of the bitmap of the rows present, the name of a file of kind "rows"; None means all
    )
    num_rows: int = 0  # number of rows present

    @property
    def span(self) -> ChunkRange:
        """The range of ids that its rows are numbered in."""
        return ChunkRange(self.first_chunk, self.num_chunks)

    @property
    def rows_path(self) -> str | None:
        """The path of its row bitmap; None if all rows are present."""
        return None if self.rows is None else path_of("rows", digest=self.rows)

    @property
    def blocks_path(self) -> str | None:
        """The path of the digests of its blocks; None for a file that is verified whole."""
        if not has_block_file(self.kind, self.digest.size_bytes):
            return None
        return path_of("blocks", digest=self.digest.sha256.hex())

    def at(self, first_chunk: int) -> FileRecord:
        """The same file once its shard's ids are given."""
        return replace(self, first_chunk=first_chunk)


@dataclass(frozen=True)
class ShardRecord:
    """A range of chunk ids of one source, whole documents only."""

    task: str  # the task that wrote it: the name of its documents and chunks files
    source: str
    num_chunks: int
    num_documents: int
    first_chunk: int = -1  # given at commit

    @property
    def span(self) -> ChunkRange:
        """Its chunk ids."""
        return ChunkRange(self.first_chunk, self.num_chunks)

    @property
    def end_chunk(self) -> int:
        """One past the last chunk id."""
        return self.first_chunk + self.num_chunks


@dataclass(frozen=True)
class ScreenedRecord:
    """A range of chunk ids that was screened against one version of a test set."""

    testset: str  # name and version, as `screening_key` gives it
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True)
class CountsRecord:
    """How much of a shard is live, or how much of it a reason deletes. The newest record of a shard and reason counts.

    It applies to the shard record before it: a shard that is replaced has no counts until new ones are written.
    """

    first_chunk: int  # of the shard
    reason: str  # "": what is live
    num_chunks: int
    num_documents: int  # with a live chunk; or whose chunks the reason deletes, all that are there
    num_keys: int = 0  # live chunks that get a vector; 0 for a reason
    num_tokens: int = 0  # of the documents of the shard, deleted or not; 0 for a reason


@dataclass(frozen=True)
class CoveredRecord:
    """How many live chunks of a shard the files of one kind and name hold. The newest record of these three counts; none is 0.

    It applies to the shard record before it, as a `CountsRecord` does.
    """

    kind: str  # "vectors", "parts" or "neighbours"
    name: str  # space or table
    first_chunk: int  # of the shard
    num_chunks: int


@dataclass(frozen=True)
class DropRecord:
    """Takes a file (by path) or a shard (by first chunk) out of the manifest."""

    op: str  # OP_DROP_FILE or OP_DROP_SHARD
    path: str = ""
    first_chunk: int = -1


Record: TypeAlias = FileRecord | ShardRecord | ScreenedRecord | CountsRecord | CoveredRecord | DropRecord


def records_to_table(records: Iterable[Record]) -> pa.Table:
    """The Arrow table of manifest records, schema `schemas.MANIFEST`."""
    import pyarrow as pa

    from retrodb.format.schemas import MANIFEST

    columns = zip(*(_to_row(record) for record in records), strict=True)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, MANIFEST, strict=False)]
    return pa.Table.from_arrays(arrays, schema=MANIFEST) if arrays else MANIFEST.empty_table()


def _to_row(record: Record) -> tuple[object, ...]:
    """The values of one record in the order of `schemas.MANIFEST`."""
    match record:
        case FileRecord(kind, name, path, digest, first, count, rows, num_rows):
            digests = (digest.size_bytes, digest.sha256, digest.xxh3)
            rows_digest = None if rows is None else bytes.fromhex(rows)
            return (OP_FILE, kind, name, path, first, count, 0, 0, 0, rows_digest, num_rows, *digests)
        case ShardRecord(task, source, count, num_documents, first):
            return (OP_SHARD, "", source, task, first, count, num_documents, 0, 0, *_NO_FILE)
        case ScreenedRecord(testset, first, count):
            return (OP_SCREENED, "", testset, "", first, count, 0, 0, 0, *_NO_FILE)
        case CountsRecord(first, reason, count, num_documents, num_keys, num_tokens):
            return (OP_COUNTS, "", reason, "", first, count, num_documents, num_keys, num_tokens, *_NO_FILE)
        case CoveredRecord(kind, name, first, count):
            return (OP_COVERED, kind, name, "", first, count, 0, 0, 0, *_NO_FILE)
        case DropRecord(op, path, first):
            return (op, "", "", path, first, 0, 0, 0, 0, *_NO_FILE)


_NO_FILE = (None, 0, 0, b"", b"")  # rows, num_rows, size_bytes, sha256, xxh3


def file_records(table: pa.Table) -> list[FileRecord]:
    """The file records of a manifest table's rows, all of which must be of files."""
    names = ("kind", "name", "path", "size_bytes", "sha256", "xxh3", "first_chunk", "num_chunks", "rows", "num_rows")
    columns = (table.column(name).to_pylist() for name in names)
    return [
        FileRecord(
            kind, name, path, FileDigest(size_bytes, sha256, xxh3), first, count, rows.hex() if rows else None, num_rows
        )
        for kind, name, path, size_bytes, sha256, xxh3, first, count, rows, num_rows in zip(*columns, strict=True)
    ]


def covered_records(table: pa.Table) -> list[CoveredRecord]:
    """The records of a manifest table's rows, which must be `CoveredRecord`s of one shard: one for each space and table."""
    kinds: list[str] = table.column("kind").to_pylist()
    names: list[str] = table.column("name").to_pylist()
    first_chunks: list[int] = table.column("first_chunk").to_pylist()
    counts: list[int] = table.column("num_chunks").to_pylist()
    return list(map(CoveredRecord, kinds, names, first_chunks, counts))


def screening_key(name: str, digest: str) -> str:
    """How screening records name a test set: a changed test set has to be screened again."""
    return f"{name}@{digest[:16]}"


def covered(ranges: Sequence[tuple[int, int]], first: int, count: int) -> bool:
    """Whether one of sorted ranges (start, end) that neither overlap nor touch covers `[first, first + count)`."""
    index = bisect_right(ranges, first, key=lambda span: span[0]) - 1
    return index >= 0 and ranges[index][1] >= first + count
