"""Exclusion: what a query must not find, decided inside the search.

A query row carries intervals of ids: the chunks of a document have consecutive ids, so an interval is a document, such as its
own, or one of its training sequence. A database row needs nothing for them. In addition a query row carries keys by named
kind (`content`: hashes of equal texts; `cluster`: near-duplicates), and a database row one key of each kind. The row is no
candidate when its id is in an interval of the query, or any of its keys is among the query's keys of that kind. Keys have 64
bits and are compared bit by bit (uint64 hashes are viewed as int64). The key -1 means "none" and matches nothing.

Legend: Q queries, J kinds of keys, M keys or I intervals of all queries together, N database rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from retrodb.errors import MismatchError
from retrodb.format.arrays import BoolArray, Int64Array, UInt64Array

NO_KEY = -1
ExclusionKeys: TypeAlias = Int64Array | UInt64Array


class QueryKeys(NamedTuple):
    """The exclusion of query rows as the kernels read it.

    Row q has the keys `keys_M[offsets_JQ1[kind, q]:offsets_JQ1[kind, q + 1]]` of a kind, and the intervals
    `bounds_I2[bound_offsets_Q1[q]:bound_offsets_Q1[q + 1]]`.
    """

    offsets_JQ1: Int64Array
    keys_M: Int64Array
    bound_offsets_Q1: Int64Array
    bounds_I2: Int64Array  # first id, and one past the last


@dataclass(frozen=True)
class Ragged:
    """Any number of keys a row: row q has `keys[offsets[q]:offsets[q + 1]]`."""

    keys: ExclusionKeys
    offsets: Int64Array  # (Q + 1,)


@dataclass(frozen=True)
class Intervals:
    """Any number of intervals of ids a row: row q has `bounds_I2[offsets[q]:offsets[q + 1]]`."""

    bounds_I2: Int64Array  # first id, and one past the last
    offsets: Int64Array  # (Q + 1,)

    @classmethod
    def none(cls, num_queries: int) -> Intervals:
        """No interval for any row."""
        return cls(np.empty((0, 2), np.int64), np.zeros(num_queries + 1, np.int64))


@dataclass(frozen=True)
class Exclusion:
    """The intervals and keys of Q query rows, the keys of all kinds in one flat array."""

    kinds: tuple[str, ...]
    num_queries: int
    keys_M: Int64Array
    offsets_JQ1: Int64Array  # positions in keys_M
    intervals: Intervals

    @classmethod
    def of(cls, num_queries: int, intervals: Intervals | None = None, **kinds: ExclusionKeys | Ragged) -> Exclusion:
        """From intervals, and one key a row (an array of Q) or `Ragged` keys, by kind; without any nothing is excluded.

        Raises:
            MismatchError: intervals or keys of another number of query rows.
        """
        intervals = Intervals.none(num_queries) if intervals is None else intervals
        if len(intervals.offsets) != num_queries + 1 or intervals.offsets[-1] != len(intervals.bounds_I2):
            raise MismatchError(f"intervals of excluded ids do not fit {num_queries} query rows")
        flat: list[Int64Array] = []
        offsets_JQ1 = np.zeros((len(kinds), num_queries + 1), dtype=np.int64)
        start = 0
        for kind, (name, keys) in enumerate(kinds.items()):
            ragged = keys if isinstance(keys, Ragged) else Ragged(keys, np.arange(len(keys) + 1))
            if len(ragged.offsets) != num_queries + 1 or ragged.offsets[-1] != len(ragged.keys):
                raise MismatchError(f"exclusion keys {name!r} do not fit {num_queries} query rows")
            flat.append(_as_int64(ragged.keys))
            offsets_JQ1[kind] = start + ragged.offsets
            start += len(ragged.keys)
        return cls(tuple(kinds), num_queries, np.concatenate([*flat, np.empty(0, np.int64)]), offsets_JQ1, intervals)

    def query_keys(self, start: int = 0, stop: int | None = None) -> QueryKeys:
        """The exclusion of rows start..stop, or of all, for a kernel."""
        stop = self.num_queries if stop is None else stop
        rows = slice(start, stop + 1)
        bounds_I2, bound_offsets_Q1 = self.intervals.bounds_I2, self.intervals.offsets[rows]
        return QueryKeys(np.ascontiguousarray(self.offsets_JQ1[:, rows]), self.keys_M, bound_offsets_Q1, bounds_I2)

    def rows(self, rows: Int64Array) -> Exclusion:
        """The exclusion of some rows, in their order."""
        sizes_JR = np.diff(self.offsets_JQ1, axis=1)[:, rows].ravel()
        positions, ends = _positions(self.offsets_JQ1[:, :-1][:, rows].ravel(), sizes_JR)
        starts = np.arange(len(self.kinds))[:, None] * len(rows)
        offsets_JR1 = ends[starts + np.arange(len(rows) + 1)[None, :]]
        offsets = self.intervals.offsets
        intervals, interval_ends = _positions(offsets[rows], np.diff(offsets)[rows])
        chosen = Intervals(self.intervals.bounds_I2[intervals], interval_ends)
        return Exclusion(self.kinds, len(rows), self.keys_M[positions], offsets_JR1, chosen)

    def stack(self, keys: Mapping[str, ExclusionKeys], num_rows: int, where: str = "database rows") -> Int64Array:
        """The database rows' keys of this exclusion's kinds, (J, N) int64. Raises as `columns`."""
        columns = self.columns(keys, num_rows, where)[: len(self.kinds)]
        return np.stack(columns) if columns else np.empty((0, num_rows), np.int64)

    def columns(
        self, keys: Mapping[str, ExclusionKeys], num_rows: int, where: str = "database rows"
    ) -> tuple[Int64Array, ...]:
        """The same without a copy where they are int64: one array (N,) a kind; one empty array where there are no kinds.

        Raises:
            MismatchError: a kind is missing, or has another number of rows.
        """
        for kind in self.kinds:
            if kind not in keys or len(keys[kind]) != num_rows:
                raise MismatchError(f"{num_rows} rows have no exclusion keys {kind!r} of that number", where=where)
        return tuple(_as_int64(keys[kind]) for kind in self.kinds) or (np.empty(0, np.int64),)

    def padded(self, kind: int) -> Int64Array:
        """(Q, most keys of a row) the keys of one kind, `NO_KEY` where a row has fewer."""
        starts, sizes = self.offsets_JQ1[kind, :-1], np.diff(self.offsets_JQ1[kind])
        positions = np.arange(sizes.max(initial=0))
        is_key = positions < sizes[:, None]
        padded = np.full(is_key.shape, NO_KEY, dtype=np.int64)
        padded[is_key] = self.keys_M[(starts[:, None] + positions)[is_key]]
        return padded

    def padded_intervals(self) -> Int64Array:
        """(Q, most intervals of a row, 2), empty intervals where a row has fewer."""
        starts, sizes = self.intervals.offsets[:-1], np.diff(self.intervals.offsets)
        positions = np.arange(sizes.max(initial=0))
        is_interval = positions < sizes[:, None]
        padded = np.zeros((*is_interval.shape, 2), dtype=np.int64)
        padded[is_interval] = self.intervals.bounds_I2[(starts[:, None] + positions)[is_interval]]
        return padded

    def mask(self, keys_JN: Int64Array, ids_N: Int64Array) -> BoolArray:
        """(Q, N) true where the row is excluded: the plain definition, for small inputs and for tests."""
        bounds = self.padded_intervals()[:, :, :, None]
        is_inside = (bounds[:, :, 0] <= ids_N) & (ids_N < bounds[:, :, 1])
        mask_QN: BoolArray = np.any(is_inside, axis=1)
        for kind in range(len(self.kinds)):
            for row in range(self.num_queries):
                keys_of_row = self.keys_M[self.offsets_JQ1[kind, row] : self.offsets_JQ1[kind, row + 1]]
                mask_QN[row] |= np.isin(keys_JN[kind], keys_of_row) & (keys_JN[kind] != NO_KEY)
        return mask_QN


def _positions(starts: Int64Array, sizes: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The positions of ranges of these sizes one after another, and where each range begins and the last ends among them."""
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.repeat(starts - ends[:-1], sizes) + np.arange(ends[-1]), ends


def _as_int64(keys: ExclusionKeys) -> Int64Array:
    contiguous = np.ascontiguousarray(keys)
    return contiguous.view(np.int64) if keys.dtype == np.uint64 else contiguous.astype(np.int64, copy=False)
