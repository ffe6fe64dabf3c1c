"""Commands that build: the stages, each ending in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrodb.config import DedupParams, IndexParams, IngestParams, NearDuplicatesParams, NeighboursParams
from retrodb.facade.base import DatabaseBase, params_of
from retrodb.format.entries import QueriesEntry, TestsetEntry
from retrodb.store import conflict_keys
from retrodb.view.view import SELF

if TYPE_CHECKING:
    from retrodb.export.export import ExportResult
    from retrodb.export.refresh import RefreshResult
    from retrodb.stages.dedup.command import DedupResult
    from retrodb.stages.dedup.near_duplicates import NearDuplicatesResult
    from retrodb.stages.embed.command import EmbedResult
    from retrodb.stages.embed.spaces import SpaceChange
    from retrodb.stages.index.command import IndexResult
    from retrodb.stages.ingest.command import IngestResult
    from retrodb.stages.neighbours.command import NeighboursResult
    from retrodb.stages.neighbours.edit import EditResult
    from retrodb.stages.neighbours.repair import TableRepairResult
    from retrodb.stages.queries.command import QueriesResult


class StageCommands(DatabaseBase):
    """Commands that build: the stages, each ending in one commit."""

    def ingest(
        self,
        inputs: Sequence[str | Path],
        *,
        files_from: Sequence[str | Path] = (),
        dry_run: bool = False,
        **options: Any,
    ) -> IngestResult:
        """Add files to a source. Options: `IngestParams`, of which `source` is required."""
        from retrodb.stages.ingest.command import run_ingest

        params = params_of(IngestParams, options)
        with self._lock(conflict_keys.ingest(params.source), "ingest"):
            names, lists = [str(i) for i in inputs], [str(f) for f in files_from]
            result = run_ingest(self._context, names, params, files_from=lists, dry_run=dry_run)
            head = self.view().snapshot
            if not dry_run and (head.names(TestsetEntry) or head.names(QueriesEntry)):
                # Imported late: it brings a compiler, which a database without test sets has no use for.
                from retrodb.stages.dedup.command import screen_new_shards

                screen_new_shards(self._context)
        return result

    def dedup(
        self, against: Sequence[str | Path] = (), *, name: str | None = None, dry_run: bool = False, **options: Any
    ) -> list[DedupResult]:
        """Register a test set and remove what leaks it; without files, apply the registered ones. Options: `DedupParams`."""
        from retrodb.stages.dedup.command import run_dedup

        with self._lock(conflict_keys.dedup(name or "all"), "dedup"):
            return run_dedup(
                self._context, [Path(f) for f in against], params_of(DedupParams, options), name=name, dry_run=dry_run
            )

    def near_duplicates(self, *, dry_run: bool = False, **options: Any) -> NearDuplicatesResult:
        """Keep one of documents that are the same but for details. Options: `NearDuplicatesParams`."""
        from retrodb.stages.dedup.near_duplicates import run_near_duplicates

        params = params_of(NearDuplicatesParams, options)
        with self._lock(conflict_keys.near_duplicates(), "dedup"):
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
        from retrodb.stages.embed.command import run_embed
        from retrodb.stages.embed.task import Hardware

        with self._lock(conflict_keys.embed(space or "default"), "embed"):
            return run_embed(
                self._context, options, Hardware(device, dtype, batch_tokens), space=space, dry_run=dry_run
            )

    def drop_space(self, space: str, *, with_tables: bool = False, dry_run: bool = False) -> SpaceChange:
        """Take a space out of the database, and with `with_tables` the neighbour tables that rest on it."""
        from retrodb.stages.embed.spaces import run_drop_space

        with self._lock(conflict_keys.drop_space(space), "space"):
            return run_drop_space(self._context, space, with_tables=with_tables, dry_run=dry_run)

    def set_default_space(self, space: str, *, dry_run: bool = False) -> SpaceChange:
        """Make a space, embedded and indexed whole, the one that is used when none is named."""
        from retrodb.stages.embed.spaces import run_default_space

        with self._lock(conflict_keys.default_space(space), "space"):
            return run_default_space(self._context, space, dry_run=dry_run)

    def index(
        self, *, space: str | None = None, retrain: bool = False, dry_run: bool = False, **options: Any
    ) -> IndexResult:
        """Train the codebook of a space, if it has none, and index what is embedded. Options: `IndexParams`."""
        from retrodb.stages.index.command import run_index

        with self._lock(conflict_keys.index(space or "default"), "index"):
            return run_index(
                self._context, params_of(IndexParams, options), space=space, retrain=retrain, dry_run=dry_run
            )

    def add_queries(
        self, name: str, files: Sequence[str | Path], *, text_template: str | None = None, dry_run: bool = False
    ) -> QueriesResult:
        """Register documents that want neighbours but are not in the database."""
        from retrodb.stages.queries.command import run_add_queries

        with self._lock(conflict_keys.queries(name), "queries"):
            return run_add_queries(
                self._context, name, [Path(f) for f in files], text_template=text_template, dry_run=dry_run
            )

    def add_packed_queries(
        self, name: str, *, tokenizer: str | None = None, dry_run: bool = False, **packing: Any
    ) -> QueriesResult:
        """Register a trainer's packed sequences: a row for every chunk of every sample, in the trainer's order.

        Args:
            tokenizer: whose tokens the sequences hold; None is the database's.
            packing: `sequences` for the database's own documents; for Megatron's `megatron` or `blend`, `seq_length`,
                `train_samples`, and if they are not its defaults `split`, `seed`, `subset`; and `doc_ids`.
        """
        from retrodb.stages.queries.packed import packing_of, run_add_packed

        with self._lock(conflict_keys.queries(name), "queries"):
            return run_add_packed(self._context, name, packing_of(**packing), tokenizer=tokenizer, dry_run=dry_run)

    def neighbours(
        self,
        *,
        queries: str = SELF,
        space: str | None = None,
        table: str | None = None,
        memory_bytes: int = 4 << 30,
        device: str = "auto",
        dry_run: bool = False,
        **options: Any,
    ) -> NeighboursResult:
        """Compute a neighbour table: for every row of a query set its nearest live chunks. Options: `NeighboursParams`."""
        from retrodb.stages.neighbours.command import run_neighbours

        params = params_of(NeighboursParams, options)
        with self._lock(conflict_keys.neighbours(table or queries), "neighbours"):
            return run_neighbours(
                self._context,
                params,
                queries=queries,
                space=space,
                table=table,
                memory_bytes=memory_bytes,
                device=device,
                dry_run=dry_run,
            )

    def repair_neighbours(self, *, table: str | None = None, dry_run: bool = False) -> list[TableRepairResult]:
        """Bring one neighbour table, or all, up to date with what came and went since, by patches."""
        from retrodb.stages.neighbours.repair import run_repair_neighbours

        with self._lock(conflict_keys.neighbours(table or "all"), "neighbours"):
            return run_repair_neighbours(self._context, table=table, dry_run=dry_run)

    def edit_neighbours(
        self,
        row: int,
        *,
        table: str | None = None,
        ban: int | None = None,
        pin: int | None = None,
        replace: tuple[int, int] | None = None,
        undo: bool = False,
        dry_run: bool = False,
    ) -> EditResult:
        """Ban or pin a neighbour of one row, or replace one by another, or take such an edit back.

        Edits outlive the repair and the rebuild of their table; whatever reads the table honours them.
        """
        from retrodb.stages.neighbours.edit import run_edit_neighbours

        with self._lock(conflict_keys.edit(table or SELF), "neighbours"):
            return run_edit_neighbours(
                self._context, row, table=table, ban=ban, pin=pin, replace=replace, undo=undo, dry_run=dry_run
            )

    def export(
        self,
        out: str | Path,
        *,
        to: str = "parquet",
        table: str | None = None,
        as_of: int | None = None,
        is_registered: bool = True,
        dry_run: bool = False,
    ) -> ExportResult:
        """Write a neighbour table in a trainer's format, and register the export unless told otherwise."""
        from retrodb.export.export import run_export

        with self._lock(conflict_keys.export(Path(out).name), "export"):
            return run_export(
                self._context,
                Path(out),
                to=to,
                table=table,
                as_of=as_of,
                is_registered=is_registered,
                dry_run=dry_run,
            )

    def refresh_export(self, out: str | Path, *, dry_run: bool = False) -> RefreshResult:
        """Bring an export up to date: what was deleted becomes padding, repaired rows get their new neighbours."""
        from retrodb.export.refresh import run_refresh

        with self._lock(conflict_keys.export(Path(out).name), "export"):
            return run_refresh(self._context, Path(out), dry_run=dry_run)
