"""Commands that run all stages, as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retrodb.config import IngestParams
from retrodb.facade.base import options_of, params_of
from retrodb.facade.maintenance_commands import MaintenanceCommands
from retrodb.facade.read_commands import ReadCommands
from retrodb.facade.stage_commands import StageCommands
from retrodb.format.entries import DuplicatesEntry, SpaceEntry, TableEntry, TestsetEntry
from retrodb.options import (
    DedupOptions,
    EmbedOptions,
    ExportOptions,
    IndexOptions,
    IngestOptions,
    NearDuplicatesOptions,
    NeighboursOptions,
    TagOptions,
)
from retrodb.store.lock import advisory_lock

if TYPE_CHECKING:
    from retrodb.export.refresh import RefreshResult
    from retrodb.maintain.update.command import LeftExport, Stages, Step, UpdateResult, UpdateStep
    from retrodb.maintain.update.estimate import UpdatePlan
    from retrodb.maintain.update.recipe import Recipe, SourceRecipe
    from retrodb.maintain.update.schedule import ScheduleFile
    from retrodb.stages.ingest.plan import IngestResult


class UpdateCommands(StageCommands, ReadCommands, MaintenanceCommands):
    """Commands that run all stages, as the recipe says."""

    def update(
        self,
        config: str | Path | None = None,
        *,
        sources: Sequence[str] = (),
        mirror: bool = False,
        device: str | None = None,
        report: Callable[[UpdateStep], None] | None = None,
    ) -> UpdateResult:
        """Run every stage over new and changed input, as the recipe says. An error of a step is part of the result.

        Args:
            config: the recipe file. None is `recipe.toml` inside the database.
            sources: ingest only these sources. None of them means all.
            mirror: delete documents that are no longer in their source.
            device: device of encoders, classifiers and neighbour joins. None takes the recipe's, and "auto" for joins.
            report: called with every step when it ends.

        Raises:
            LockedError: another update is running.
            ConfigError: the recipe is invalid.
            MissingStep: there is no recipe.
        """
        from retrodb.maintain.update.command import run_update
        from retrodb.maintain.update.estimate import learn_rates

        with advisory_lock(self._context.storage, "update", "update"):
            recipe = self._recipe(config, sources, mirror, device)
            stages = _UpdateSteps(self, recipe, device or "auto").stages()
            result = run_update(self._context, recipe, stages, report or (lambda step: None))
        learn_rates(self.view(), result.steps, self._context.num_workers)
        return result

    def plan_update(
        self,
        config: str | Path | None = None,
        *,
        sources: Sequence[str] = (),
        mirror: bool = False,
        device: str | None = None,
    ) -> UpdatePlan:
        """What `update` would do: documents, chunks, disk space and time of every stage. Nothing is committed."""
        from retrodb.maintain.update.estimate import plan_update

        recipe = self._recipe(config, sources, mirror, device)
        return plan_update(self.view(), recipe, self._context.num_workers, partial(self._ingest_source, dry_run=True))

    def schedule(
        self,
        *,
        kind: str = "systemd",
        every: str = "1d",
        config: str | None = None,
        cpu_workers: int = 4,
        gpu_workers: int = 0,
        partition: str | None = None,
        gpu_partition: str | None = None,
        image: str | None = None,
        volume: str | None = None,
        folder: str | Path | None = None,
    ) -> list[ScheduleFile]:
        """The files that run `update` regularly, on one machine or with workers on a cluster. Nothing is installed.

        Args:
            kind: "systemd" or "cron"; "slurm", "kubernetes" or "airflow" for a cluster.
            every: time between two updates: 15m, 6h, 1d or 1w.
            config: the recipe file. None is `recipe.toml` inside the database.
            cpu_workers: workers of an update on a cluster.
            gpu_workers: workers with one GPU each, which embed and join.
            partition: of Slurm.
            gpu_partition: of Slurm, for workers with a GPU.
            image: of the pods of Kubernetes.
            volume: claim of the volume that the pods of Kubernetes mount.
            folder: that the files will be in. None is the current one.
        """
        from retrodb.maintain.update.cluster_schedule import ClusterOptions
        from retrodb.maintain.update.recipe import load_recipe
        from retrodb.maintain.update.schedule import plan_schedule

        load_recipe(self._context.storage, config)
        cluster = ClusterOptions(cpu_workers, gpu_workers, partition, gpu_partition, image, volume)
        where = None if folder is None else Path(folder)
        return plan_schedule(self.path, kind=kind, every=every, config=config, cluster=cluster, folder=where)

    def _recipe(self, config: str | Path | None, sources: Sequence[str], mirror: bool, device: str | None) -> Recipe:
        from retrodb.maintain.update.command import select_sources
        from retrodb.maintain.update.recipe import load_recipe

        recipe = select_sources(load_recipe(self._context.storage, config), sources, mirror=mirror)
        return replace(recipe, embed=replace(recipe.embed, device=device)) if device else recipe

    def _ingest_source(self, source: SourceRecipe, *, dry_run: bool = False) -> IngestResult:
        # The recipe states all options of a source: one that it does not name has its default. An edited recipe is a wish.
        params = params_of(IngestParams, options_of(IngestOptions, source))
        return self._ingest(params, source.inputs, source.files_from, None, change_options=True, dry_run=dry_run)


@dataclass(frozen=True)
class _UpdateSteps:
    """The steps of each stage of an update. They are commands of the database, so nothing is done twice."""

    db: UpdateCommands
    recipe: Recipe
    device: str  # of neighbour joins

    def stages(self) -> Stages:
        """The stages in their order. Each gives its steps when the stages before it are done."""
        return {
            "ingest": self.ingest,
            "tag": self.tag,
            "filter": self.filter,
            "dedup": self.dedup,
            "near-duplicates": self.near_duplicates,
            "embed": self.embed,
            "index": self.index,
            "neighbours": self.neighbours,
            "export": self.export,
        }

    def ingest(self) -> Iterator[Step]:
        for name, source in self.recipe.sources.items():
            yield name, partial(self.db._ingest_source, source)

    def tag(self) -> Iterator[Step]:
        for name, params in self.recipe.taggers.items():
            yield name, partial(self.db.tag, name, device=self.recipe.embed.device, **options_of(TagOptions, params))

    def filter(self) -> Iterator[Step]:
        for rule in self.recipe.filters:
            yield rule.where, partial(self.db.filter, where=rule.where, reason=rule.reason)

    def dedup(self) -> Iterator[Step]:
        for name, testset in self.recipe.testsets.items():
            yield name, partial(self.db.dedup, testset.files, name=name, **options_of(DedupOptions, testset))
        for name in self.db.view().snapshot.names(TestsetEntry):
            if name not in self.recipe.testsets:
                yield name, partial(self.db.dedup, name=name)

    def near_duplicates(self) -> Iterator[Step]:
        entry = self.db.view().snapshot.entry(DuplicatesEntry, "near")
        params = self.recipe.near_duplicates or (entry.params if entry else None)
        if params:
            yield "", partial(self.db.near_duplicates, **options_of(NearDuplicatesOptions, params))

    def embed(self) -> Iterator[Step]:
        from retrodb.maintain.update.command import pending_vectors, spaces_of

        hardware = self.recipe.embed
        for name in spaces_of(self.db.view(), self.recipe):
            if pending_vectors(self.db.view(), name):
                params = self.recipe.spaces.get(name)
                options = options_of(EmbedOptions, params) if params else EmbedOptions()
                yield (
                    name,
                    partial(
                        self.db.embed,
                        space=name,
                        device=hardware.device,
                        dtype=hardware.dtype,
                        batch_tokens=hardware.batch_tokens,
                        **options,
                    ),
                )

    def index(self) -> Iterator[Step]:
        for name in self.db.view().snapshot.names(SpaceEntry):
            if self.db.view().manifest.files("vectors", name):
                yield name, partial(self.db.index, space=name, **options_of(IndexOptions, self.recipe.index))

    def neighbours(self) -> Iterator[Step]:
        from retrodb.maintain.update.command import tables_to_compute

        view = self.db.view()
        for name, table in tables_to_compute(view, self.recipe):
            options = options_of(NeighboursOptions, table)
            yield (
                name,
                partial(
                    self.db.neighbours,
                    table=name,
                    queries=table.queries,
                    space=table.space,
                    device=self.device,
                    **options,
                ),
            )
        for name in view.snapshot.names(TableEntry):
            yield (
                name,
                partial(self.db.repair_neighbours, table=name, device=self.device),
            )

    def export(self) -> Iterator[Step]:
        from retrodb.export.place import is_there
        from retrodb.maintain.update.command import exports_to_refresh

        for export in self.recipe.exports:
            if not is_there(export.out):
                options = options_of(ExportOptions, export)
                yield export.out, partial(self.db.export, export.out, to=export.to, table=export.table, **options)
        for out in exports_to_refresh(self.db.view(), self.recipe, self.db.exports()):
            yield out, partial(self._refresh, out)

    def _refresh(self, out: str) -> RefreshResult | LeftExport:
        from retrodb.maintain.update.command import card_of_another, leave_export

        card = card_of_another(self.db.view(), out)
        return self.db.refresh_export(out) if card is None else leave_export(self.db.path, out, card)
