"""Ingest and screening in one commit: no snapshot shows a new document that leaks a registered test set.

The new shards are screened when the ingest is about to be committed, in a view that shows them with the ids that they would
get. If another commit comes first, they get other ids: the tombstones and the report are then written again for these,
while the finished scans, which know no ids, are used again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from retrodb.config import IngestParams
from retrodb.format.entries import QueriesEntry, TestsetEntry
from retrodb.format.snapshot import Snapshot
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.ingest.command import execute_ingest
from retrodb.stages.ingest.plan import IngestResult, plan_ingest
from retrodb.stages.transaction import Transaction


def run_screened_ingest(
    context: Context,
    inputs: Sequence[str],
    params: IngestParams,
    *,
    files_from: Sequence[str] = (),
    dry_run: bool = False,
    given: Collection[str] | None = None,
    change_options: bool = False,
) -> IngestResult:
    """Ingest files into one source, and delete the new documents that leak a registered test set.

    The held-out documents are a test set too. Shards that an earlier command left unscreened are screened as well.

    Args:
        given, change_options: see `plan_ingest`.

    Raises:
        UsageError, InputError: for invalid inputs or options, or options that differ from those of the last ingest.
        TooManyRejects: more records are rejected than `max_reject_rate` allows. Nothing is committed.
        ConflictError: another ingest of the source committed first.
    """
    plan = plan_ingest(context, inputs, params, files_from=files_from, given=given, change_options=change_options)
    if dry_run:
        return plan.result
    result = execute_ingest(context, plan, complete=_screen)
    if result.snapshot == plan.view.snapshot.number and _has_testset(plan.view.snapshot):
        from retrodb.stages.dedup.command import screen_new_shards

        screen_new_shards(context)
    return result


def _has_testset(snapshot: Snapshot) -> bool:
    """Whether there are test sets, or held-out documents to make one of."""
    return bool(snapshot.names(TestsetEntry)) or snapshot.entry(QueriesEntry, HELD_OUT_SET) is not None


def _screen(ingest: Transaction) -> None:
    if _has_testset(ingest.view.snapshot):
        # Imported late, because it loads a compiler that a database without test sets does not need.
        from retrodb.stages.dedup.command import screen_staged

        screen_staged(ingest)
