"""What the rows of a neighbour table were compared with: a repair takes from it what is new to them.

The live masks of two snapshots would give the same only while both can be read; these two bitmaps stay with the table. A
table without them was compared with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.parquet import read_table
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa
    from pyroaring import BitMap64

    from retrodb.format.arrays import Int64Array


@dataclass(frozen=True)
class ComparedSets:
    """Two sets of ids: each of these rows was compared with each of these chunks."""

    database: BitMap64  # chunks
    queries: BitMap64  # rows of the query set

    @staticmethod
    def of(database: Iterable[Int64Array], queries: Iterable[Int64Array]) -> ComparedSets:
        """From arrays of ids, each ascending."""
        return ComparedSets(_bitmap(database), _bitmap(queries))

    @staticmethod
    def read(view: View, table: str) -> ComparedSets:
        """Those of a table; empty where it has none."""
        from pyroaring import BitMap64

        sides = {"database": BitMap64(), "queries": BitMap64()}
        for record in view.manifest.files("joined", table):
            for row in read_table(view.files.open(record)).to_pylist():
                sides[row["side"]] |= BitMap64.deserialize(row["ids"])
        return ComparedSets(**sides)

    def to_table(self) -> pa.Table:
        """The Arrow table of a file of these sets, schema `schemas.JOINED`."""
        import pyarrow as pa

        from retrodb.format.schemas import JOINED

        rows = []
        for side, ids in (("database", self.database), ("queries", self.queries)):
            ids.run_optimize()
            rows.append({"side": side, "ids": bytes(ids.serialize())})
        return pa.Table.from_pylist(rows, schema=JOINED)


def ids_of(bitmap: BitMap64) -> Int64Array:
    """The ids of a bitmap, ascending, (n,) int64."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint64).astype(np.int64)


def within(bitmap: BitMap64, first: int, count: int) -> Int64Array:
    """The ids of a bitmap in `[first, first + count)`, ascending."""
    from pyroaring import BitMap64

    return ids_of(bitmap & BitMap64(range(first, first + count)))


def _bitmap(arrays: Iterable[Int64Array]) -> BitMap64:
    from pyroaring import BitMap64

    return BitMap64.union(BitMap64(), *(BitMap64(ids.astype(np.uint64)) for ids in arrays))
