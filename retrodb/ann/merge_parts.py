"""Parts merged list by list: the rows keep their lists and codes, so nothing is trained, assigned or encoded again.

The rows of every list are in ascending order, as `build_part` writes them. So a merged part is bit for bit the one that a
single build of its rows gives. All arrays are read and written in blocks, so that memory does not grow with the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from retrodb.ann.part import Part, PartMeta, create_store, finish_part
from retrodb.ann.search_codes import store_search_codes
from retrodb.errors import MismatchError
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.part_files import LISTS_FILE, ORDER_FILE, SEARCH_CODES_FILE
from retrodb.store.verified_array import VerifiedArray

BLOCK_ROWS = (
    16_384  # copied at once: 16,384 * 384 dimensions * (1 byte of codes + 4 bytes of a vector of `Flat`) = 31 MB
)
_LEAST_ROWS = 256  # of a part that are looked at together
_LIST_ORDER_CODES = "list_codes.npy"  # while parts are merged: search codes that are not packed yet


def merge_parts(parts: Sequence[Part], merged_rows: Sequence[Int64Array], folder: Path) -> PartMeta:
    """Writes rows of parts as one part into an existing, empty folder. Memory: some blocks of rows.

    Args:
        merged_rows: for every row of each part its row in the merged one, -1 to drop it; ascending within a part, and
            all together 0 .. N - 1. The arrays may be mapped.

    Raises:
        MismatchError: the parts are of different codebooks.
    """
    first = parts[0].meta
    if any(part.meta.codebook != first.codebook for part in parts):
        raise MismatchError("parts of different codebooks cannot be merged", remedy="Run 'retrodb index --retrain'")
    num_rows = sum(
        int((rows[start : start + BLOCK_ROWS] >= 0).sum())
        for rows in merged_rows
        for start in range(0, len(rows), BLOCK_ROWS)
    )
    form = parts[0].search_codes.form
    meta = PartMeta(num_rows, first.dim, first.metric, first.num_lists, first.codebook)
    _merge_lists_of_rows(parts, merged_rows, folder, num_rows)
    order_N = open_memmap(folder / ORDER_FILE, mode="w+", dtype=np.int64, shape=(num_rows,))
    codes_ND, scales_N2 = create_store(folder, meta)
    path = folder / (_LIST_ORDER_CODES if form.is_packed else SEARCH_CODES_FILE)
    search_codes = open_memmap(path, mode="w+", dtype=form.value_dtype, shape=(num_rows, form.width))
    filled, sizes = (
        [np.empty(0, np.int32)],
        [np.empty(0, np.int64)],
    )  # a list may be the last of a block and the first of the next
    start = 0
    for block in rows_by_list(parts, merged_rows):
        target = slice(start, start := start + len(block.lists_B))
        order_N[target] = block.rows_B
        codes_ND[target] = block.gather([part.codes_ND for part in parts])
        scales_N2[target] = block.gather([part.scales_N2 for part in parts])
        search_codes[target] = block.search_codes(parts)
        lists, counts = np.unique(block.lists_B, return_counts=True)
        filled.append(lists.astype(np.int32))
        sizes.append(counts.astype(np.int64))
    filled_M, offsets_M1 = _lists(np.concatenate(filled), np.concatenate(sizes))
    if form.is_packed:
        store_search_codes(folder / SEARCH_CODES_FILE, form, offsets_M1, search_codes)
        path.unlink()
    finish_part(folder, meta, filled_M, offsets_M1, parts[0].centre_D)
    return meta


def _lists(filled: AnyArray, sizes: Int64Array) -> tuple[AnyArray, Int64Array]:
    """The lists, and where each begins, from ascending lists of which some are there several times."""
    filled_M, first = np.unique(filled, return_index=True)
    sizes_M = np.add.reduceat(sizes, first) if len(first) else sizes
    return filled_M, np.concatenate([[0], np.cumsum(sizes_M)]).astype(np.int64)


def _merge_lists_of_rows(parts: Sequence[Part], merged_rows: Sequence[Int64Array], folder: Path, num_rows: int) -> None:
    """Write the list of each row, in the order of the rows."""
    merged = open_memmap(folder / LISTS_FILE, mode="w+", dtype=np.int32, shape=(num_rows,))
    for part, target_N in zip(parts, merged_rows, strict=True):
        for start in range(0, len(target_N), BLOCK_ROWS):
            target_B = target_N[start : start + BLOCK_ROWS]
            merged[target_B[target_B >= 0]] = part.lists_N[start : start + BLOCK_ROWS][target_B >= 0]


@dataclass(frozen=True)
class _SearchRows:
    """The search codes of a part by position."""

    part: Part

    def __getitem__(self, positions: Int64Array) -> AnyArray:
        return self.part.search_codes.rows(positions)


@dataclass(frozen=True)
class MergedBlock:
    """The next rows of a merged part, by list and row."""

    lists_B: Int64Array
    rows_B: Int64Array
    positions: Sequence[Int64Array]  # of each part, ascending
    order_B: Int64Array  # of the rows of one part after the other

    def gather(self, arrays: Sequence[VerifiedArray | _SearchRows]) -> AnyArray:
        """The values of these rows from an array of each part."""
        pairs = zip(arrays, self.positions, strict=True)
        values = [array[positions] for array, positions in pairs if len(positions)]
        rows: AnyArray = np.concatenate(values)[self.order_B]
        return rows

    def search_codes(self, parts: Sequence[Part]) -> AnyArray:
        """The search codes (n, B) of these rows, or their vectors (n, D) where these are the search codes."""
        return self.gather([_SearchRows(part) for part in parts])


class _Cursor:
    """Reads the rows of some lists of a part that are kept, by list and row."""

    def __init__(self, part: Part, merged_rows: Int64Array, span: tuple[int, int]) -> None:
        """
        Args:
            span: positions of the lists' rows, the first and one past the last.
        """
        self._part, self._merged_rows = part, merged_rows
        self._next, self._end = span
        self.positions_B = self.lists_B = self.rows_B = np.empty(0, np.int64)

    @property
    def is_at_end(self) -> bool:
        """Whether no row is left but those that were read."""
        return self._next >= self._end

    def fill(self, count: int) -> None:
        """Read that many rows, and more if none of them is kept, unless some are left or all were read."""
        while not len(self.rows_B) and not self.is_at_end:
            positions = np.arange(self._next, min(self._next + count, self._end))
            self._next += len(positions)
            rows = self._merged_rows[self._part.order_N[positions[0] : positions[-1] + 1]]
            self.positions_B, self.rows_B = positions[rows >= 0], rows[rows >= 0]
            self.lists_B = self._part.list_of(self.positions_B)

    def take(self, last_row: int | None) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Positions, lists and rows, of a single list up to a row; None: all that were read."""
        count = len(self.rows_B) if last_row is None else int(np.searchsorted(self.rows_B, last_row, side="right"))
        taken = self.positions_B[:count], self.lists_B[:count], self.rows_B[:count]
        self.positions_B, self.lists_B, self.rows_B = (
            array[count:] for array in (self.positions_B, self.lists_B, self.rows_B)
        )
        return taken


