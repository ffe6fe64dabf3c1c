"""Which chunks are deleted, and why.

A tombstone deletes some rows for a reason or, by `undelete`, revokes that reason for them. For each row and reason the newest
tombstone applies. A chunk is live when no reason deletes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.rows import deserialize_rows, serialize_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import BoolArray, Int64Array


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

    ordered = sorted(tombstones, key=lambda t: (t.first_chunk, t.reason))
    return pa.Table.from_pylist([t.__dict__ for t in ordered], schema=TOMBSTONES)


class TombstoneSet:
    """All tombstones of a snapshot, read by id range."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._all = [Tombstone(**row) for table in tables for row in table.to_pylist()]
        self._starts = np.array([t.first_chunk for t in self._all], dtype=np.int64)
        self._ends = self._starts + np.array([t.num_chunks for t in self._all], dtype=np.int64)

    @property
    def reasons(self) -> list[str]:
        """All reasons of deletions and undeletions, revoked ones too."""
        return sorted({entry.reason for entry in self._all})

    def overlapping(self, first: int, count: int) -> list[Tombstone]:
        """The tombstones whose range overlaps `[first, first + count)`, in the order of their commits."""
        return [self._all[index] for index in np.flatnonzero((self._starts < first + count) & (self._ends > first))]

    def deleted_by_reason(self, first: int, count: int) -> dict[str, BoolArray]:
        """For every reason that deletes something in the range, its mask (count,) bool."""
        masks: dict[str, BoolArray] = {}
        for entry in self.overlapping(first, count):
            rows = deserialize_rows(entry.rows) + (entry.first_chunk - first)
            mask = masks.setdefault(entry.reason, np.zeros(count, dtype=bool))
            mask[rows[(rows >= 0) & (rows < count)]] = entry.active
        return {reason: mask for reason, mask in masks.items() if mask.any()}

    def deleted_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids of the range are deleted for any reason."""
        mask = np.zeros(count, dtype=bool)
        for by_reason in self.deleted_by_reason(first, count).values():
            mask |= by_reason
        return mask

    def count_by_reason(self) -> dict[str, int]:
        """Number of chunks that each reason deletes now; a chunk with two reasons counts in both."""
        counts: dict[str, int] = defaultdict(int)
        for start, end in disjoint_ranges(self._starts, self._ends):
            for reason, mask in self.deleted_by_reason(start, end - start).items():
                counts[reason] += int(mask.sum())
        return dict(sorted(counts.items()))

    def count_deleted(self) -> int:
        """Number of chunks deleted for any reason."""
        return sum(int(self.deleted_mask(s, e - s).sum()) for s, e in disjoint_ranges(self._starts, self._ends))


def disjoint_ranges(starts: Int64Array, ends: Int64Array) -> list[tuple[int, int]]:
    """The union of ranges as sorted, disjoint ranges; ranges that only touch stay apart."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
