"""Neighbour tables as of a snapshot: a base, the patches of repairs, edits by hand, and deletions since."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import MissingFileError, MissingStep
from retrodb.format import ROW_GROUP_ROWS
from retrodb.format.entries import Metric, SpaceEntry, TableEntry
from retrodb.format.parquet import read_row_groups, read_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.scores import Measure, measure_of, scores
from retrodb.store.bounded_cache import CachedReader
from retrodb.view.coverage import Coverage
from retrodb.view.edits import Edits
from retrodb.view.naming import named_chunks, naming_path, rows_that_name
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Float32Array, Int64Array

_BLOCK_ROWS = 1 << 16
_SPAN_ROWS = 1 << 20  # as many as a shard


class NeighbourTable:
    """A neighbour table read through a snapshot: deleted neighbours are masked.

    Raises:
        MissingStep: when there is no such table.
    """

    def __init__(self, view: View, table: str | None = None) -> None:
        tables = view.snapshot.names(TableEntry)
        name = table or (SELF if SELF in tables else next(iter(tables), SELF))
        entry = view.snapshot.entry(TableEntry, name)
        if entry is None:
            have = f"There are: {', '.join(tables)}." if tables else "Run 'retrodb neighbours' first."
            raise MissingStep(f"no neighbour table '{name}'", remedy=have)
        self.view, self.name, self.entry = view, name, entry
        self.k: int = entry.k
        self.width: int = entry.k + entry.spare_neighbours
        self.query_set: str = entry.queries
        self.files = view.manifest.files("neighbours", name)  # the base, then its patches
        self.edits = Edits.read(view, name)
        self._coverage = Coverage(self.files, view.files, newest_first=True)
        self._content = CachedReader(self._read, lambda content: sum(array.nbytes for array in content))
        self._bounds = CachedReader(self._read_bounds, lambda bounds: bounds.nbytes)

    def read(self, rows: Int64Array) -> tuple[Int64Array, Float32Array]:
        """The first k live neighbours of query rows: ids (Q, k) int64, -1 for none, and distances (Q, k), inf for none.

        Smaller distances are nearer, whatever the metric is: that of an inner product is its negative. `read_scores` gives the
        numbers that commands and exports show.
        """
        return live_first(self.view, *self.edits.apply(rows, *self.stored(rows)), self.k)

    def read_scores(self, rows: Int64Array) -> tuple[Int64Array, Float32Array]:
        """The first k live neighbours of query rows: ids (Q, k) int64, -1 for none, and scores (Q, k), see `measure`."""
        ids, distances = self.read(rows)
        return ids, scores(distances, self.metric)

    @property
    def metric(self) -> Metric:
        """The metric of the table's space."""
        return self.view.snapshot.existing(SpaceEntry, self.entry.space).metric

    @property
    def measure(self) -> Measure:
        """What the scores are: "similarity" (greater is nearer) or "squared_distance" (smaller is nearer)."""
        return measure_of(self.metric)

    def stored(self, rows: Int64Array) -> tuple[Int64Array, Float32Array]:
        """What the files say of query rows, (Q, width) each: no edits, nothing masked; -1 and inf for unknown rows."""
        ids = np.full((len(rows), self.width), -1, dtype=np.int64)
        distances = np.full((len(rows), self.width), np.inf, dtype=np.float32)
        for hit in self._coverage.lookup(rows):
            ids[hit.where], distances[hit.where] = self._stored(hit.record, hit.positions)
        return ids, distances

    def bounds(self, rows: Int64Array) -> Float32Array:
        """(Q,) the last stored distance of query rows; infinity for unknown rows. No neighbours are read."""
        bounds = np.full(len(rows), np.inf, dtype=np.float32)
        for hit in self._coverage.lookup(rows):
            bounds[hit.where] = self._bounds(hit.record)[hit.positions]
        return bounds

    def bounds_in(self, first: int, count: int) -> Float32Array:
        """(count,) float32: the bounds of the rows of one range of ids; infinity where the table has no row."""
        bounds = np.full(count, np.inf, dtype=np.float32)
        for record in reversed(self._coverage.overlapping(first, count)):  # what a later file says counts
            rows = record.first_chunk - first + self.view.files.rows(record).present
            low, high = np.searchsorted(rows, [0, count])
            bounds[rows[low:high]] = self._bounds(record)[low:high]
        return bounds

    def rows_that_name(self, ids: Int64Array, first: int, count: int) -> Int64Array:
        """The rows of one range of ids, live or not, whose stored list has one of some chunks. Both are ascending.

        Raises:
            DamagedFileError: for a file.
            MissingFileError: a file of the table has none that says which of its rows name a chunk.
        """
        by_file, named = {}, [np.empty(0, dtype=np.int64)]
        for record in self._coverage.overlapping(first, count):
            rows = rows_that_name(self._naming_file(record), record.span, ids)
            by_file[record.path] = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + count)]
        rows = np.unique(np.concatenate([*named, *by_file.values()]))
        for hit in self._coverage.lookup(rows):  # in the newest file of each row
            named.append(np.intersect1d(rows[hit.where], by_file[hit.record.path], assume_unique=True))
        return np.sort(np.concatenate(named))

    def named_chunks(self, first: int, count: int, is_wanted: Callable[[int, int], bool]) -> Iterator[Int64Array]:
        """Chunks that the files of one range of ids name, also in rows that a later file has; groups as `naming.named_chunks`.

        Raises as `rows_that_name`.
        """
        for record in self._coverage.overlapping(first, count):
            yield from named_chunks(self._naming_file(record), is_wanted)

    def _naming_file(self, record: FileRecord) -> Path:
        path = naming_path(record.path)
        if path not in self._naming:
            remedy = f"Compute the table again: 'retrodb neighbours --table {self.name}'."
            raise MissingFileError("the snapshot does not name this file", where=path, remedy=remedy)
        return self.view.files.open(self._naming[path])

    @cached_property
    def _naming(self) -> dict[str, FileRecord]:
        """By path, the files that say which rows name a chunk."""
        return {record.path: record for record in self.view.manifest.files("naming", self.name)}

    def files_of(self, first: int, count: int) -> Sequence[FileRecord]:
        """The files with rows of one range of ids."""
        return self._coverage.overlapping(first, count)

    def spans(self) -> list[ChunkRange]:
        """Ranges of at most `_SPAN_ROWS` ids that hold all rows of the table, ascending: they follow from the files' records."""
        spans: list[ChunkRange] = []
        end = 0  # of the last span
        for record in sorted(self.files, key=lambda record: record.first_chunk):
            for first in range(max(end, record.first_chunk), record.span.end, _SPAN_ROWS):
                spans.append(ChunkRange(first, min(_SPAN_ROWS, record.span.end - first)))
            end = max(end, record.span.end)
        return spans

    def rows_in(self, first: int, count: int) -> Int64Array:
        """The live rows of the table in one range of ids, ascending."""
        rows = self.all_rows_in(first, count)
        return rows[self.view.query_set(self.query_set).is_live(rows)]

    def blocks(self) -> Iterator[Int64Array]:
        """The live rows of the table, ascending, in blocks of at most `_BLOCK_ROWS`: none has all of them."""
        return (block for span in self.spans() for block in self.blocks_in(*span))

    def blocks_in(self, first: int, count: int) -> Iterator[Int64Array]:
        """The same for one range of ids."""
        return _blocks(self.rows_in(first, count))

    def has_row(self, row: int) -> bool:
        """Whether the table has a row, and it is live."""
        return len(self.rows_in(row, 1)) > 0

    def num_rows(self) -> int:
        """The number of live rows: of the database's own chunks from the counts of shards, of others from row bitmaps."""
        if self.query_set == SELF:
            return int(self.view.manifest.num_covered("neighbours", self.name).sum())
        queries = self.view.query_set(self.query_set)
        return sum(
            len(self._coverage.covered_rows(*record.span) & queries.live_rows(*record.span))
            for record in queries.ranges
        )

    def rows(self) -> Int64Array:
        """The live rows of the table, ascending, all in one array: for tables that fit into memory."""
        return np.concatenate([np.empty(0, np.int64), *self.blocks()])

    def written(self, rows: Int64Array) -> Int64Array:
        """(Q, k) int64: the first k neighbours of query rows, as they were written, with those deleted since; -1 for none."""
        return self.edits.apply(rows, *self.stored(rows))[0][:, : self.k]

    def num_short(self) -> int:
        """Live rows with fewer than k live neighbours. Reads the whole table, one block of rows after the other."""
        return sum(int((self.read(block)[0][:, -1] < 0).sum()) for block in self.blocks())

    def all_rows(self) -> Int64Array:
        """The rows of the table, live or not, ascending, all in one array."""
        return np.concatenate([np.empty(0, np.int64), *(self.all_rows_in(*span) for span in self.spans())])

    def num_rows_in(self, first: int, count: int) -> int:
        """The number of rows of the table in one range of ids, live or not, from row bitmaps."""
        return len(self._coverage.covered_rows(first, count))

    def all_rows_in(self, first: int, count: int) -> Int64Array:
        """The rows of the table in one range of ids, live or not, ascending."""
        return first + np.flatnonzero(self._coverage.covered_mask(first, count))

    def _stored(self, record: FileRecord, positions: Int64Array) -> tuple[Int64Array, Float32Array]:
        """The neighbours and distances at some positions of a file, of which few row groups are read for few positions."""
        groups, numbers = np.unique(positions // ROW_GROUP_ROWS, return_inverse=True)
        if 2 * ROW_GROUP_ROWS * len(groups) > record.num_rows:
            ids, distances = self._content(record)
            return ids[positions], distances[positions]
        path = self.view.files.open(record)
        ids, distances = _lists_of(read_row_groups(path, groups.tolist(), ("neighbours", "distances")))
        rows = numbers * ROW_GROUP_ROWS + positions % ROW_GROUP_ROWS
        return ids[rows], distances[rows]

    def _read(self, record: FileRecord) -> tuple[Int64Array, Float32Array]:
        return _lists_of(read_table(self.view.files.open(record), ("neighbours", "distances")))

    def _read_bounds(self, record: FileRecord) -> Float32Array:
        bounds: Float32Array = read_table(self.view.files.open(record), ["bound"]).column("bound").to_numpy()
        return bounds


def _lists_of(content: pa.Table) -> tuple[Int64Array, Float32Array]:
    """The neighbours (n, w) and distances (n, w) of the rows of a table file."""
    lists = (content.column(name).combine_chunks().flatten().to_numpy() for name in ("neighbours", "distances"))
    ids, distances = (column.reshape(content.num_rows, -1) for column in lists)
    return ids, distances


def _blocks(rows: Int64Array) -> Iterator[Int64Array]:
    return (rows[start : start + _BLOCK_ROWS] for start in range(0, len(rows), _BLOCK_ROWS))


def live_first(view: View, ids: Int64Array, distances: Float32Array, k: int) -> tuple[Int64Array, Float32Array]:
    """The first k live neighbours of each row (Q, w), in their order; -1 and inf fill up."""
    live = view.chunks.is_live(ids.ravel()).reshape(ids.shape)
    order = np.argsort(~live, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(live, order, axis=1)
    return (
        np.where(kept, np.take_along_axis(ids, order, axis=1), -1),
        np.where(kept, np.take_along_axis(distances, order, axis=1), np.float32(np.inf)),
    )