def rows_by_list(parts: Sequence[Part], merged_rows: Sequence[Int64Array]) -> Iterator[MergedBlock]:
    """All kept rows of the parts by (list, merged row), in blocks of at most `BLOCK_ROWS` rows, or 256 of each part.

    Args:
        merged_rows: for every row of each part a number, -1 to leave it out; ascending within a part, and distinct.
    """
    for first_list, end_list, num_rows in _groups_of_lists(parts):
        cursors = [
            _Cursor(part, rows, part.span_of_lists(first_list, end_list))
            for part, rows in zip(parts, merged_rows, strict=True)
        ]
        count = BLOCK_ROWS if num_rows <= BLOCK_ROWS else _LEAST_ROWS
        while True:
            for cursor in cursors:
                cursor.fill(count)
            reading, last_row = _next_to_take(cursors)
            if not reading:
                break
            # The parts of a database rarely have ids of the same range: then one is read at a time, in large blocks.
            count = max(BLOCK_ROWS // len(reading), _LEAST_ROWS)
            taken = [c.take(last_row) if c in reading else _NOTHING for c in cursors]
            positions, lists, rows = zip(*taken, strict=True)
            lists_B, rows_B = np.concatenate(lists), np.concatenate(rows)
            order_B = np.lexsort((rows_B, lists_B))
            yield MergedBlock(lists_B[order_B], rows_B[order_B], positions, order_B)


_NOTHING = (np.empty(0, np.int64),) * 3


def _groups_of_lists(parts: Sequence[Part]) -> Iterator[tuple[int, int, int]]:
    """Consecutive lists with at most `BLOCK_ROWS` rows of all parts together, or one list: first, end, and rows."""
    sizes_L = np.zeros(parts[0].meta.num_lists, np.int64)
    for part in parts:
        sizes_L[part.filled_M] += np.diff(part.offsets_M1)
    ends_L = np.cumsum(sizes_L)
    first, before = 0, 0
    while first < len(ends_L):
        end = max(first + 1, int(np.searchsorted(ends_L, before + BLOCK_ROWS, side="right")))
        num_rows = int(ends_L[end - 1]) - before
        if num_rows:
            yield first, end, num_rows
        first, before = end, int(ends_L[end - 1])


def _next_to_take(cursors: Sequence[_Cursor]) -> tuple[set[_Cursor], int | None]:
    """The cursors that have the next rows of all, and the last of these rows; None: all that were read.

    What a part has not read yet comes after what it has. So up to the least last row of those nothing is missing.
    """
    reading, last_row = set[_Cursor](), None
    for cursor in sorted((c for c in cursors if len(c.rows_B)), key=lambda c: int(c.rows_B[0])):
        if last_row is not None and cursor.rows_B[0] > last_row:
            break
        reading.add(cursor)
        if not cursor.is_at_end:
            end = int(cursor.rows_B[-1])
            last_row = end if last_row is None else min(last_row, end)
    return reading, last_row
