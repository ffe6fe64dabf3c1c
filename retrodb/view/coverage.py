"""From chunk ids to the files that hold them.

Ids are cut into the ranges of files by binary searches. Only a few ids are found one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet, dense_rows, mask_of, unite
from retrodb.store.bounded_cache import CachedReader
from retrodb.view.id_ranges import IdRanges

if TYPE_CHECKING:
    from pyroaring import BitMap

    from retrodb.format.arrays import BoolArray, Int64Array
    from retrodb.store.verify import VerifiedFiles


class Hit(NamedTuple):
    """The part of a batch of ids that one file holds."""

    record: FileRecord
    where: Int64Array  # (h,) indices in the batch
    rows: Int64Array  # (h,) rows of the file's range
    positions: Int64Array  # (h,) positions in the file


class Coverage:
    """The files of one kind, found by id.

    Args:
        records: in the order of their commits.
        files: reads their row bitmaps.
        newest_first: where two files hold the same row, the one committed last is read; otherwise both hold the same.
    """

    def __init__(self, records: Sequence[FileRecord], files: VerifiedFiles, *, newest_first: bool = False) -> None:
        by_range = sorted(records, key=lambda record: record.first_chunk)
        self.records = list(reversed(records)) if newest_first else by_range  # in the order of lookup
        self._starts = np.array([r.first_chunk for r in self.records], dtype=np.int64)
        self._ends = self._starts + np.array([r.num_chunks for r in self.records], dtype=np.int64)
        self._ranges = IdRanges(self._starts, self._ends)
        self.is_disjoint = bool((self._starts[1:] >= self._ends[:-1]).all())  # and then ascending
        self._row_set = CachedReader(lambda index: files.rows(self.records[index]), _row_set_bytes)

    def lookup(self, ids: Int64Array) -> Iterator[Hit]:
        """The files that hold the ids; ids that none holds, and -1, are in no hit."""
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        is_found = np.zeros(len(ids), dtype=bool)
        near = self._near(ascending)
        bounds = np.searchsorted(ascending, self._starts[near]), np.searchsorted(ascending, self._ends[near])
        for index, low, high in zip(near, *(bound.tolist() for bound in bounds), strict=True):
            if low == high:
                continue
            record = self.records[index]
            where = order[low:high]
            where = where[~is_found[where]]
            rows = ids[where] - record.first_chunk
            positions = self._row_set(index).rank(rows)
            is_held = positions >= 0
            if is_held.any():
                is_found[where[is_held]] = True
                yield Hit(record, where[is_held], rows[is_held], positions[is_held])

    def _near(self, ascending: Int64Array) -> list[int]:
        """The numbers of the files from the least id to the greatest, in the order of lookup. Negative ids are in none."""
        first = int(np.searchsorted(ascending, 0))
        if first == len(ascending):
            return []
        return self._ranges.overlapping(int(ascending[first]), int(ascending[-1] - ascending[first]) + 1)

    def find_each(self, ids: Int64Array) -> list[tuple[int, FileRecord, int]]:
        """Each id that a file holds: its index in the batch, the file, and the position there. For few ids, of many files.

        `lookup` takes longer for a file than this for an id.

        Raises:
            ValueError: ranges of files overlap, see `is_disjoint`.
        """
        if not self.is_disjoint:
            raise ValueError("ids are looked up one by one only where the ranges of files are disjoint")
        found = []
        indices = (np.searchsorted(self._starts, ids, side="right") - 1).tolist()
        for where, (id_, index) in enumerate(zip(ids.tolist(), indices, strict=True)):
            if index >= 0:
                record = self.records[index]
                if (position := self._row_set(index).position(id_ - record.first_chunk)) >= 0:
                    found.append((where, record, position))
        return found

    def overlapping(self, first: int, count: int) -> list[FileRecord]:
        """The files whose range overlaps `[first, first + count)`."""
        return [self.records[index] for index in self._ranges.overlapping(first, count)]

    def covered_mask(self, first: int, count: int) -> BoolArray:
        """(count,) bool: which ids of the range some file holds."""
        return mask_of(self.covered_rows(first, count), count)

    def covered_rows(self, first: int, count: int) -> BitMap:
        """The rows of a range of at most 2^32 ids that some file holds, relative to `first`."""
        parts = []
        for index in self._ranges.overlapping(first, count):
            start, end = int(self._starts[index]) - first, int(self._ends[index]) - first
            if self.records[index].rows is None:  # an entry of the cache is for a file with a bitmap
                parts.append(dense_rows(max(start, 0), min(end, count)))
            else:
                parts.append(self._row_set(index).rows_in(start, count))
        return unite(parts)


def _row_set_bytes(rows: RowSet) -> int:
    """Memory of a row set in bytes, once all of its rows were asked for as numbers."""
    return 0 if rows.bitmap is None else len(rows.bitmap) + 8 * len(rows)
