"""Looking: everything that reads and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrodb.facade.opened import Opened

if TYPE_CHECKING:
    from retrodb.format.arrays import Float32Array
    from retrodb.maintain.check import CheckResult
    from retrodb.maintain.stats import SnapshotInfo, Stats, TestSetInfo
    from retrodb.stages.clusters import Duplicate
    from retrodb.stages.exposure import ExposureResult
    from retrodb.stages.leak_report import LeakHit
    from retrodb.stages.search import SearchHit
    from retrodb.view.neighbour_table import NeighbourTable
    from retrodb.view.sql import SqlResult


class Looking(Opened):
    """Looking: everything that reads and changes nothing."""

    def search(
        self,
        queries: Sequence[str] | Float32Array,
        *,
        k: int = 5,
        space: str | None = None,
        source: str | None = None,
        nprobe: int | None = None,
        as_of: int | None = None,
        device: str = "auto",
    ) -> list[list[SearchHit]]:
        """The nearest live chunks of texts, or of vectors (Q, D) float32; one list of at most k hits for each query."""
        from retrodb.stages.search import run_search

        view = self.view(as_of)
        return run_search(view, queries, k=k, space=space, source=source, nprobe=nprobe, device=device)

    def neighbour_table(self, table: str | None = None, *, as_of: int | None = None) -> NeighbourTable:
        """A neighbour table as arrays, dead neighbours masked."""
        from retrodb.view.neighbour_table import NeighbourTable

        return NeighbourTable(self.view(as_of), table)

    def duplicates(self, *, as_of: int | None = None) -> list[Duplicate]:
        """The documents that near-duplicate search removed, each with the one that is kept."""
        from retrodb.stages.clusters import read_duplicates

        return read_duplicates(self.view(as_of))

    def leaks(self, testset: str | None = None, *, as_of: int | None = None) -> list[LeakHit]:
        """Who matched whom: the hits that dedup reported, by test set."""
        from retrodb.stages.leak_report import read_leaks

        return read_leaks(self.view(as_of), testset)

    def exposure(self, testset: str, *, table: str | None = None, consumed_samples: int = 0) -> ExposureResult:
        """The rows of a neighbour table that met a test set, the first `consumed_samples` of them counted as seen."""
        from retrodb.stages.exposure import run_exposure

        return run_exposure(self._context, testset, table=table, consumed_samples=consumed_samples)

    def stats(self, *, as_of: int | None = None) -> Stats:
        """Counts, sizes and coverage."""
        from retrodb.maintain.stats import read_stats

        return read_stats(self.view(as_of))

    def snapshots(self) -> list[SnapshotInfo]:
        """Every version of the database, oldest first."""
        from retrodb.maintain.stats import list_snapshots

        return list_snapshots(self._context.storage)

    def testsets(self, *, as_of: int | None = None) -> list[TestSetInfo]:
        """The registered test sets with their hits."""
        from retrodb.maintain.stats import list_testsets

        return list_testsets(self.view(as_of))

    def check(self, *, read_data: bool = False, as_of: int | None = None) -> CheckResult:
        """Look for missing and damaged files: sizes only, or with `read_data` every byte."""
        from retrodb.maintain.check import run_check

        return run_check(self.view(as_of), self._context.progress, read_data=read_data)

    def sql(self, query: str, *, as_of: int | None = None) -> SqlResult:
        """Run a read-only SQL query over the tables `documents`, `chunks`, `shards` and `files`."""
        from retrodb.view.sql import run_sql

        return run_sql(self.view(as_of), query)
