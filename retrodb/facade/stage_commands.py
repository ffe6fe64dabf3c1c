"""Commands that build a database. Each ends in one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from retrodb.config import (
    DedupParams,
    ExportParams,
    IndexParams,
    IngestParams,
    NearDuplicatesParams,
    NeighboursParams,
)
from retrodb.facade.base import DatabaseBase, params_of
from retrodb.facade.given_files import given_input
from retrodb.store import conflict_keys
from retrodb.view.view import SELF

if TYPE_CHECKING:
    from retrodb.export.export import ExportResult
    from retrodb.export.refresh import RefreshResult
    from retrodb.options import (
        DedupOptions,
        EmbedOptions,
        ExportOptions,
        IndexOptions,
        IngestOptions,
        NearDuplicatesOptions,
        NeighboursOptions,
        PackingOptions,
    )
    from retrodb.stages.dedup.command import DedupResult
    from retrodb.stages.dedup.near_duplicates import NearDuplicatesResult
    from retrodb.stages.embed.embed_plan import EmbedResult
    from retrodb.stages.embed.spaces import SpaceChange
    from retrodb.stages.index.command import IndexResult
    from retrodb.stages.ingest.plan import IngestResult
    from retrodb.stages.neighbours.command import NeighboursResult
    from retrodb.stages.neighbours.edit import EditResult
    from retrodb.stages.neighbours.repair import TableRepairResult
    from retrodb.stages.queries.query_set import QueriesResult


class StageCommands(DatabaseBase):
    """Commands that build a database. Each ends in one commit."""

    def ingest(
        self,
        inputs: Sequence[str | Path],
        *,
        files_from: Sequence[str | Path] = (),
        change_options: bool = False,
        dry_run: bool = False,
        **options: Unpack[IngestOptions],
    ) -> IngestResult:
        """Add the documents of files to a source. Of the options, `source` is required.

        New documents that contain texts of a registered test set, or of held-out documents, are deleted in the same snapshot.

        A source remembers the options that decide how files are read. One that is left out here has its remembered value.
        An empty text takes its default again.

        Args:
            inputs: files, folders and globs.
            files_from: files with one input per line.
            change_options: whether options that differ from the remembered ones may replace or remove documents.

        Raises:
            UsageError: options differ from the remembered ones; names them, and counts the documents.
            InputError: a file cannot be read.
            TooManyRejects: more records were rejected than `max_reject_rate` allows.
        """
        params = params_of(IngestParams, options)
        given = {name for name, value in options.items() if value is not None}
        return self._ingest(params, inputs, files_from, given, change_options=change_options, dry_run=dry_run)

    def _ingest(
        self,
        params: IngestParams,
        inputs: Sequence[str | Path],
        files_from: Sequence[str | Path],
        given: set[str] | None,
        *,
        change_options: bool,
        dry_run: bool,
    ) -> IngestResult:
        """Ingest with parameters; `given` are the names of those that do not take the remembered value, None all."""
        from retrodb.stages.dedup.screened_ingest import run_screened_ingest

        names, lists = [str(i) for i in inputs], [str(f) for f in files_from]
        with self._lock(conflict_keys.ingest(params.source), "ingest"), self._planning(dry_run) as context:
            return run_screened_ingest(
                context,
                names,
                params,
                files_from=lists,
                dry_run=dry_run,
                given=given,
                change_options=change_options,
            )

    def dedup(
        self,
        against: Sequence[str | Path] = (),
        *,
        name: str | None = None,
        dry_run: bool = False,
        **options: Unpack[DedupOptions],
    ) -> list[DedupResult]:
        """Register a test set, and delete the documents that contain its texts.

        Args:
            against: the files of a new test set. Without files, the registered test sets are brought up to date.
            name: name of the test set. None takes the name of the first file.
        """
        from retrodb.stages.dedup.command import run_dedup

        with self._lock(conflict_keys.dedup(name or "all"), "dedup"), self._planning(dry_run) as context:
            return run_dedup(
                context,
                [given_input(file) for file in against],
                params_of(DedupParams, options),
                name=name,
                dry_run=dry_run,
            )

    def near_duplicates(
        self, *, dry_run: bool = False, **options: Unpack[NearDuplicatesOptions]
    ) -> NearDuplicatesResult:
        """Find clusters of near-duplicate documents, and keep one document of each."""
        from retrodb.stages.dedup.near_duplicates import run_near_duplicates

        params = params_of(NearDuplicatesParams, options)
        with self._lock(conflict_keys.near_duplicates(), "dedup"), self._planning(dry_run) as context:
            return run_near_duplicates(context, params, dry_run=dry_run)

    def embed(
        self,
        *,
        space: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        dry_run: bool = False,
        **options: Unpack[EmbedOptions],
    ) -> EmbedResult:
        """Compute the missing vectors of a space, for chunks and for the rows of query sets.

        The options define a new space. For an existing space, leave them out.

        Args:
            space: None is the default space.
            device, dtype, batch_tokens: hardware settings of the encoder.
        """
        from retrodb.stages.embed.command import run_embed
        from retrodb.stages.embed.space_encoder import EncoderHardware

        with self._lock(conflict_keys.embed(space or "default"), "embed"), self._planning(dry_run) as context:
            return run_embed(
                context, options, EncoderHardware(device, dtype, batch_tokens), space=space, dry_run=dry_run
            )

    def drop_space(self, space: str, *, with_tables: bool = False, dry_run: bool = False) -> SpaceChange:
        """Delete a space.

        Args:
            with_tables: also delete the neighbour tables that were computed in it.
        """
        from retrodb.stages.embed.spaces import run_drop_space

        with self._lock(conflict_keys.drop_space(space), "space"):
            return run_drop_space(self._context, space, with_tables=with_tables, dry_run=dry_run)

    def set_default_space(self, space: str, *, dry_run: bool = False) -> SpaceChange:
        """Make a space the default. It must be completely embedded and indexed."""
        from retrodb.stages.embed.spaces import run_default_space

        with self._lock(conflict_keys.default_space(space), "space"):
            return run_default_space(self._context, space, dry_run=dry_run)

    def index(
        self, *, space: str | None = None, retrain: bool = False, dry_run: bool = False, **options: Unpack[IndexOptions]
    ) -> IndexResult:
        """Index the vectors of a space that are not indexed yet. Trains a codebook if the space has none.

        Args:
            retrain: train a new codebook, and index all vectors again.
        """
        from retrodb.stages.index.command import run_index

        self._check_space(space)
        with self._lock(conflict_keys.index(space or "default"), "index"), self._planning(dry_run) as context:
            return run_index(context, params_of(IndexParams, options), space=space, retrain=retrain, dry_run=dry_run)

    def add_queries(
        self, name: str, files: Sequence[str | Path], *, text_template: str | None = None, dry_run: bool = False
    ) -> QueriesResult:
        """Add documents as a query set: their chunks get neighbours, but are not part of the database."""
        from retrodb.stages.queries.command import run_add_queries

        with self._lock(conflict_keys.queries(name), "queries"), self._planning(dry_run) as context:
            return run_add_queries(
                context, name, [given_input(file) for file in files], text_template=text_template, dry_run=dry_run
            )

    def add_packed_queries(
        self,
        name: str,
        *,
        tokenizer: str | None = None,
        allow_unknown: bool = False,
        dry_run: bool = False,
        **packing: Unpack[PackingOptions],
    ) -> QueriesResult:
        """Add the packed sequences of a training run as a query set: one row per chunk, in the order of the training.

        Args:
            tokenizer: tokenizer of the sequences. None is the database's tokenizer.
            allow_unknown: add the query set although no document of the database has one of the names in `doc_ids`.
            packing: one of `tokens`, `sequences`, `megatron` and `blend`, and the options that belong to it.
        """
        from retrodb.stages.queries.name_check import count_known_names
        from retrodb.stages.queries.packed import packing_of, run_add_packed

        chosen = packing_of(**packing)
        num_names, num_known = count_known_names(self.view(), chosen, allow_unknown=allow_unknown)
        with self._lock(conflict_keys.queries(name), "queries"), self._planning(dry_run) as context:
            result = run_add_packed(context, name, chosen, tokenizer=tokenizer, dry_run=dry_run)
        return replace(result, num_names=num_names, num_known_names=num_known)

    def neighbours(
        self,
        *,
        queries: str = SELF,
        space: str | None = None,
        table: str | None = None,
        device: str = "auto",
        list_ranges: int | None = None,
        dry_run: bool = False,
        **options: Unpack[NeighboursOptions],
    ) -> NeighboursResult:
        """Compute a neighbour table: the nearest live chunks of every row of a query set.

        Args:
            queries: the query set; `self` is the database's own chunks.
            table: name of the table. None takes the name of the query set.
            device: device of the join.
            list_ranges: ranges of inverted lists that the work is split into; it changes no byte of the table. None chooses
                them by the number of vectors and the memory limit.
        """
        from retrodb.stages.neighbours.command import run_neighbours

        params = params_of(NeighboursParams, options)
        self._check_space(space)
        with self._lock(conflict_keys.neighbours(table or queries), "neighbours"), self._planning(dry_run) as context:
            result = run_neighbours(
                context,
                params,
                queries=queries,
                space=space,
                table=table,
                device=device,
                list_ranges=list_ranges,
                dry_run=dry_run,
            )
        if "sequence" not in params.exclude:
            return result
        from retrodb.stages.queries.name_check import count_unnamed_rows

        return replace(result, num_unnamed_rows=count_unnamed_rows(self.view(), queries))

    def repair_neighbours(
        self,
        *,
        table: str | None = None,
        device: str = "auto",
        dry_run: bool = False,
    ) -> list[TableRepairResult]:
        """Update one neighbour table, or all, after chunks were added or deleted. Only rows that change are written.

        Args:
            table: None updates all tables.
            device: device of the join.
        """
        from retrodb.stages.neighbours.repair import run_repair_neighbours

        with self._lock(conflict_keys.neighbours(table or "all"), "neighbours"), self._planning(dry_run) as context:
            return run_repair_neighbours(context, table=table, device=device, dry_run=dry_run)

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
        """Ban, pin or replace a neighbour of one row, or undo such an edit.

        A repair or a rebuild of the table keeps its edits.
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
        table: str | Mapping[str, str] | None = None,
        as_of: int | str | None = None,
        is_registered: bool = True,
        dry_run: bool = False,
        **options: Unpack[ExportOptions],
    ) -> ExportResult:
        """Write a neighbour table and its chunks in the format of a trainer.

        Args:
            to: export format.
            table: one table; for Megatron also a mapping from train, valid and test to tables.
            is_registered: record the export in the database, so that `exports` lists it and `update` refreshes it.
        """
        from retrodb.export.export import run_export
        from retrodb.export.place import export_place

        with self._lock(conflict_keys.export(Path(out).name), "export"):
            return run_export(
                self._context,
                export_place(out),
                to=to,
                table=table,
                params=params_of(ExportParams, options),
                as_of=as_of,
                is_registered=is_registered,
                dry_run=dry_run,
            )

    def refresh_export(self, out: str | Path, *, dry_run: bool = False) -> RefreshResult:
        """Bring an export up to date: deleted chunks become padding, and repaired rows get their new neighbours."""
        from retrodb.export.place import export_place
        from retrodb.export.refresh import run_refresh

        with self._lock(conflict_keys.export(Path(out).name), "export"):
            return run_refresh(self._context, export_place(out), dry_run=dry_run)
