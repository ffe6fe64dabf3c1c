"""What the rows of a neighbour table were compared with: a repair takes from it what is new to them.

The live masks of two snapshots would give the same only while both can be read; these two sets of ids stay with the table. A
table without them was compared with nothing. They are stored by ranges of ids, and the rows of a range are read when it is
asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retrodb.format.parquet import open_writer, read_table
from retrodb.format.records import ChunkRange
from retrodb.format.rows import rows_from, serialize_rows, unite
from retrodb.view.bitmap_groups import BitmapGroups
from retrodb.view.id_ranges import IdRanges
from retrodb.view.view import View

if TYPE_CHECKING:
    from pyroaring import BitMap

DATABASE, QUERIES = "database", "queries"
"""The two sides: chunks that can be neighbours, and rows of the query set."""

LISTS = "lists"
"""In place of a side: the inverted lists that have chunks for a restricted table, by their numbers."""

GROUP_ROWS = 16
"""Ranges of a row group: the rows of one are read with those of its group, each at most 128 KiB for a shard."""


@dataclass(frozen=True)
class ComparedRange:
    """The compared ids of one side and one range."""

    side: str
    span: ChunkRange
    state: str  # digest of what decided which ids these are, "" where it is not known
    num_rows: int
    rows: bytes  # roaring bitmap of rows relative to the start of the range

    @staticmethod
    def of(side: str, span: ChunkRange, rows: BitMap, state: str = "") -> ComparedRange:
        """Equal rows give equal bytes, however the bitmap was made."""
        from pyroaring import BitMap

        own = np.frombuffer(BitMap(rows).to_array(), dtype=np.uint32)
        return ComparedRange(side, span, state, len(own), serialize_rows(own.astype(np.int64)))


class StoredRange(NamedTuple):
    """What a file says of a range without its bitmap."""

    side: str
    span: ChunkRange
    file: int  # its number
    row: int  # in the file
    state: str
    num_rows: int


class ComparedSets:
    """Two sets of ids: each of these rows was compared with each of these chunks."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = list(files)
        self._at: dict[str, list[StoredRange]] = {DATABASE: [], QUERIES: [], LISTS: []}
        for number, path in enumerate(self._files):
            # A row for each shard and side, and one for the lists of a restricted table: at most 512 in a file, and 30,001 in all
            # files of a table of 1e10 chunks in 15,000 shards.
            table = read_table(path, ("side", "first_chunk", "num_chunks", "state", "num_rows"))
            sides: list[str] = table.column("side").to_pylist()
            first_chunks: list[int] = table.column("first_chunk").to_pylist()
            counts: list[int] = table.column("num_chunks").to_pylist()
            states: list[str] = table.column("state").to_pylist()
            sizes: list[int] = table.column("num_rows").to_pylist()
            columns = zip(sides, map(ChunkRange, first_chunks, counts), states, sizes, strict=True)
            for row, (side, span, state, size) in enumerate(columns):
                self._at[side].append(StoredRange(side, span, number, row, state, size))
        self._ranges = {}
        for side, ranges in self._at.items():
            ranges.sort()
            first_and_count = np.array([stored.span for stored in ranges], dtype=np.int64).reshape(-1, 2)
            self._ranges[side] = IdRanges(first_and_count[:, 0], first_and_count.sum(axis=1))
        self._bitmaps = BitmapGroups(self._files, GROUP_ROWS)

    @staticmethod
    def read(view: View, table: str) -> ComparedSets:
        """Those of a table; empty where it has none."""
        return ComparedSets(view.files.open(record) for record in view.manifest.files("joined", table))

    def ranges(self, side: str) -> list[ChunkRange]:
        """The ranges of a side, ascending."""
        return [stored.span for stored in self._at[side]]

    def stored(self, side: str) -> list[StoredRange]:
        """What is stored of the ranges of a side, ascending. No bitmap is read."""
        return self._at[side]

    def rows(self, side: str, first: int, count: int) -> BitMap:
        """The ids of a side in a range of at most 2^32 ids, relative to `first`."""
        return unite(
            rows_from(self._rows(side, index), self._at[side][index].span.first_chunk - first, count)
            for index in self._ranges[side].overlapping(first, count)
        )

    def _rows(self, side: str, index: int) -> BitMap:
        from pyroaring import BitMap

        stored = self._at[side][index]
        return BitMap.deserialize(self._bitmaps.bitmap(stored.file, stored.row))


def write_compared(path: Path, ranges: Iterable[ComparedRange]) -> None:
    """Write a file of compared sets, schema `schemas.JOINED`. Some ranges at a time are in memory."""
    import pyarrow as pa

    from retrodb.format.schemas import JOINED

    with open_writer(path, JOINED) as writer:
        remaining = iter(ranges)
        while group := list(islice(remaining, GROUP_ROWS)):
            rows = [
                {
                    "side": of_range.side,
                    "first_chunk": of_range.span.first_chunk,
                    "num_chunks": of_range.span.num_chunks,
                    "state": of_range.state,
                    "num_rows": of_range.num_rows,
                    "rows": of_range.rows,
                }
                for of_range in group
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=JOINED), row_group_size=GROUP_ROWS)


def with_gaps(now: Sequence[ChunkRange], before: Sequence[ChunkRange]) -> list[ChunkRange]:
    """The ranges of now, and what other ranges have outside of them. Neither list has ranges that overlap."""
    spans, ordered, number = list(now), sorted(now), 0
    for span in sorted(before):
        start = span.first_chunk
        while number < len(ordered) and ordered[number].end <= start:
            number += 1
        inside = number
        while inside < len(ordered) and ordered[inside].first_chunk < span.end:
            if start < ordered[inside].first_chunk:
                spans.append(ChunkRange(start, ordered[inside].first_chunk - start))
            start = max(start, ordered[inside].end)
            inside += 1
        if start < span.end:
            spans.append(ChunkRange(start, span.end - start))
    return sorted(spans)
