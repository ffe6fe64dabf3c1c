"""The manifest of a snapshot in memory: Arrow columns, and records made only for what is asked.

Opening reads the segments, whose number grows with the database, at about a million records a second; nothing here makes
one Python object per file or shard of the whole database.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import DamagedFileError
from retrodb.format.blocks import has_block_file
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import (
    OP_COUNTS,
    OP_COVERED,
    OP_DROP_FILE,
    OP_DROP_SHARD,
    OP_FILE,
    OP_SCREENED,
    OP_SHARD,
    CountsRecord,
    CoveredRecord,
    FileRecord,
    Record,
    ShardRecord,
    covered_records,
    file_records,
    records_to_table,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import BoolArray, Int32Array, Int64Array
    from retrodb.format.snapshot import SegmentRef, Snapshot
    from retrodb.store.storage import Storage


@dataclass(frozen=True)
class ShardTable:
    """All live shards, by ascending first chunk (S shards)."""

    first_chunk: Int64Array  # (S,)
    num_chunks: Int64Array  # (S,)
    num_documents: Int64Array  # (S,)
    source: tuple[str, ...]
    task: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first_chunk)

    def record(self, index: int) -> ShardRecord:
        """The record of the index-th shard."""
        return ShardRecord(
            task=self.task[index],
            source=self.source[index],
            num_chunks=int(self.num_chunks[index]),
            num_documents=int(self.num_documents[index]),
            first_chunk=int(self.first_chunk[index]),
        )

    def count_below(self, ids: Int64Array) -> Int64Array:
        """(Q,) int64: how many ids of live shards are less than each id; the difference of two counts the ids between."""
        if not len(self):
            return np.zeros(len(ids), dtype=np.int64)
        before = np.concatenate(([0], np.cumsum(self.num_chunks)))
        index = np.maximum(np.searchsorted(self.first_chunk, ids, side="right") - 1, 0)
        return np.asarray(before[index] + np.clip(ids - self.first_chunk[index], 0, self.num_chunks[index]))

    def locate(self, ids: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Shard index and row of chunk ids, each (Q,) int64; index -1 for ids of no live shard (and for -1 itself)."""
        ids = np.asarray(ids, dtype=np.int64)
        if not len(self):
            return np.full(ids.shape, -1, dtype=np.int64), np.full(ids.shape, -1, dtype=np.int64)
        index = np.searchsorted(self.first_chunk, ids, side="right") - 1
        row = ids - self.first_chunk[index]
        inside = (index >= 0) & (row < self.num_chunks[index])
        return np.where(inside, index, -1), np.where(inside, row, -1)


class ShardCounts(Mapping[int, dict[str, CountsRecord]]):
    """The counts of the live shards by first chunk and reason. Columns, of which records are made for the shards asked for."""

    def __init__(self, shards: Int64Array, table: pa.Table, rows: Int64Array) -> None:
        """
        Args:
            shards: first chunks, ascending.
            table: manifest rows, one for each shard and reason, by first chunk.
            rows: numbers of these rows in the manifest.
        """
        self._shards, self.rows = shards, rows
        reason = table.column("name").dictionary_encode().combine_chunks()
        self._reasons: list[str] = reason.dictionary.to_pylist()  # the distinct ones, which are few
        self._codes: Int32Array = reason.indices.to_numpy()  # one for each row of the table
        names = ("num_chunks", "num_documents", "num_keys", "num_tokens")
        self._values = [table.column(name).to_numpy() for name in names]
        self._bounds = np.searchsorted(
            table.column("first_chunk").to_numpy(), np.append(shards, np.iinfo(np.int64).max)
        )

    def __getitem__(self, first_chunk: int) -> dict[str, CountsRecord]:
        shard = int(self._shards.searchsorted(first_chunk))
        if shard == len(self) or self._shards[shard] != first_chunk:
            raise KeyError(first_chunk)
        counts = {}
        for row in range(self._bounds[shard], self._bounds[shard + 1]):
            reason = self._reasons[self._codes[row]]
            counts[reason] = CountsRecord(first_chunk, reason, *(int(column[row]) for column in self._values))
        return counts

    def __iter__(self) -> Iterator[int]:
        return iter(self._shards.tolist())

    def __len__(self) -> int:
        return len(self._shards)


