"""Packed rows of an id range: which rows of `[0, n)` a file holds, and the position of each in it.

A file that covers chunk ids `[first_chunk, first_chunk + num_chunks)` holds some of the rows `0 .. num_chunks - 1`,
in ascending order and without gaps; the position of a row in the file is its rank among those present.

A bitmap has rows of 32 bits. Only merged index parts can cover a range that is longer: its bitmap has rows of 64 bits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import MismatchError

if TYPE_CHECKING:
    from pyroaring import BitMap, BitMap64

    from retrodb.format.arrays import BoolArray, Int64Array

MAX_ROWS = (1 << 32) - 1
"""Length of the longest range whose bitmap has rows of 32 bits; the last such number is no row."""


@dataclass(frozen=True)
class RowSet:
    """A set of rows of a range of `num_rows_total` rows."""

    num_rows_total: int  # length of the range
    bitmap: bytes | None = (
        None  # serialised roaring bitmap (portable format), of 64 bits for a long range; None means all rows are present
    )

    @staticmethod
    def all(num_rows_total: int) -> RowSet:
        """Every row of the range."""
        return RowSet(num_rows_total)

    @staticmethod
    def from_mask(mask: BoolArray) -> RowSet:
        """The rows where `mask` (n,) bool is true."""
        if mask.all():
            return RowSet(len(mask))
        return RowSet(len(mask), serialize_rows(np.flatnonzero(mask)))

    @staticmethod
    def from_rows(rows: BitMap, num_rows_total: int) -> RowSet:
        """The rows of a bitmap; equal rows give equal bytes, however the bitmap was made."""
        if len(rows) == num_rows_total:
            return RowSet(num_rows_total)
        return RowSet(num_rows_total, serialize_rows(rows_in(rows)))

    @staticmethod
    def from_present(rows: Int64Array, num_rows_total: int) -> RowSet:
        """Some different rows (m,) int64 of the range."""
        if len(rows) == num_rows_total:
            return RowSet(num_rows_total)
        if num_rows_total <= MAX_ROWS:
            return RowSet(num_rows_total, serialize_rows(rows))
        return RowSet(num_rows_total, _serialize_long(rows))

    @staticmethod
    def from_ascending(blocks: Iterable[Int64Array], num_rows_total: int) -> RowSet:
        """Rows of the range in ascending blocks (b,) int64, which are never in memory together. Equal rows give equal bytes."""
        from pyroaring import BitMap, BitMap64

        if num_rows_total > MAX_ROWS:
            long_rows = BitMap64()
            for block in blocks:
                long_rows |= BitMap64(block.astype(np.uint64))
            long_rows.run_optimize()
            return RowSet(num_rows_total, bytes(long_rows.serialize()))
        rows = BitMap()
        for block in blocks:
            rows |= bitmap_of(block)
        return RowSet(num_rows_total, None if len(rows) == num_rows_total else serialize_bitmap(rows))

    @cached_property
    def present(self) -> Int64Array:
        """The rows that are present, ascending, (m,) int64."""
        if self.bitmap is None:
            return np.arange(self.num_rows_total, dtype=np.int64)
        if self._is_long:
            return np.frombuffer(self._rows.to_array(), dtype=np.uint64).astype(np.int64)
        return deserialize_rows(self.bitmap)

    def __len__(self) -> int:
        return self.num_rows_total if self.bitmap is None else len(self._rows)

    @property
    def max_row(self) -> int:
        """The largest row; -1 in an empty set."""
        if self.bitmap is None:
            return self.num_rows_total - 1
        return self._rows.max() if self._rows else -1

    def first_from(self, row: int) -> int | None:
        """The smallest row that is present and not below a row; None where there is none."""
        row = max(row, 0)
        if row > self.max_row:
            return None
        if self.bitmap is None:
            return row
        rank = self._rows.rank(row - 1) if row else 0
        return int(self._rows[rank])

    def position_from(self, row: int) -> int:
        """The position of the first row that is present and not below a row; the number of rows where there is none."""
        if row <= 0:
            return 0
        return min(row, self.num_rows_total) if self.bitmap is None else int(self._rows.rank(row - 1))

    def windows(self, length: int) -> Iterator[Int64Array]:
        """The rows that are present, ascending, (m,) int64 at a time: those of ranges of a length, without the empty ones."""
        row = self.first_from(0)
        while row is not None:
            yield row + rows_in(self.rows_in(-row, length))
            row = self.first_from(row + length)

    def rows_in(self, offset: int, count: int) -> BitMap:
        """The rows moved by an offset, as far as they are in `[0, count)`; `count` is at most 2^32."""
        if self.bitmap is None:
            return dense_rows(max(offset, 0), max(min(offset + self.num_rows_total, count), 0))
        if not self._is_long:
            return rows_from(self.roaring, offset, count)
        from pyroaring import BitMap64

        window = BitMap64(range(max(-offset, 0), max(count - offset, 0)))
        window &= self._rows  # type: ignore[arg-type]
        rows = np.frombuffer(window.to_array(), dtype=np.uint64).astype(np.int64) + offset
        return bitmap_of(rows)

    @cached_property
    def roaring(self) -> BitMap:
        """The rows that are present, as a bitmap that takes a few bytes where rows are dense or rare.

        Raises:
            ValueError: the range is longer than `MAX_ROWS`. Use `rows_in`.
        """
        if self._is_long:
            raise ValueError(f"a range of {self.num_rows_total} rows has no bitmap of 32 bits")
        return self._rows  # type: ignore[return-value]

    @property
    def _is_long(self) -> bool:
        return self.num_rows_total > MAX_ROWS

    @cached_property
    def _rows(self) -> BitMap | BitMap64:
        from pyroaring import BitMap, BitMap64

        kind = BitMap64 if self._is_long else BitMap
        return kind(range(self.num_rows_total)) if self.bitmap is None else kind.deserialize(self.bitmap)

    @cached_property
    def mask(self) -> BoolArray:
        """(n,) bool, true where a row is present."""
        mask = np.zeros(self.num_rows_total, dtype=bool)
        mask[self.present] = True
        return mask

    def rank(self, rows: Int64Array) -> Int64Array:
        """Position in the file of each row, (q,) int64; -1 where the row is not present."""
        rows = np.asarray(rows, dtype=np.int64)
        if self.bitmap is not None and rows.size <= _FEW_ROWS:
            positions = [self.position(row) for row in rows.ravel().tolist()]
            return np.array(positions, dtype=np.int64).reshape(rows.shape)
        inside = (rows >= 0) & (rows < self.num_rows_total)
        if self.bitmap is None:
            return np.where(inside, rows, -1)
        if not len(self):
            return np.full(rows.shape, -1, dtype=np.int64)
        position = np.searchsorted(self.present, rows)
        is_present = inside & (self.present[np.minimum(position, len(self.present) - 1)] == rows)
        return np.where(is_present, position, -1)

    def position(self, row: int) -> int:
        """Position in the file of one row; -1 where the row is not present."""
        if not 0 <= row < self.num_rows_total:
            return -1
        if self.bitmap is None:
            return row
        rows = self._rows
        return int(rows.rank(row)) - 1 if row in rows else -1

    def select(self, positions: Int64Array) -> Int64Array:
        """The row at each position of the file, (q,) int64: the inverse of `rank`."""
        positions = np.asarray(positions, dtype=np.int64)
        if self.bitmap is None:
            return positions
        if positions.size <= _FEW_ROWS:
            rows = self._rows
            return np.array([rows[at] for at in positions.ravel().tolist()], dtype=np.int64).reshape(positions.shape)
        return self.present[positions]


_FEW_ROWS = 2048  # up to here the bitmap is asked row by row, and no array of all its rows is made


def serialize_rows(rows: Int64Array) -> bytes:
    """A roaring bitmap of the rows, run-optimised, in the portable format.

    Raises:
        MismatchError: a row does not fit into 32 bits, which is all that the format has.
    """
    if len(rows) and not 0 <= rows.min() <= rows.max() < MAX_ROWS:
        raise MismatchError(
            f"the rows {rows.min()} to {rows.max()} are not all within the {MAX_ROWS:,} rows of a bitmap"
        )
    return serialize_bitmap(bitmap_of(rows))


def _serialize_long(rows: Int64Array) -> bytes:
    """As `serialize_rows`, with rows of 64 bits."""
    from pyroaring import BitMap64

    bitmap = BitMap64(np.ascontiguousarray(rows, dtype=np.uint64))
    bitmap.run_optimize()
    return bytes(bitmap.serialize())


def deserialize_rows(data: bytes) -> Int64Array:
    """The rows of a serialised bitmap, ascending, (m,) int64."""
    from pyroaring import BitMap

    return rows_in(BitMap.deserialize(data))


def rows_in(bitmap: BitMap) -> Int64Array:
    """The rows of a bitmap, ascending, (m,) int64."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32).astype(np.int64)


