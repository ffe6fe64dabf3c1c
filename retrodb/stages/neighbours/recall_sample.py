"""A sample of the rows of a table with their exact neighbours: the recall of the table is predicted and measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from retrodb.ann.codebook import Codebook
from retrodb.ann.exclusion import Exclusion
from retrodb.ann.recall_curve import recall_at_k
from retrodb.ann.rerank import LivePart
from retrodb.ann.topk import TopK
from retrodb.config import NeighboursParams
from retrodb.format.arrays import AnyArray, Int64Array
from retrodb.format.entries import SpaceEntry, TableEntry
from retrodb.format.parquet import read_table
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.stages.index.operating_point import EXACT, SAMPLE_ROWS, OperatingPoint, measure, stored_point
from retrodb.stages.neighbours.block_join import exact_neighbours
from retrodb.stages.neighbours.table_inputs import database_side, exclusion_of
from retrodb.stages.neighbours.table_rows import query_ids
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

_SAMPLE_SPANS = (
    16  # ranges that the sample is drawn from: 16 tasks of a million rows, so reading their masks takes seconds
)


class RecallSample:
    """Seeded rows of some of the spans of a query set, and their exact neighbours. Everything is computed on first use."""

    def __init__(
        self,
        view: View,
        queries: str,
        space: str,
        params: NeighboursParams,
        spans: Sequence[ChunkRange],
        threads: int,
    ) -> None:
        self._view, self._queries, self._space, self._params = view, queries, space, params
        self._spans, self._threads = spans, threads

    @cached_property
    def rows(self) -> Int64Array:
        """(S,) ids, ascending."""
        rng = np.random.default_rng(0)
        chosen = sorted(rng.permutation(len(self._spans))[:_SAMPLE_SPANS].tolist())
        rows = [query_ids(self._view, self._queries, self._space, self._spans[number]) for number in chosen]
        return np.sort(rng.permutation(np.concatenate(rows))[:SAMPLE_ROWS])

    @cached_property
    def parts(self) -> list[LivePart]:
        """The database side of the table."""
        return database_side(self._view, self._space, self._params)

    @cached_property
    def vectors(self) -> AnyArray:
        """(S, D) vectors of the rows."""
        return self._view.vectors(self._space, self.rows, self._queries)

    @cached_property
    def exclusion(self) -> Exclusion:
        """What the rows must not have as neighbours."""
        return exclusion_of(self._view, self._queries, self._params, self.rows)

    @cached_property
    def truth(self) -> TopK:
        """The exact neighbours of the rows: ids (S, k) int64 and distances (S, k) float32."""
        metric = self._view.snapshot.existing(SpaceEntry, self._space).metric
        return exact_neighbours(self.vectors, self.parts, metric, self.exclusion, self._params.k, self._threads)

    def choose_point(self, codebook: Codebook, unchanged: TableEntry | None) -> OperatingPoint:
        """How many lists each row of the table reads: the stored point of the whole space, else what the sample needs.

        Args:
            unchanged: the table's entry if it was computed from the same inputs: its measured point is used again.
        """
        params = self._params
        if params.exact or codebook.num_lists == 1:
            return EXACT
        is_whole = params.where is None and params.sample >= 1
        if is_whole and (stored := stored_point(self._view, self._space, params.recall)):
            return stored
        if unchanged:
            return OperatingPoint(unchanged.nprobe, unchanged.recall_expected)
        true_ids, _ = self.truth
        return measure(codebook, self.parts, self.vectors, self.exclusion, params.k, params.recall, true_ids)

    def recall_of(self, storage: Storage, files: Sequence[FileRecord]) -> float:
        """The recall@k that files of the table have on the rows."""
        k = self._params.k
        if not (self.truth[0] >= 0).any():
            return 1.0
        ids, distances = np.empty((len(self.rows), k), np.int64), np.empty((len(self.rows), k), np.float32)
        for hit in Coverage(files, self._view.files).lookup(self.rows):
            table = read_table(VerifiedFiles(storage).open(hit.record)).take(hit.positions)
            columns = [table.column(name).combine_chunks().flatten().to_numpy() for name in ("neighbours", "distances")]
            ids[hit.where], distances[hit.where] = (column.reshape(table.num_rows, -1)[:, :k] for column in columns)
        return round(recall_at_k(ids, distances, *self.truth).mean, 4)