class Manifest:
    """What is live in one snapshot. Build it with `load_manifest`."""

    def __init__(self, table: pa.Table) -> None:
        import pyarrow.compute as pc

        ops = table.column("op").dictionary_encode().combine_chunks()
        names = ops.dictionary.to_pylist()
        codes = ops.indices.to_numpy(zero_copy_only=False)
        self._rows_of = {op: np.flatnonzero(codes == names.index(op)) if op in names else _NONE for op in _OPS}
        self._table = table
        self._pc = pc

    @cached_property
    def shards(self) -> ShardTable:
        """The live shards."""
        table = self._table.take(self._shard_rows)
        return ShardTable(
            first_chunk=table.column("first_chunk").to_numpy(),
            num_chunks=table.column("num_chunks").to_numpy(),
            num_documents=table.column("num_documents").to_numpy(),
            source=tuple(table.column("name").to_pylist()),
            task=tuple(table.column("path").to_pylist()),
        )

    @cached_property
    def _shard_rows(self) -> Int64Array:
        """The rows of the live shards' records, by ascending first chunk."""
        rows = self._alive(OP_SHARD, OP_DROP_SHARD, "first_chunk")
        return rows[np.argsort(self._table.column("first_chunk").take(rows).to_numpy(), kind="stable")]

    @cached_property
    def _files(self) -> pa.Table:
        return self._table.take(self._alive(OP_FILE, OP_DROP_FILE, "path"))

    def files(self, kind: str, name: str | None = None) -> list[FileRecord]:
        """The live files of a kind (and name), in the order of their commits."""
        selected = self._pc.equal(self._files.column("kind"), kind)
        if name is not None:
            selected = self._pc.and_(selected, self._pc.equal(self._files.column("name"), name))
        return file_records(self._files.filter(selected))

    def all_files(self) -> list[FileRecord]:
        """Every live file, in the order of their commits."""
        return file_records(self._files)

    def paths(self) -> list[str]:
        """The paths of all live files, of their row bitmaps and block digests: a twentieth of the time of `all_files`."""
        of_files: list[str] = self._files.column("path").to_pylist()  # some for each shard
        return [*of_files, *self.row_files(), *self.block_files()]

    def row_files(self) -> list[str]:
        """The paths of the row bitmaps of all live files, sorted."""
        digests: list[bytes] = self._files.column("rows").unique().drop_null().to_pylist()
        return sorted(path_of("rows", digest=digest.hex()) for digest in digests)

    def block_files(self) -> list[str]:
        """The paths of the block digests of all live files, sorted."""
        import pyarrow as pa

        kinds: list[str] = self._files.column("kind").to_pylist()
        sizes: list[int] = self._files.column("size_bytes").to_numpy().tolist()
        has_blocks = pa.array(list(map(has_block_file, kinds, sizes)), pa.bool_())
        digests: list[bytes] = self._files.column("sha256").filter(has_blocks).unique().to_pylist()
        return sorted(path_of("blocks", digest=digest.hex()) for digest in digests)

    def size_by_kind(self) -> dict[str, tuple[int, int]]:
        """Number and bytes of the live files of each kind."""
        groups = self._files.group_by("kind").aggregate([("size_bytes", "count"), ("size_bytes", "sum")]).to_pylist()
        return {
            g["kind"]: (g["size_bytes_count"], g["size_bytes_sum"]) for g in sorted(groups, key=lambda g: g["kind"])
        }

    @cached_property
    def counts(self) -> ShardCounts:
        """By first chunk of a live shard and reason, "" for what is live: the counts that the newest commit of each gave."""
        rows = self._newest_of_shards(OP_COUNTS)
        return ShardCounts(self.shards.first_chunk, self._table.take(rows), rows)

    def num_covered(self, kind: str, name: str) -> Int64Array:
        """(S,) int64: how many live chunks of each live shard the files of a kind and name hold, see `CoveredRecord`."""
        is_kind, is_name = (self._pc.equal(self._covered.column(n), v) for n, v in (("kind", kind), ("name", name)))
        table = self._covered.filter(self._pc.and_(is_kind, is_name))
        covered = np.zeros(len(self.shards), dtype=np.int64)
        shard = np.searchsorted(self.shards.first_chunk, table.column("first_chunk").to_numpy())
        covered[shard] = table.column("num_chunks").to_numpy()
        return covered

    def covered_records(self, first_chunk: int) -> list[CoveredRecord]:
        """What the manifest says of the live shard that begins at a chunk: a record for each space and table."""
        low, high = np.searchsorted(self._covered_first_chunk, [first_chunk, first_chunk + 1]).tolist()
        return covered_records(self._covered.slice(low, high - low))

    @cached_property
    def _covered(self) -> pa.Table:
        """The records that count, by first chunk: some for each shard."""
        return self._table.take(self._newest_of_shards(OP_COVERED)).combine_chunks()

    @cached_property
    def _covered_first_chunk(self) -> Int64Array:
        first_chunk: Int64Array = self._covered.column("first_chunk").to_numpy()
        return first_chunk

    def _newest_of_shards(self, op: str) -> Int64Array:
        """The newest row of an operation for each live shard, kind and name, by first chunk; none from before its shard."""
        rows, shards = self._rows_of[op], self.shards.first_chunk
        table = self._table.take(rows)
        first = table.column("first_chunk").to_numpy()
        kind, name = (
            table.column(column).dictionary_encode().combine_chunks().indices.to_numpy().astype(np.int64)
            for column in ("kind", "name")
        )
        of = kind << 32 | name
        shard = np.searchsorted(shards, first)
        is_live = np.append(shards, -1)[shard] == first
        chosen = np.flatnonzero(is_live & (rows > np.append(self._shard_rows, 0)[shard]))
        chosen = chosen[np.lexsort((chosen, of[chosen], first[chosen]))]
        is_newest = np.append((np.diff(first[chosen]) != 0) | (np.diff(of[chosen]) != 0), [True] * bool(len(chosen)))
        return np.asarray(rows[chosen[is_newest.astype(bool)]])

    def live_table(self) -> pa.Table:
        """The records that still say something, in the order of the log: a manifest made of them equals this one."""
        files = self._alive(OP_FILE, OP_DROP_FILE, "path")
        covered = self._newest_of_shards(OP_COVERED)
        covered = covered[self._table.column("num_chunks").take(covered).to_numpy() > 0]
        rows = np.concatenate([self._shard_rows, files, self._rows_of[OP_SCREENED], self.counts.rows, covered])
        return self._table.take(np.sort(rows, kind="stable"))

    def live_counts(self, first_chunk: int) -> CountsRecord:
        """What is live of the shard that begins at a chunk.

        Raises:
            DamagedFileError: the manifest has no counts of it.
        """
        counts = self.counts.get(first_chunk, {}).get("")
        if counts is None:
            raise DamagedFileError(
                f"no counts of the shard at chunk {first_chunk:,}", where="manifests", remedy="Run 'retrodb check'."
            )
        return counts

    def screened_ranges(self, testset_key: str) -> list[tuple[int, int]]:
        """Sorted, merged ranges (start, end) of chunk ids that were screened against a test set."""
        table = self._table.take(self._rows_of[OP_SCREENED])
        table = table.filter(self._pc.equal(table.column("name"), testset_key))
        starts = table.column("first_chunk").to_numpy()
        ends = starts + table.column("num_chunks").to_numpy()
        merged: list[tuple[int, int]] = []
        for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
        return merged

    def _alive(self, op: str, drop: str, key: str) -> Int64Array:
        """Rows of `op` that no later row of `drop` with the same key takes away."""
        rows, drops = self._rows_of[op], self._rows_of[drop]
        if not len(drops):
            return rows
        newest_first = drops[::-1]
        keys, dropped = (self._table.column(key).take(of) for of in (rows, newest_first))
        found = self._pc.fill_null(self._pc.index_in(keys, dropped), -1).to_numpy()
        alive: BoolArray = (found < 0) | (newest_first[found] < rows)
        return rows[alive]


