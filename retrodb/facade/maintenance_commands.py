"""Commands that keep a database right for years."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from retrodb.config import TagParams
from retrodb.facade.base import DatabaseBase, params_of
from retrodb.store import conflict_keys
from retrodb.store.lock import advisory_lock

if TYPE_CHECKING:
    from retrodb.maintain.check.repair import DatabaseRepairResult
    from retrodb.maintain.compact.command import CompactResult
    from retrodb.maintain.purge.command import PurgeResult
    from retrodb.maintain.snapshots.gc import GcResult
    from retrodb.maintain.snapshots.pins import PinResult
    from retrodb.maintain.snapshots.restore import RestoreResult
    from retrodb.maintain.update.command import Commands, UpdateResult, UpdateStep
    from retrodb.maintain.update.estimate import UpdatePlan
    from retrodb.maintain.update.schedule import ScheduleFile
    from retrodb.stages.deletion.filter import FilterResult
    from retrodb.stages.deletion.tag import TagResult
    from retrodb.stages.deletion.undelete import UndeleteResult


class MaintenanceCommands(DatabaseBase):
    """Commands that keep a database right for years."""

    def tag(
        self, name: str, *, device: str = "auto", retag: bool = False, dry_run: bool = False, **options: Any
    ) -> TagResult:
        """Score every live document that has no score of this name yet. Options: `TagParams`.

        Args:
            retag: whether all documents may be scored anew by another tagger than the one that had the name.
        """
        from retrodb.stages.deletion.tag import run_tag

        params = params_of(TagParams, options)
        with self._lock(conflict_keys.tag(name), "tag"):
            return run_tag(self._context, name, params, device=device, retag=retag, dry_run=dry_run)

    def filter(
        self,
        *,
        where: str | None = None,
        doc_ids: Sequence[str] | None = None,
        source: str | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> FilterResult:
        """Delete the documents that satisfy a condition, have a name, or are of a source; `undelete` takes it back.

        Args:
            where: SQL over the columns of documents, their metadata, text and scores.
            doc_ids: ids, or source and id with a slash between them.
            reason: None is "filter".
        """
        from retrodb.stages.deletion.filter import run_filter

        return run_filter(
            self._context, where=where, doc_ids=doc_ids, source=source, reason=reason or "filter", dry_run=dry_run
        )

    def undelete(
        self,
        reason: str,
        *,
        where: str | None = None,
        doc_ids: Sequence[str] | None = None,
        source: str | None = None,
        dry_run: bool = False,
    ) -> UndeleteResult:
        """End a reason's hold; what is deleted for another reason too stays out. Choices are those of `filter`."""
        from retrodb.stages.deletion.undelete import run_undelete

        return run_undelete(self._context, reason, where=where, doc_ids=doc_ids, source=source, dry_run=dry_run)

    def repair(self, *, accept_loss: bool = False, dry_run: bool = False) -> DatabaseRepairResult:
        """Read every byte, make again what is damaged and can be made again, and put the damaged bytes aside.

        Args:
            accept_loss: whether to go on without what nothing can give back.
        """
        from retrodb.maintain.check.repair import run_repair

        with self._lock(conflict_keys.compact(), "repair"):
            return run_repair(self._context, accept_loss=accept_loss, dry_run=dry_run)

    def update(
        self,
        config: str | Path | None = None,
        *,
        sources: Sequence[str] = (),
        mirror: bool = False,
        report: Callable[[UpdateStep], None] | None = None,
    ) -> UpdateResult:
        """Run every stage over what is new, as the recipe says.

        Args:
            config: the recipe's file; None is `recipe.toml` inside the database.
            sources: ingest these only; none are all.
            mirror: remove documents that their source no longer has.
            report: called with every step as it ends.

        Raises:
            LockedError: another update is running.
            ConfigError, MissingStep: the recipe cannot be meant, or is not there. What a step fails with is in the result.
        """
        from retrodb.maintain.update.command import narrowed, run_update
        from retrodb.maintain.update.estimate import learn_rates
        from retrodb.maintain.update.recipe import load_recipe

        with advisory_lock(self._context.storage, "update", "update"):
            recipe = narrowed(load_recipe(self._context.storage, config), sources, mirror=mirror)
            result = run_update(cast("Commands", self), recipe, report or (lambda step: None))
        learn_rates(self.view(), result.steps, self._context.num_workers)
        return result

    def plan_update(
        self, config: str | Path | None = None, *, sources: Sequence[str] = (), mirror: bool = False
    ) -> UpdatePlan:
        """What `update` would do, with documents, chunks, disk and time of every stage; nothing is committed."""
        from retrodb.maintain.update.command import narrowed
        from retrodb.maintain.update.estimate import plan_update
        from retrodb.maintain.update.recipe import load_recipe

        recipe = narrowed(load_recipe(self._context.storage, config), sources, mirror=mirror)
        return plan_update(cast("Commands", self), recipe, self._context.num_workers)

    def schedule(self, *, kind: str = "systemd", every: str = "1d", config: str | None = None) -> list[ScheduleFile]:
        """The units for systemd, or the line for cron, that run `update` regularly; nothing is installed."""
        from retrodb.maintain.update.recipe import load_recipe
        from retrodb.maintain.update.schedule import plan_schedule

        load_recipe(self._context.storage, config)
        return plan_schedule(self.path, kind=kind, every=every, config=config)

    def compact(self, *, min_deleted: float = 0.1, dry_run: bool = False) -> CompactResult:
        """Drop deleted rows and join small neighbouring files. No answer changes, no id moves.

        Args:
            min_deleted: share of deleted rows from which on a file is written anew.
        """
        from retrodb.maintain.compact.command import run_compact

        with self._lock(conflict_keys.compact(), "compact"):
            return run_compact(self._context, min_deleted=min_deleted, dry_run=dry_run)

    def gc(
        self,
        *,
        grace: timedelta = timedelta(days=7),
        keep_snapshots: int = 10,
        abandon_runs: timedelta | None = None,
        dry_run: bool = False,
    ) -> GcResult:
        """Let old snapshots expire, and delete what nothing needs.

        Args:
            grace: how long a file has been known to be unneeded before it is deleted.
            keep_snapshots: how many of the newest stay readable; pinned ones stay besides.
            abandon_runs: open runs that wrote nothing for so long are given up; None gives up none.
        """
        from retrodb.maintain.snapshots.gc import run_gc

        with advisory_lock(self._context.storage, "gc", "gc"):
            return run_gc(
                self._context, grace=grace, keep_snapshots=keep_snapshots, abandon_runs=abandon_runs, dry_run=dry_run
            )

    def restore(self, snapshot: int, *, dry_run: bool = False) -> RestoreResult:
        """Make an older snapshot the newest, as one more snapshot; what was purged stays dead."""
        from retrodb.maintain.snapshots.restore import run_restore

        with self._lock(conflict_keys.restore(), "restore"):
            return run_restore(self._context, snapshot, dry_run=dry_run)

    def pin(self, snapshot: int | None = None, *, name: str, dry_run: bool = False) -> PinResult:
        """Keep a snapshot, the newest one unless it is named, from expiring."""
        from retrodb.maintain.snapshots.pins import run_pin

        return run_pin(self._context, snapshot, name, dry_run=dry_run)

    def unpin(self, name: str, *, dry_run: bool = False) -> PinResult:
        """Take a pin away."""
        from retrodb.maintain.snapshots.pins import run_unpin

        return run_unpin(self._context, name, dry_run=dry_run)

    def purge(
        self,
        doc_ids: Sequence[str],
        *,
        break_pins: bool = False,
        include_testsets: bool = False,
        dry_run: bool = False,
    ) -> PurgeResult:
        """Take documents out for good, out of older snapshots too, and prove that nothing of them is left.

        Args:
            doc_ids: ids, or source and id with a slash between them.
            break_pins: expire pinned snapshots that hold them.
            include_testsets: take items that quote them out of registered test sets.
        """
        from retrodb.maintain.purge.command import run_purge

        with advisory_lock(self._context.storage, "purge", "purge"):
            return run_purge(
                self._context, doc_ids, break_pins=break_pins, include_testsets=include_testsets, dry_run=dry_run
            )
