"""Edits of a neighbour table: bans and pins by hand, applied to the computed rows.

They have a file of their own, so they survive the table's repair and rebuild. To undo one is to write the others again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from retrodb.format.parquet import read_table
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

    from retrodb.format.arrays import Float32Array, Int64Array

BAN, PIN = "ban", "pin"


@dataclass(frozen=True)
class Edit:
    """One decision about one row."""

    row: int  # of the query set
    action: str  # "ban": never this chunk; "pin": this chunk before all others
    chunk: int
    distance: float  # of a pinned chunk; infinity for a ban


class Edits:
    """The edits of one table."""

    def __init__(self, edits: Iterable[Edit]) -> None:
        self.all = list(edits)
        self._by_row: dict[int, list[Edit]] = {}
        for edit in self.all:
            self._by_row.setdefault(edit.row, []).append(edit)
        self._rows = np.array(sorted(self._by_row), dtype=np.int64)

    @staticmethod
    def read(view: View, table: str) -> Edits:
        """Those of a table as of a snapshot."""
        tables = [read_table(view.files.open(record)) for record in view.manifest.files("edits", table)]
        return Edits(Edit(**row) for table in tables for row in table.to_pylist())

    def to_table(self) -> pa.Table:
        """The Arrow table of their file, schema `schemas.EDITS`, in the order of the rows; of one row, as they came."""
        import pyarrow as pa

        from retrodb.format.schemas import EDITS

        return pa.Table.from_pylist([asdict(e) for e in sorted(self.all, key=lambda e: e.row)], schema=EDITS)

    def of_row(self, row: int) -> list[Edit]:
        """The edits of a row, oldest first."""
        return self._by_row.get(row, [])

    def apply(self, rows: Int64Array, ids: Int64Array, distances: Float32Array) -> tuple[Int64Array, Float32Array]:
        """Neighbours and distances (Q, w) of rows with their edits; what is pushed out falls off the end."""
        edited = np.flatnonzero(np.isin(rows, self._rows))
        if not len(edited):
            return ids, distances
        ids, distances = ids.copy(), distances.copy()
        for index in edited.tolist():
            edits = self._by_row[int(rows[index])]
            pins = [edit for edit in edits if edit.action == PIN]
            is_kept = ~np.isin(ids[index], [edit.chunk for edit in edits])
            new_ids = [*(edit.chunk for edit in pins), *ids[index][is_kept]]
            new_distances = [*(edit.distance for edit in pins), *distances[index][is_kept]]
            fill = max(0, ids.shape[1] - len(new_ids))
            ids[index] = (new_ids + [-1] * fill)[: ids.shape[1]]
            distances[index] = (new_distances + [np.inf] * fill)[: ids.shape[1]]
        return ids, distances
