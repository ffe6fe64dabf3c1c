"""Exclusion keys: what a query must not find, decided inside the search.

A query row carries keys by named kind (`document`: its own document, or all documents of its training sequence;
`content`: hashes of equal texts; `cluster`: near-duplicates). A database row carries one key of each kind. The row is no
candidate when any of its keys is among the query's keys of that kind. ExclusionKeys are 64 bits, compared bit by bit (uint64
hashes are viewed as int64); the key -1 means "none" and matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrodb.errors import MismatchError
from retrodb.format.arrays import BoolArray, Int64Array

NO_KEY = -1
ExclusionKeys = NDArray[np.integer[Any]]  # int64 or uint64


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
    offsets_JQ1: Int64Array  # (J, Q + 1) places in keys_M

    @classmethod
    def of(cls, num_queries: int, **kinds: ExclusionKeys | Ragged) -> Exclusion:
        """From one key a row (an array of Q) or `Ragged` keys, by kind; without kinds nothing is excluded."""
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

    def rows(self, rows: Int64Array) -> Exclusion:
        """The keys of some rows, in their order."""
        sizes_JR = np.diff(self.offsets_JQ1, axis=1)[:, rows]
        ends = np.cumsum(sizes_JR.ravel())
        firsts = self.offsets_JQ1[:, :-1][:, rows].ravel()
        places = np.repeat(firsts - (ends - sizes_JR.ravel()), sizes_JR.ravel()) + np.arange(
            ends[-1] if ends.size else 0
        )
        bounds = np.concatenate([[0], ends]).astype(np.int64)
        starts = np.arange(len(self.kinds))[:, None] * len(rows)
        offsets_JR1 = bounds[starts + np.arange(len(rows) + 1)[None, :]]
        return Exclusion(self.kinds, len(rows), self.keys_M[places], offsets_JR1)

    def stack(self, keys: Mapping[str, ExclusionKeys], num_rows: int, where: str = "database rows") -> Int64Array:
        """The database rows' keys of this exclusion's kinds, (J, N) int64. Raises as `columns`."""
        columns = self.columns(keys, num_rows, where)[: len(self.kinds)]
        return np.stack(columns) if columns else np.empty((0, num_rows), np.int64)

    def columns(
        self, keys: Mapping[str, ExclusionKeys], num_rows: int, where: str = "database rows"
    ) -> tuple[Int64Array, ...]:
        """The same without a copy where they are int64: one array (N,) a kind, and an empty one where there is none.

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
        places = np.arange(sizes.max(initial=0))
        is_there = places < sizes[:, None]
        padded = np.full(is_there.shape, NO_KEY, dtype=np.int64)
        padded[is_there] = self.keys_M[(starts[:, None] + places)[is_there]]
        return padded

    def mask(self, keys_JN: Int64Array) -> BoolArray:
        """(Q, N) true where the row is excluded: the plain definition, for small inputs and for tests."""
        mask_QN = np.zeros((self.num_queries, keys_JN.shape[1]), dtype=np.bool_)
        for kind in range(len(self.kinds)):
            for row in range(self.num_queries):
                own = self.keys_M[self.offsets_JQ1[kind, row] : self.offsets_JQ1[kind, row + 1]]
                mask_QN[row] |= np.isin(keys_JN[kind], own) & (keys_JN[kind] != NO_KEY)
        return mask_QN


def _as_int64(keys: ExclusionKeys) -> Int64Array:
    keys = np.ascontiguousarray(keys)
    return keys.view(np.int64) if keys.dtype == np.uint64 else keys.astype(np.int64, copy=False)