_OPS = (OP_FILE, OP_SHARD, OP_SCREENED, OP_COUNTS, OP_COVERED, OP_DROP_FILE, OP_DROP_SHARD)
_NONE = np.empty(0, dtype=np.int64)


def load_manifest(storage: Storage, snapshot: Snapshot, staged: Sequence[Record] = ()) -> Manifest:
    """Read a snapshot's manifest.

    Args:
        staged: records of a change that is not committed yet, applied after those of the snapshot.

    Raises:
        MissingFileError, DamagedFileError: naming the segment.
    """
    return load_segments(storage, snapshot.segments, staged)


def load_segments(storage: Storage, segments: Sequence[SegmentRef], staged: Sequence[Record] = ()) -> Manifest:
    """The manifest that some segments make. Arguments and errors are those of `load_manifest`."""
    import pyarrow as pa

    from retrodb.format.schemas import MANIFEST

    tables = [load_segment(storage, ref) for ref in segments]
    if staged:
        tables.append(records_to_table(staged))
    return Manifest(pa.concat_tables(tables).combine_chunks() if tables else MANIFEST.empty_table())


def load_segment(storage: Storage, ref: SegmentRef) -> pa.Table:
    """Read one segment after comparing its bytes with the digest that names it. Raises as `load_manifest`."""
    path = path_of("manifests", digest=ref.digest)
    data = storage.read(path)
    if hashlib.sha256(data).hexdigest() != ref.digest:
        raise DamagedFileError(
            "checksum mismatch in a manifest segment",
            where=path,
            remedy="Restore it from a backup, or read an older snapshot, such as with 'retrodb sql --as-of N'.",
        )
    return read_table(io.BytesIO(data))
