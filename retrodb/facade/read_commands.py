"""Commands that only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.facade.base import DatabaseBase
from retrodb.facade.given_files import given_new_file

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
    from retrodb.stages.index.export_faiss import FaissExportResult
    from retrodb.stages.neighbours.show import ShownRow
    from retrodb.stages.search.command import Searcher, SearchHit
    from retrodb.view.neighbour_table import NeighbourTable
    from retrodb.view.sql import SqlResult


class ReadCommands(DatabaseBase):
    """Commands that only read."""

    def search(
        self,
        queries: Sequence[str] | Float32Array,
        *,
        k: int = 5,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        as_of: int | str | None = None,
        nprobe: int | None = None,
        recall: float | None = None,
        device: str = "auto",
        threads: int = 1,
    ) -> list[list[SearchHit]]:
        """The nearest live chunks of texts, or of vectors (Q, D) float32: a list of at most k hits for each query.

        Args:
            source: only chunks of this source.
            where: only chunks of documents that match this SQL condition.
            nprobe: number of inverted lists to search. None searches as many as `bench_recall` stored last, else as many as gave
                about 0.95 recall@10 on real text with an index of as many lists; other vectors may need more or fewer.
            recall: use the number of lists that was measured for this recall.
            device: device of the encoder.
        """
        searcher = self.searcher(space=space, source=source, where=where, as_of=as_of)
        return searcher.hits(queries, k, nprobe=nprobe, recall=recall, device=device, threads=threads)

    def search_arrays(
        self,
        vectors: Float32Array,
        k: int,
        *,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        as_of: int | str | None = None,
        nprobe: int | None = None,
        recall: float | None = None,
        threads: int = 1,
    ) -> tuple[Int64Array, Float32Array]:
        """Ids (Q, k) int64 and scores (Q, k) float32 of the nearest live chunks; -1 where there are fewer than k.

        Arguments are those of `search`.
        """
        searcher = self.searcher(space=space, source=source, where=where, as_of=as_of)
        return searcher.arrays(vectors, k, nprobe=nprobe, recall=recall, threads=threads)

    def searcher(
        self,
        *,
        space: str | None = None,
        source: str | None = None,
        where: str | None = None,
        as_of: int | str | None = None,
    ) -> Searcher:
        """Opens the index of a space for many searches. Later changes of the database are not visible in it."""
        from retrodb.stages.search.command import Searcher

        self._check_space(space, as_of)
        return Searcher.open(self.view(as_of), space=space, source=source, where=where)

    def neighbour_table(self, table: str | None = None, *, as_of: int | str | None = None) -> NeighbourTable:
        """A neighbour table as arrays. Deleted neighbours are masked."""
        from retrodb.view.neighbour_table import NeighbourTable

        return NeighbourTable(self.view(as_of), table)

    def exports(self) -> list[ExportInfo]:
        """The registered exports: path, neighbour table and snapshot of each."""
        from retrodb.export.refresh import list_exports

        return list_exports(self._context)

    def export_faiss(
        self, out: str | Path, *, space: str | None = None, as_of: int | str | None = None, dry_run: bool = False
    ) -> FaissExportResult:
        """Write the index of a space as one file that `faiss.read_index` opens. Its ids are those of live chunks.

        Args:
            out: path or URL of a new file. Temporary files are written next to it, or in the cache of this machine.
        """
        from retrodb.stages.index.export_faiss import run_export_faiss

        with given_new_file(out) as file:
            result = run_export_faiss(self.view(as_of), file, space=space, dry_run=dry_run)
        return replace(result, out=str(out))

    def show_neighbours(self, row: int, *, table: str | None = None, as_of: int | str | None = None) -> ShownRow:
        """One row of a neighbour table: its chunk, its neighbours, their continuations, and the token runs they share."""
        from retrodb.stages.neighbours.show import show_row

        return show_row(self.view(as_of), row, table)

    def duplicates(self, *, as_of: int | str | None = None) -> list[Duplicate]:
        """The documents that were deleted as near-duplicates, each with the document that was kept."""
        from retrodb.stages.dedup.clusters import read_duplicates

        return list(read_duplicates(self.view(as_of)))

    def leaks(self, testset: str | None = None, *, as_of: int | str | None = None) -> list[LeakHit]:
        """The matches that dedup found between test items and documents."""
        from retrodb.stages.dedup.leak_report import read_leaks

        return read_leaks(self.view(as_of), testset)

    def exposure(
        self, testset: str, *, table: str | None = None, consumed_samples: int = 0, as_of: int | str | None = None
    ) -> ExposureResult:
        """The rows of a neighbour table that share text with a test set.

        Args:
            consumed_samples: number of rows, from the first one, that the training run has already read.
        """
        from retrodb.stages.dedup.exposure import run_exposure

        with self._planning(dry_run=True) as context:  # it leaves nothing in the database
            return run_exposure(context, testset, table=table, consumed_samples=consumed_samples, as_of=as_of)

    def spaces(self, *, as_of: int | str | None = None) -> list[SpaceInfo]:
        """The vector spaces, with the size of each."""
        from retrodb.stages.embed.spaces import list_spaces

        return list_spaces(self.view(as_of))

    def stats(self, *, as_of: int | str | None = None) -> Stats:
        """Counts and sizes of everything in the database."""
        from retrodb.maintain.stats import read_stats

        return read_stats(self.view(as_of))

    def snapshots(self) -> list[SnapshotInfo]:
        """All snapshots of the database, oldest first."""
        from retrodb.maintain.stats import list_snapshots

        return list_snapshots(self._context.storage)

    def diff(self, a: int | str, b: int | str, *, documents: bool = False) -> DiffResult:
        """The changes from snapshot `a` to snapshot `b`, by source and reason, and with `documents` by document."""
        from retrodb.maintain.snapshots.diff import run_diff

        return run_diff(self._context, a, b, documents=documents)

    def testsets(self, *, as_of: int | str | None = None) -> list[TestSetInfo]:
        """The registered test sets, with the number of matches of each."""
        from retrodb.maintain.stats import list_testsets

        return list_testsets(self.view(as_of))

    def check(
        self,
        *,
        read_data: bool = False,
        subset: float | None = None,
        max_duration_s: float | None = None,
        as_of: int | str | None = None,
    ) -> CheckResult:
        """Find missing and damaged files.

        Args:
            read_data: read every file and verify its checksum, instead of its existence and size.
            subset: read only this fraction of the bytes. The next check continues where this one ends.
            max_duration_s: stop reading after this many seconds. The next check continues where this one ends.
        """
        from retrodb.maintain.check.command import run_check

        return run_check(
            self._context,
            self.view(as_of),
            read_data=read_data,
            subset=subset,
            max_duration_s=max_duration_s,
        )

    def sql(self, query: str, *, as_of: int | str | None = None) -> SqlResult:
        """Run a SELECT query over the tables `documents`, `chunks`, `shards` and `files`."""
        from retrodb.view.sql import run_sql

        return run_sql(self.view(as_of), query)
