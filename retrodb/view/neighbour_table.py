"""Neighbour tables as a snapshot sees them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import MissingStep
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.view.coverage import Coverage
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    from retrodb.format.arrays import Float32Array, Int64Array


class NeighbourTable:
    """A neighbour table read through a snapshot: neighbours that are deleted by now are masked.

    Raises:
        MissingStep: when there is no such table.
    """

    def __init__(self, view: View, table: str | None = None) -> None:
        tables = view.snapshot.names("table")
        name = table or (SELF if SELF in tables else next(iter(tables), SELF))
        entry = view.snapshot.entry("table", name)
        if entry is None:
            have = f"There are: {', '.join(tables)}." if tables else "Run 'retrodb neighbours' first."
            raise MissingStep(f"no neighbour table '{name}'", remedy=have)
        self.view, self.name, self.entry = view, name, entry
        self.k: int = entry["k"]
        self.query_set: str = entry["queries"]
        self.files = sorted(view.manifest.files("neighbours", name), key=lambda record: record.first_chunk)
        self._coverage = Coverage(self.files)
        self._stored = lru_cache(maxsize=8)(self._read)

    def read(self, rows: Int64Array) -> tuple[Int64Array, Float32Array]:
        """The first k live neighbours of query rows: ids (Q, k) int64, -1 for none, and distances (Q, k), inf for none."""
        ids = np.full((len(rows), self.k), -1, dtype=np.int64)
        distances = np.full((len(rows), self.k), np.inf, dtype=np.float32)
        for hit in self._coverage.lookup(rows):
            stored_ids, stored_distances = self._stored(hit.record)
            own = live_first(self.view, stored_ids[hit.positions], stored_distances[hit.positions], self.k)
            ids[hit.where], distances[hit.where] = own
        return ids, distances

    def rows(self) -> Int64Array:
        """The rows of the table that are live still, ascending."""
        rows = np.concatenate([np.empty(0, np.int64), *(r.first_chunk + r.row_set.present for r in self.files)])
        return rows[self.view.query_set(self.query_set).is_live(rows)]

    def written(self) -> tuple[Int64Array, Int64Array]:
        """All rows (Q,), ascending, and the first k neighbours of each (Q, k), as they were written, deleted since or not."""
        rows = [record.first_chunk + record.row_set.present for record in self.files]
        ids = [self._stored(record)[0][:, : self.k] for record in self.files]
        return np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([np.empty((0, self.k), np.int64), *ids])

    def _read(self, record: FileRecord) -> tuple[Int64Array, Float32Array]:
        content = read_table(self.view.files.open(record))
        flat = [content.column(name).combine_chunks().flatten().to_numpy() for name in ("neighbours", "distances")]
        return flat[0].reshape(content.num_rows, -1), flat[1].reshape(content.num_rows, -1)


def live_first(view: View, ids: Int64Array, distances: Float32Array, k: int) -> tuple[Int64Array, Float32Array]:
    """The first k live neighbours of each row (Q, w), in their order; -1 and inf fill up."""
    live = view.chunks.is_live(ids.ravel()).reshape(ids.shape)
    order = np.argsort(~live, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(live, order, axis=1)
    return (
        np.where(kept, np.take_along_axis(ids, order, axis=1), -1),
        np.where(kept, np.take_along_axis(distances, order, axis=1), np.float32(np.inf)),
    )
