"""Which chunks are deleted, and why.

A tombstone deletes some rows for a reason or, by `undelete`, revokes that reason for them. For each row and reason the newest
tombstone applies. A chunk is live when no reason deletes it.

Opening reads the ranges and reasons of all tombstones. The rows of one are read when a range that it touches is asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.parquet import open_writer, read_table
from retrodb.format.rows import bitmap_bytes, mask_of, rows_from, serialize_rows, unite
from retrodb.store.bounded_cache import CachedReader
from retrodb.view.bitmap_groups import BitmapGroups
from retrodb.view.id_ranges import IdRanges

if TYPE_CHECKING:
    import pyarrow as pa
    from pyroaring import BitMap

    from retrodb.format.arrays import BoolArray, Int64Array

GROUP_ROWS = 16
"""Tombstones of a row group: the rows of one are read with those of its group, each at most 128 KiB for a shard."""

_RANGES = ("first_chunk", "num_chunks", "reason", "active")


@dataclass(frozen=True)
class Tombstone:
    """Rows of one id range and one reason."""

    first_chunk: int  # start of the range
    num_chunks: int  # length of the range
    reason: str  # such as "leak:wikitext103-test" or "superseded"
    active: bool  # False revokes the reason
    rows: bytes  # roaring bitmap of rows relative to first_chunk


def tombstone(first_chunk: int, num_chunks: int, reason: str, rows: Int64Array, *, active: bool = True) -> Tombstone:
    """A tombstone over `rows`, relative to `first_chunk`."""
    return Tombstone(first_chunk, num_chunks, reason, active, serialize_rows(rows))


def tombstones_to_table(tombstones: Iterable[Tombstone]) -> pa.Table:
    """The Arrow table of a tombstones file, schema `schemas.TOMBSTONES`."""
    import pyarrow as pa

    from retrodb.format.schemas import TOMBSTONES

    ordered = sorted(tombstones, key=tombstone_order)
    return pa.Table.from_pylist([t.__dict__ for t in ordered], schema=TOMBSTONES)


def write_tombstones(path: Path, tombstones: Iterable[Tombstone]) -> None:
    """Write a tombstones file. Equal tombstones give equal bytes."""
    write_ordered_tombstones(path, sorted(tombstones, key=tombstone_order))


def write_ordered_tombstones(path: Path, ordered: Iterable[Tombstone]) -> None:
    """Write a tombstones file of tombstones in their order; one row group of them is in memory."""
    from retrodb.format.schemas import TOMBSTONES

    remaining = iter(ordered)
    with open_writer(path, TOMBSTONES) as writer:
        while group := list(islice(remaining, GROUP_ROWS)):
            writer.write_table(tombstones_to_table(group), row_group_size=GROUP_ROWS)


def tombstone_order(item: Tombstone) -> tuple[int, str]:
    """The order of the tombstones in a file."""
    return item.first_chunk, item.reason


class TombstoneSet:
    """All tombstones of a snapshot, read by id range."""

    def __init__(self, files: Iterable[Path]) -> None:
        """
        Args:
            files: tombstones files, in the order of their commits.
        """
        self._files = list(files)
        starts, counts, self._reason, self._active, at = [], [], list[str](), list[bool](), list[tuple[int, int]]()
        for number, path in enumerate(self._files):
            table = read_table(path, _RANGES)
            starts.append(table.column("first_chunk").to_numpy())
            counts.append(table.column("num_chunks").to_numpy())
            self._reason += table.column("reason").to_pylist()
            self._active += table.column("active").to_pylist()
            at += [(number, row) for row in range(table.num_rows)]
        self._at = at
        none = np.empty(0, dtype=np.int64)
        self._starts = np.concatenate([none, *starts])
        self._ends = self._starts + np.concatenate([none, *counts])
        self._ranges_of_all = IdRanges(self._starts, self._ends)
        self._bitmaps = BitmapGroups(self._files, GROUP_ROWS)
        self.deleted_rows = CachedReader(self._read_deleted_rows, bitmap_bytes)

    @property
    def reasons(self) -> list[str]:
        """All reasons of deletions and undeletions, revoked ones too."""
        return sorted(set(self._reason))

    def rows_by_reason(self, first: int, count: int) -> dict[str, BitMap]:
        """For every reason that deletes something in the range of at most 2^32 ids, its rows, relative to `first`."""
        from pyroaring import BitMap

        by_reason: dict[str, BitMap] = {}
        for index in self._overlapping(first, count):
            rows = rows_from(self._rows(index), int(self._starts[index]) - first, count)
            reason = self._reason[index]
            if self._active[index]:
                by_reason[reason] = by_reason.get(reason, BitMap()) | rows
            elif reason in by_reason:
                by_reason[reason] -= rows
        return {reason: rows for reason, rows in by_reason.items() if rows}

    def overlapping(self, first: int, count: int) -> list[Tombstone]:
        """The tombstones whose range overlaps `[first, first + count)`, in the order of their commits."""
        return [
            Tombstone(
                int(self._starts[index]),
                int(self._ends[index] - self._starts[index]),
                self._reason[index],
                self._active[index],
                self._bytes(index),
            )
            for index in self._overlapping(first, count)
        ]

    def locations(self, first: int, count: int) -> list[tuple[int, int]]:
        """Where the tombstones are whose range overlaps `[first, first + count)`: number of the file, and row in it."""
        return [self._at[index] for index in self._overlapping(first, count)]

    def deleted_by_reason(self, first: int, count: int) -> dict[str, BoolArray]:
        """For every reason that deletes something in the range, its mask (count,) bool."""
        return {reason: mask_of(rows, count) for reason, rows in self.rows_by_reason(first, count).items()}

    def deleted_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids of the range are deleted for any reason."""
        return mask_of(self.deleted_rows(first, count), count)

    def count_by_reason(self) -> dict[str, int]:
        """Number of chunks that each reason deletes now; a chunk with two reasons counts in both."""
        counts: dict[str, int] = defaultdict(int)
        for first, end in self.ranges():
            for reason, rows in self.rows_by_reason(first, end - first).items():
                counts[reason] += len(rows)
        return dict(sorted(counts.items()))

    def count_deleted(self) -> int:
        """Number of chunks deleted for any reason."""
        return sum(len(self.deleted_rows(first, end - first)) for first, end in self.ranges())

    def ranges(self) -> list[tuple[int, int]]:
        """The ranges (start, end) that have tombstones, sorted; ranges that overlap are one."""
        return disjoint_ranges(self._starts, self._ends)

    def touches(self, first: int, count: int) -> bool:
        """Whether a tombstone's range overlaps `[first, first + count)`."""
        return bool(self._overlapping(first, count))

    def _read_deleted_rows(self, first: int, count: int) -> BitMap:
        """The rows of the range that are deleted for any reason, relative to `first`; not to be changed."""
        return unite(self.rows_by_reason(first, count).values())

    def _overlapping(self, first: int, count: int) -> list[int]:
        return self._ranges_of_all.overlapping(first, count)

    def _rows(self, index: int) -> BitMap:
        from pyroaring import BitMap

        return BitMap.deserialize(self._bytes(index))

    def _bytes(self, index: int) -> bytes:
        return self._bitmaps.bitmap(*self._at[index])


def disjoint_ranges(starts: Int64Array, ends: Int64Array) -> list[tuple[int, int]]:
    """The union of ranges as sorted, disjoint ranges; ranges that only touch stay apart."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
