"""Building: the stages, each ending in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodb.config import DedupParams, IndexParams, IngestParams, NearDuplicatesParams, NeighboursParams
from retrodb.facade.opened import Opened, params_of
from retrodb.store import marks
from retrodb.view.view import SELF

if TYPE_CHECKING:
    from retrodb.export.export import ExportResult
    from retrodb.stages.dedup import DedupResult
    from retrodb.stages.embed import EmbedResult
    from retrodb.stages.index import IndexResult
    from retrodb.stages.ingest import IngestResult
    from retrodb.stages.near_duplicates import NearDuplicatesResult
    from retrodb.stages.neighbours import NeighboursResult
    from retrodb.stages.queries import QueriesResult


class Building(Opened):
    """Building: the stages, each ending in one commit."""

    def ingest(
        self,
        inputs: Sequence[str | Path],
        *,
        files_from: Sequence[str | Path] = (),
        dry_run: bool = False,
        **options: Any,
    ) -> IngestResult:
        """Add files to a source. Options: `IngestParams`, of which `source` is required."""
        from retrodb.stages.ingest import run_ingest

        params = params_of(IngestParams, options)
        with self._lock(marks.ingest(params.source), "ingest"):
            names, lists = [str(i) for i in inputs], [str(f) for f in files_from]
            result = run_ingest(self._context, names, params, files_from=lists, dry_run=dry_run)
            head = self.view().snapshot
            if not dry_run and (head.names("testset") or head.names("queries")):
                # Imported late: it brings a compiler, which a database without test sets has no use for.
                from retrodb.stages.dedup import screen_new_shards

                screen_new_shards(self._context)
        return result

    def dedup(
        self, against: Sequence[str | Path] = (), *, name: str | None = None, dry_run: bool = False, **options: Any
    ) -> list[DedupResult]:
        """Register a test set and remove what leaks it; without files, apply the registered ones. Options: `DedupParams`."""
        from retrodb.stages.dedup import run_dedup

        with self._lock(marks.dedup(name or "all"), "dedup"):
            return run_dedup(
                self._context, [Path(f) for f in against], params_of(DedupParams, options), name=name, dry_run=dry_run
            )

    def near_duplicates(self, *, dry_run: bool = False, **options: Any) -> NearDuplicatesResult:
        """Keep one of documents that are the same but for details. Options: `NearDuplicatesParams`."""
        from retrodb.stages.near_duplicates import run_near_duplicates

        params = params_of(NearDuplicatesParams, options)
        with self._lock(marks.near_duplicates(), "dedup"):
            return run_near_duplicates(self._context, params, dry_run=dry_run)

    def embed(
        self,
        *,
        space: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> EmbedResult:
        """Give every live, screened chunk its vector in a space. Options: `EmbedParams`, only for a new space."""
        from retrodb.stages.embed import run_embed
        from retrodb.stages.embed_task import Hardware

        with self._lock(marks.embed(space or "default"), "embed"):
            return run_embed(
                self._context, options, Hardware(device, dtype, batch_tokens), space=space, dry_run=dry_run
            )

    def index(
        self, *, space: str | None = None, retrain: bool = False, dry_run: bool = False, **options: Any
    ) -> IndexResult:
        """Train the codebook of a space, if it has none, and index what is embedded. Options: `IndexParams`."""
        from retrodb.stages.index import run_index

        with self._lock(marks.index(space or "default"), "index"):
            return run_index(
                self._context, params_of(IndexParams, options), space=space, retrain=retrain, dry_run=dry_run
            )

    def add_queries(
        self, name: str, files: Sequence[str | Path], *, text_template: str | None = None, dry_run: bool = False
    ) -> QueriesResult:
        """Register documents that want neighbours but are not in the database."""
        from retrodb.stages.queries import run_add_queries

        with self._lock(marks.queries(name), "queries"):
            return run_add_queries(
                self._context, name, [Path(f) for f in files], text_template=text_template, dry_run=dry_run
            )

    def neighbours(
        self,
        *,
        queries: str = SELF,
        space: str | None = None,
        table: str | None = None,
        dry_run: bool = False,
        **options: Any,
    ) -> NeighboursResult:
        """Compute a neighbour table: for every row of a query set its nearest live chunks. Options: `NeighboursParams`."""
        from retrodb.stages.neighbours import run_neighbours

        params = params_of(NeighboursParams, options)
        with self._lock(marks.neighbours(table or queries), "neighbours"):
            return run_neighbours(self._context, params, queries=queries, space=space, table=table, dry_run=dry_run)

    def export(
        self,
        out: str | Path,
        *,
        to: str = "parquet",
        table: str | None = None,
        as_of: int | None = None,
        dry_run: bool = False,
    ) -> ExportResult:
        """Write a neighbour table in a trainer's format."""
        from retrodb.export.export import run_export

        return run_export(self._context, Path(out), to=to, table=table, as_of=as_of, dry_run=dry_run)
