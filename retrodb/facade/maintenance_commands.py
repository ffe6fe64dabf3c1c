"""Commands that maintain a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from retrodb.config import TagParams
from retrodb.facade.base import DatabaseBase, params_of, storage_at
from retrodb.store import conflict_keys
from retrodb.store.lock import advisory_lock
from retrodb.view.named import DocumentName, with_source

if TYPE_CHECKING:
    from retrodb.maintain.check.repair import DatabaseRepairResult
    from retrodb.maintain.compact.plan import CompactResult
    from retrodb.maintain.copy.command import CopyResult
    from retrodb.maintain.purge.plan import PurgeResult
    from retrodb.maintain.snapshots.gc import GcResult
    from retrodb.maintain.snapshots.pins import PinResult
    from retrodb.maintain.snapshots.restore import RestoreResult
    from retrodb.options import TagOptions
    from retrodb.stages.deletion.filter import FilterResult
    from retrodb.stages.deletion.tag import TagResult
    from retrodb.stages.deletion.undelete import UndeleteResult
    from retrodb.store.storage import Storage


class MaintenanceCommands(DatabaseBase):
    """Commands that maintain a database."""

    def tag(
        self,
        name: str,
        *,
        device: str = "auto",
        retag: bool = False,
        dry_run: bool = False,
        **options: Unpack[TagOptions],
    ) -> TagResult:
        """Compute a score for every live document that does not have it yet.

        Args:
            name: name of the score.
            device: device of a classifier.
            retag: compute all scores again if another tagger made the existing ones.
        """
        from retrodb.stages.deletion.tag import run_tag

        params = params_of(TagParams, options)
        with self._lock(conflict_keys.tag(name), "tag"), self._planning(dry_run) as context:
            return run_tag(context, name, params, device=device, retag=retag, dry_run=dry_run)

    def filter(
        self,
        *,
        where: str | None = None,
        doc_ids: Sequence[str | DocumentName] | None = None,
        source: str | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> FilterResult:
        """Delete the documents that match all given conditions. `undelete` reverses it.

        Args:
            where: SQL condition over the columns of documents, their metadata, text and scores.
            doc_ids: document ids. A `DocumentName` is an id with its source. An id that is in several sources, or can also
                be read as "SOURCE/ID" of another document, is refused, unless `source` says which.
            source: only documents of this source.
            reason: name of the deletion. None is "filter".
        """
        from retrodb.stages.deletion.filter import run_filter

        with self._planning(dry_run) as context:
            return run_filter(
                context,
                where=where,
                doc_ids=with_source(doc_ids, source),
                source=source,
                reason=reason or "filter",
                dry_run=dry_run,
            )

    def undelete(
        self,
        reason: str,
        *,
        where: str | None = None,
        doc_ids: Sequence[str | DocumentName] | None = None,
        source: str | None = None,
        dry_run: bool = False,
    ) -> UndeleteResult:
        """Revoke a reason for deletion. A document that is also deleted for another reason stays deleted.

        Args:
            reason: name of the deletion.
            where, doc_ids, source: only for documents that match, as in `filter`.
        """
        from retrodb.stages.deletion.undelete import run_undelete

        with self._planning(dry_run) as context:
            return run_undelete(
                context, reason, where=where, doc_ids=with_source(doc_ids, source), source=source, dry_run=dry_run
            )

    def repair(
        self,
        *,
        accept_loss: bool = False,
        device: str = "auto",
        dry_run: bool = False,
    ) -> DatabaseRepairResult:
        """Read every file, rebuild damaged files where possible, and move damaged bytes to `quarantine/`.

        Args:
            accept_loss: delete the documents that cannot be recovered.
            device: device of encoders and neighbour joins.
        """
        from retrodb.maintain.check.repair import run_repair

        with self._lock(conflict_keys.compact(), "repair"):
            return run_repair(self._context, accept_loss=accept_loss, device=device, dry_run=dry_run)

    def compact(self, *, min_deleted: float = 0.1, dry_run: bool = False) -> CompactResult:
        """Remove deleted rows from files and merge small files. Ids and search results do not change.

        Args:
            min_deleted: rewrite a file once this fraction of its rows is deleted.
        """
        from retrodb.maintain.compact.command import run_compact

        with self._lock(conflict_keys.compact(), "compact"), self._planning(dry_run) as context:
            return run_compact(context, min_deleted=min_deleted, dry_run=dry_run)

    def gc(
        self,
        *,
        grace: timedelta = timedelta(days=7),
        keep_snapshots: int = 10,
        abandon_runs: timedelta | None = None,
        dry_run: bool = False,
    ) -> GcResult:
        """Expire old snapshots, and delete files that no snapshot needs.

        Args:
            grace: delete a file after it has been unneeded for this time.
            keep_snapshots: number of newest snapshots to keep. Pinned snapshots are kept too.
            abandon_runs: discard unfinished runs that have written nothing for this time. None keeps all.
        """
        from retrodb.maintain.snapshots.gc import run_gc

        with advisory_lock(self._context.storage, "gc", "gc"):
            return run_gc(
                self._context, grace=grace, keep_snapshots=keep_snapshots, abandon_runs=abandon_runs, dry_run=dry_run
            )

    def restore(self, snapshot: int | str, *, dry_run: bool = False) -> RestoreResult:
        """Return to the state of an older snapshot, in a new snapshot. Purged documents do not come back."""
        from retrodb.maintain.snapshots.restore import run_restore

        with self._lock(conflict_keys.restore(), "restore"), self._planning(dry_run) as context:
            return run_restore(context, snapshot, dry_run=dry_run)

    def pin(
        self, snapshot: int | str | None = None, *, name: str, move: bool = False, dry_run: bool = False
    ) -> PinResult:
        """Give a snapshot a name, which stands wherever its number does, and protects it from expiring.

        Args:
            snapshot: None is the newest snapshot.
            move: take the name from the snapshot that has it.
        """
        from retrodb.maintain.snapshots.pins import run_pin

        return run_pin(self._context, snapshot, name, move=move, dry_run=dry_run)

    def unpin(self, name: str, *, dry_run: bool = False) -> PinResult:
        """Remove a pin."""
        from retrodb.maintain.snapshots.pins import run_unpin

        return run_unpin(self._context, name, dry_run=dry_run)

    def copy_to(
        self,
        destination: str | Path | Storage,
        *,
        snapshot: int | str | None = None,
        since: int | str | None = None,
        verify: bool = False,
        transfers: int = 4,
        dry_run: bool = False,
    ) -> CopyResult:
        """Copy a snapshot to another place: a new one, or one with an earlier copy, which gets only the files that it lacks.

        Args:
            destination: a directory, or the URL of a place in an object store.
            snapshot: None is the newest snapshot.
            since: instead of one snapshot, copy all after this one, which the destination has.
            verify: read the files that are in the destination, and copy those again that are damaged.
            transfers: number of files that are copied at the same time.
        """
        from retrodb.maintain.copy.command import run_copy

        return run_copy(
            self._context,
            storage_at(destination),
            at=snapshot,
            since=since,
            verify=verify,
            transfers=transfers,
            dry_run=dry_run,
        )

    def purge(
        self,
        doc_ids: Sequence[str | DocumentName],
        *,
        source: str | None = None,
        break_pins: bool = False,
        include_testsets: bool = False,
        ignore_unknown: bool = False,
        search_all: bool = False,
        dry_run: bool = False,
    ) -> PurgeResult:
        """Delete documents permanently, from older snapshots too, and prove that no trace of them is left.

        Args:
            doc_ids: document ids, as in `filter`.
            source: source of the ids.
            break_pins: also expire pinned snapshots that contain them.
            include_testsets: also delete items of test sets that quote them.
            ignore_unknown: delete nothing, instead of raising an error, when no document has any of the ids.
            search_all: read every file in each search, also files that have not changed since this purge searched them.
        """
        from retrodb.maintain.purge.command import run_purge

        names = with_source(doc_ids, source) or []
        with advisory_lock(self._context.storage, "purge", "purge"), self._planning(dry_run) as context:
            return run_purge(
                context,
                names,
                break_pins=break_pins,
                include_testsets=include_testsets,
                ignore_unknown=ignore_unknown,
                search_all=search_all,
                dry_run=dry_run,
            )
