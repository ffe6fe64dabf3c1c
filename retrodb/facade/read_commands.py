"""Commands that read and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retrodb.facade.base import DatabaseBase

if TYPE_CHECKING:
    from retrodb.export.refresh import ExportInfo
    from retrodb.format.arrays import Float32Array, Int64Array
    from retrodb.maintain.check.command import CheckResult
    from retrodb.maintain.snapshots.diff import DiffResult
    from retrodb.maintain.stats import SnapshotInfo, Stats, TestSetInfo
    from retrodb.stages.dedup.clusters import Duplicate
    from retrodb.stages.dedup.exposure import ExposureResult
    from retrodb.stages.dedup.leak_report import LeakHit
    from retrodb.stages.embed.spaces import SpaceInfo
    from retrodb.stages.neighbours.show import ShownRow
    from retrodb.stages.search.command import Searcher, SearchHit
    from retrodb.view.neighbour_table import NeighbourTable
    from retrodb.view.sql import SqlResult


class ReadCommands(DatabaseBase):
    """Commands that read and change nothing."""

    def search(
        self,
        queries: Sequence[str] | Float32Array,
        *,
        k: int = 5,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        as_of: int | None = None,
        **options: Any,
    ) -> list[list[SearchHit]]:
        """The nearest live chunks of texts, or of vectors (Q, D) float32; one list of at most k hits for each query.

        Args:
            source: only chunks of this source.
            where: only chunks of documents that this SQL condition chooses.
            options: `nprobe`, `recall`, `device`, `threads`, see `Searcher.arrays`.
        """
        return self.searcher(space=space, source=source, where=where, as_of=as_of).hits(queries, k, **options)

    def search_arrays(
        self,
        vectors: Float32Array,
        k: int,
        *,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        as_of: int | None = None,
        **options: Any,
    ) -> tuple[Int64Array, Float32Array]:
        """Ids (Q, k) int64, -1 where there are no more, and scores (Q, k) float32; arguments are those of `search`."""
        return self.searcher(space=space, source=source, where=where, as_of=as_of).arrays(vectors, k, **options)

    def searcher(
        self,
        *,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        as_of: int | None = None,
    ) -> Searcher:
        """The index of a space, opened once for many searches; it stays on its snapshot."""
        from retrodb.stages.search.command import Searcher

        return Searcher.open(self.view(as_of), space=space, source=source, where=where)

    def neighbour_table(self, table: str | None = None, *, as_of: int | None = None) -> NeighbourTable:
        """A neighbour table as arrays, dead neighbours masked."""
        from retrodb.view.neighbour_table import NeighbourTable

        return NeighbourTable(self.view(as_of), table)

    def exports(self) -> list[ExportInfo]:
        """The registered exports: where each lies, of which table, and the snapshot that it shows."""
        from retrodb.export.refresh import list_exports

        return list_exports(self._context)

    def show_neighbours(self, row: int, *, table: str | None = None, as_of: int | None = None) -> ShownRow:
        """One row of a neighbour table: its chunk, its neighbours, what follows each, and the token runs they share."""
        from retrodb.stages.neighbours.show import show_row

        return show_row(self.view(as_of), row, table)

    def duplicates(self, *, as_of: int | None = None) -> list[Duplicate]:
        """The documents that near-duplicate search removed, each with the one that is kept."""
        from retrodb.stages.dedup.clusters import read_duplicates

        return read_duplicates(self.view(as_of))

    def leaks(self, testset: str | None = None, *, as_of: int | None = None) -> list[LeakHit]:
        """Who matched whom: the hits that dedup reported, by test set."""
        from retrodb.stages.dedup.leak_report import read_leaks

        return read_leaks(self.view(as_of), testset)

    def exposure(
        self, testset: str, *, table: str | None = None, consumed_samples: int = 0, as_of: int | None = None
    ) -> ExposureResult:
        """The rows of a neighbour table that met a test set, the first `consumed_samples` of them counted as seen."""
        from retrodb.stages.dedup.exposure import run_exposure

        return run_exposure(self._context, testset, table=table, consumed_samples=consumed_samples, as_of=as_of)

    def spaces(self, *, as_of: int | None = None) -> list[SpaceInfo]:
        """The vector spaces, with what each of them takes."""
        from retrodb.stages.embed.spaces import list_spaces

        return list_spaces(self.view(as_of))

    def stats(self, *, as_of: int | None = None) -> Stats:
        """Counts, sizes and coverage."""
        from retrodb.maintain.stats import read_stats

        return read_stats(self.view(as_of))

    def snapshots(self) -> list[SnapshotInfo]:
        """Every version of the database, oldest first."""
        from retrodb.maintain.stats import list_snapshots

        return list_snapshots(self._context.storage)

    def diff(self, a: int, b: int, *, documents: bool = False) -> DiffResult:
        """What leads from snapshot `a` to snapshot `b`, by source and reason; with `documents` each of them."""
        from retrodb.maintain.snapshots.diff import run_diff

        return run_diff(self._context, a, b, documents=documents)

    def testsets(self, *, as_of: int | None = None) -> list[TestSetInfo]:
        """The registered test sets with their hits."""
        from retrodb.maintain.stats import list_testsets

        return list_testsets(self.view(as_of))

    def check(
        self,
        *,
        read_data: bool = False,
        subset: float | None = None,
        max_duration_s: float | None = None,
        as_of: int | None = None,
    ) -> CheckResult:
        """Look for missing and damaged files: sizes only, or with `read_data` every byte.

        Args:
            subset: of the bytes this share only, the next ones in their turn.
            max_duration_s: stop reading after so many seconds; the next such check goes on from there.
        """
        from retrodb.maintain.check.command import run_check

        limits = {"subset": subset, "max_duration_s": max_duration_s}
        return run_check(self.view(as_of), self._context.progress, read_data=read_data, **limits)

    def sql(self, query: str, *, as_of: int | None = None) -> SqlResult:
        """Run a read-only SQL query over the tables `documents`, `chunks`, `shards` and `files`."""
        from retrodb.view.sql import run_sql

        return run_sql(self.view(as_of), query)
