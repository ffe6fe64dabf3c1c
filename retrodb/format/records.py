"""The records a manifest is made of, and the table of one manifest segment.

A manifest is a log cut into immutable segments. Every record either adds something or takes something away; the state
of a snapshot is what is left after applying all records of its segments in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from retrodb.format.rows import RowSet

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT_RECORDS = 4096
"""A segment is closed at this many records; only the youngest, open one is ever rewritten (under a new digest)."""

OP_FILE, OP_SHARD, OP_SCREENED = "file", "shard", "screened"
OP_DROP_FILE, OP_DROP_SHARD = "drop-file", "drop-shard"


@dataclass(frozen=True)
class FileDigest:
    """Size and digests of a file's bytes."""

    size_bytes: int  # length of the file
    sha256: bytes  # 32 bytes, for `check` and for trust
    xxh3: bytes  # 16 bytes, verified when a file is first opened on a machine


@dataclass(frozen=True)
class FileRecord:
    """One live file: where it lies, which rows it holds, and what its bytes must be."""

    kind: str  # a key of `kinds.KINDS`
    name: str  # space, source, test set, query set, table or attribute; "" where there is none
    path: str  # relative to the database
    digest: FileDigest
    first_chunk: int = -1  # start of the id range (or of the query rows), -1 for files without ids
    num_chunks: int = 0  # length of the id range
    rows: bytes | None = None  # roaring bitmap of the rows present; None means all
    num_rows: int = 0  # number of rows present

    @property
    def row_set(self) -> RowSet:
        """The rows of the range that the file holds."""
        return RowSet(self.num_chunks, self.rows)

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
    def end_chunk(self) -> int:
        """One past the last chunk id."""
        return self.first_chunk + self.num_chunks


@dataclass(frozen=True)
class ScreenedRecord:
    """A range of chunk ids that was held against one version of a test set."""

    testset: str  # name and version, as `screening_key` gives it
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True)
class DropRecord:
    """Takes a file (by path) or a shard (by first chunk) out of the manifest."""

    op: str  # OP_DROP_FILE or OP_DROP_SHARD
    path: str = ""
    first_chunk: int = -1


Record: TypeAlias = FileRecord | ShardRecord | ScreenedRecord | DropRecord


def records_to_table(records: Iterable[Record]) -> pa.Table:
    """The Arrow table of manifest records, schema `schemas.MANIFEST`."""
    import pyarrow as pa

    from retrodb.format.schemas import MANIFEST

    return pa.Table.from_pylist([_to_row(record) for record in records], schema=MANIFEST)


_EMPTY: dict[str, Any] = {
    "kind": "", "name": "", "path": "", "first_chunk": -1, "num_chunks": 0, "num_documents": 0,
    "rows": None, "num_rows": 0, "size_bytes": 0, "sha256": b"", "xxh3": b"",
}  # fmt: skip


def _to_row(record: Record) -> dict[str, Any]:
    match record:
        case FileRecord():
            digest = {
                "size_bytes": record.digest.size_bytes,
                "sha256": record.digest.sha256,
                "xxh3": record.digest.xxh3,
            }
            own = {
                n: getattr(record, n) for n in ("kind", "name", "path", "first_chunk", "num_chunks", "rows", "num_rows")
            }
            return {**_EMPTY, "op": OP_FILE, **own, **digest}
        case ShardRecord():
            own = {n: getattr(record, n) for n in ("first_chunk", "num_chunks", "num_documents")}
            return {**_EMPTY, "op": OP_SHARD, "name": record.source, "path": record.task, **own}
        case ScreenedRecord():
            own = {"name": record.testset, "first_chunk": record.first_chunk, "num_chunks": record.num_chunks}
            return {**_EMPTY, "op": OP_SCREENED, **own}
        case DropRecord():
            return {**_EMPTY, "op": record.op, "path": record.path, "first_chunk": record.first_chunk}


def file_record_from_row(row: dict[str, Any]) -> FileRecord:
    """The file record of one row of a manifest table."""
    digest = FileDigest(row["size_bytes"], row["sha256"], row["xxh3"])
    own = {n: row[n] for n in ("kind", "name", "path", "first_chunk", "num_chunks", "rows", "num_rows")}
    return FileRecord(digest=digest, **own)


def screening_key(name: str, digest: str) -> str:
    """How screening records name a test set: a changed test set has to be screened again."""
    return f"{name}@{digest[:16]}"


def covered(ranges: Sequence[tuple[int, int]], first: int, count: int) -> bool:
    """Whether sorted, disjoint ranges (start, end) cover `[first, first + count)` whole."""
    position = first
    for start, end in ranges:
        if start > position:
            break
        position = max(position, end)
    return position >= first + count
