"""Exclusion keys: what a query must not find, decided inside the search.

A query row carries keys by named kind (`document`: its own document, or all documents of its training sequence;
`content`: hashes of equal texts; `cluster`: near-duplicates). A database row carries one key of each kind. The row is no
candidate when any of its keys is among the query's keys of that kind. Keys have 64 bits and are compared bit by bit (uint64
hashes are viewed as int64). The key -1 means "none" and matches nothing.

Legend: Q queries, J kinds of keys, M keys of all queries together, N database rows.
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
    """Keys of query rows as the kernels read them: row q has `keys_M[offsets_JQ1[kind, q]:offsets_JQ1[kind, q + 1]]`."""

    offsets_JQ1: Int64Array
    keys_M: Int64Array


@dataclass(frozen=True)
class Ragged:
    """Any number of keys a row: row q has `keys[offsets[q]:offsets[q + 1]]`."""

    keys: ExclusionKeys
    offsets: Int64Array  # (Q + 1,)


@dataclass(frozen=True)
class Exclusion:
    """The keys of Q query rows, all kinds in one flat array."""

    kinds: tuple[str, ...]
    num_queries: int
    keys_M: Int64Array
    offsets_JQ1: Int64Array  # positions in keys_M

    @classmethod
    def of(cls, num_queries: int, **kinds: ExclusionKeys | Ragged) -> Exclusion:
        """From one key a row (an array of Q) or `Ragged` keys, by kind; without kinds nothing is excluded.

        Raises:
            MismatchError: keys of another number of query rows.
        """
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
        return cls(tuple(kinds), num_queries, np.concatenate([*flat, np.empty(0, np.int64)]), offsets_JQ1)

    def query_keys(self, start: int = 0, stop: int | None = None) -> QueryKeys:
        """The keys of rows start..stop, or of all, for a kernel."""
        stop = self.num_queries if stop is None else stop
        return QueryKeys(np.ascontiguousarray(self.offsets_JQ1[:, start : stop + 1]), self.keys_M)

    def rows(self, rows: Int64Array) -> Exclusion:
        """The keys of some rows, in their order."""
        sizes_JR = np.diff(self.offsets_JQ1, axis=1)[:, rows]
        ends = np.cumsum(sizes_JR.ravel())
        firsts = self.offsets_JQ1[:, :-1][:, rows].ravel()
        num_keys = ends[-1] if ends.size else 0
        positions = np.repeat(firsts - (ends - sizes_JR.ravel()), sizes_JR.ravel()) + np.arange(num_keys)
        bounds = np.concatenate([[0], ends]).astype(np.int64)
        starts = np.arange(len(self.kinds))[:, None] * len(rows)
        offsets_JR1 = bounds[starts + np.arange(len(rows) + 1)[None, :]]
        return Exclusion(self.kinds, len(rows), self.keys_M[positions], offsets_JR1)

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

    def mask(self, keys_JN: Int64Array) -> BoolArray:
        """(Q, N) true where the row is excluded: the plain definition, for small inputs and for tests."""
        mask_QN = np.zeros((self.num_queries, keys_JN.shape[1]), dtype=np.bool_)
        for kind in range(len(self.kinds)):
            for row in range(self.num_queries):
                keys_of_row = self.keys_M[self.offsets_JQ1[kind, row] : self.offsets_JQ1[kind, row + 1]]
                mask_QN[row] |= np.isin(keys_JN[kind], keys_of_row) & (keys_JN[kind] != NO_KEY)
        return mask_QN


def _as_int64(keys: ExclusionKeys) -> Int64Array:
    contiguous = np.ascontiguousarray(keys)
    return contiguous.view(np.int64) if keys.dtype == np.uint64 else contiguous.astype(np.int64, copy=False)
