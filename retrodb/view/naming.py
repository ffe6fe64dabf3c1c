"""Which rows of a file of a neighbour table name a chunk: the pairs of chunk and row, sorted by chunk.

Every file of a table has a second one with its pairs in this order. The rows that name a few chunks are found in a few row
groups of it. To find out whether a table names something deleted, only ids of ranges where something is deleted are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from retrodb.format.parquet import iterate_row_groups, iterate_row_groups_between, num_rows_of, open_sorted_writer
from retrodb.format.records import ChunkRange
from retrodb.format.schemas import NAMING

if TYPE_CHECKING:
    from retrodb.format.arrays import Int32Array, Int64Array

GROUP_PAIRS = 1 << 15
"""Pairs of a row group: its two columns are about 80 KB, and a file of a full shard with ten neighbours has 320 groups."""

_ID_BITS = 63


def naming_path(table_path: str) -> str:
    """The path of the file with the pairs of a file of a neighbour table."""
    return f"naming/{table_path.partition('/')[2]}"


class NamedPairs:
    """The pairs of chunk and row of a file, 12 bytes each."""

    def __init__(self, span: ChunkRange, most: int) -> None:
        """
        Args:
            span: of the rows, at most 2^31 of them.
            most: number of pairs that are added at most.
        """
        self._span, self._count = span, 0
        self._ids: Int64Array = np.empty(most, dtype=np.int64)
        self._offsets: Int32Array = np.empty(most, dtype=np.int32)

    @staticmethod
    def of_file(path: Path, span: ChunkRange) -> NamedPairs:
        """The pairs of a file of a neighbour table, whose row groups are read one by one. Raises DamagedFileError."""
        pairs = None
        for group in iterate_row_groups(path, ["row", "neighbours"]):
            neighbours = group.column("neighbours").combine_chunks()
            width = neighbours.type.list_size
            pairs = pairs or NamedPairs(span, num_rows_of(path) * width)
            pairs.add(group.column("row").to_numpy(), neighbours.flatten().to_numpy().reshape(-1, width))
        return pairs or NamedPairs(span, 0)

    def add(self, rows_Q: Int64Array, ids_QW: Int64Array) -> None:
        """Add rows, ascending and after those that were added before, with their neighbours; -1 is none."""
        is_chunk = ids_QW >= 0
        end = self._count + int(is_chunk.sum())
        self._ids[self._count : end] = ids_QW[is_chunk]
        offsets = (rows_Q - self._span.first_chunk).astype(np.int32)
        self._offsets[self._count : end] = np.repeat(offsets, is_chunk.sum(axis=1))
        self._count = end

    def write(self, path: Path) -> None:
        """Write the file, schema `schemas.NAMING`. The pairs can be asked for once."""
        with open_sorted_writer(path, NAMING) as writer:
            for group in self.groups():
                writer.write_table(group)

    def groups(self) -> Iterator[pa.Table]:
        """The row groups of the file. The pairs can be asked for once."""
        for ids, rows in self._sorted():
            yield pa.Table.from_arrays([pa.array(ids), pa.array(rows)], schema=NAMING)

    def _sorted(self) -> Iterator[tuple[Int64Array, Int64Array]]:
        """The pairs of each row group: by chunk, and those of a chunk by row."""
        ids, offsets = self._ids[: self._count], self._offsets[: self._count]
        first, starts = self._span.first_chunk, range(0, self._count, GROUP_PAIRS)
        bits = max(1, (self._span.num_chunks - 1).bit_length())
        if int(ids.max(initial=0)) >> (_ID_BITS - bits) == 0:  # both fit into one number, which is sorted in place
            ids <<= bits
            ids |= offsets
            ids.sort()
            for start in starts:
                group = ids[start : start + GROUP_PAIRS]
                yield group >> bits, first + (group & ((1 << bits) - 1))
        else:
            order = np.argsort(ids, kind="stable")
            for start in starts:
                group = order[start : start + GROUP_PAIRS]
                yield ids[group], first + offsets[group].astype(np.int64)


def rows_that_name(path: Path, span: ChunkRange, ids: Int64Array) -> Int64Array:
    """The rows of a file that name one of some chunks, which are ascending. The rows are ascending too, each once.

    Args:
        span: of the file.

    Raises:
        DamagedFileError: for the file.
    """
    is_naming = np.zeros(span.num_chunks, dtype=np.bool_)

    def between(least: int, greatest: int) -> Int64Array:
        return ids[np.searchsorted(ids, least) : np.searchsorted(ids, greatest, side="right")]

    for group in iterate_row_groups_between(path, "neighbour", lambda *bounds: len(between(*bounds)) > 0):
        neighbours: Int64Array = group.column("neighbour").to_numpy()
        rows: Int64Array = group.column("row").to_numpy()
        chosen = between(int(neighbours[0]), int(neighbours[-1]))
        is_naming[rows[np.isin(neighbours, chosen)] - span.first_chunk] = True
    return span.first_chunk + np.flatnonzero(is_naming)


def named_chunks(path: Path, is_wanted: Callable[[int, int], bool]) -> Iterator[Int64Array]:
    """The chunks that a file names, ascending, by row groups; of each, those groups whose first and last chunk are wanted.

    Raises:
        DamagedFileError: for the file.
    """
    for group in iterate_row_groups_between(path, "neighbour", is_wanted, ["neighbour"]):
        yield np.unique(group.column("neighbour").to_numpy())