def serialize_bitmap(bitmap: BitMap) -> bytes:
    """The portable bytes of a bitmap, after run optimisation so that equal sets give equal bytes."""
    bitmap.run_optimize()
    return bytes(bitmap.serialize())


def bitmap_of(rows: Int64Array) -> BitMap:
    """The bitmap of some rows (m,), each from 0 to 2^32 - 1."""
    from pyroaring import BitMap

    # An array of the standard library is read ten times as fast as one of numpy, which is asked number by number.
    return BitMap(array("I", np.ascontiguousarray(rows, dtype=np.uint32).tobytes()))


def mask_of(rows: BitMap, count: int) -> BoolArray:
    """(count,) bool: true for the rows of a bitmap."""
    mask = np.zeros(count, dtype=bool)
    mask[np.frombuffer(rows.to_array(), dtype=np.uint32)] = True
    return mask


def is_in(rows: BitMap, asked: Int64Array, count: int) -> BoolArray:
    """(Q,) bool: which of some rows below `count` a bitmap has."""
    if not rows:
        return np.zeros(len(asked), dtype=bool)
    if len(asked) <= _FEW_ROWS:
        return np.array([row in rows for row in asked.tolist()], dtype=bool)
    return mask_of(rows, count)[asked]


def rows_from(rows: BitMap, offset: int, count: int) -> BitMap:
    """The rows moved by an offset, as far as they are in `[0, count)`.

    Raises:
        ValueError: `count` is larger than 2^32.
    """
    if count > _ALL_ROWS:
        raise ValueError(f"a range of {count} ids has rows that a bitmap cannot have")
    moved = rows.shift(offset)
    moved.remove_range(count, _ALL_ROWS)
    return moved


def dense_rows(start: int, end: int) -> BitMap:
    """The rows in `[start, end)`. Raises ValueError when `end` is larger than 2^32."""
    from pyroaring import BitMap

    if end > _ALL_ROWS:
        raise ValueError(f"row {end - 1} is one that a bitmap cannot have")
    return BitMap(range(start, end))


def unite(parts: Iterable[BitMap]) -> BitMap:
    """All rows that some of the bitmaps have."""
    from pyroaring import BitMap

    given = list(parts)
    return BitMap.union(*given) if given else BitMap()


def bitmap_bytes(rows: BitMap) -> int:
    """Memory of a bitmap in bytes."""
    sizes = rows.get_statistics()
    return sizes["n_bytes_array_containers"] + sizes["n_bytes_run_containers"] + sizes["n_bytes_bitset_containers"]


_ALL_ROWS = 1 << 32  # one past the largest row that a bitmap can have
