"""Stage undelete: revoke one reason. What is deleted for another reason too stays deleted.

The rows must still exist, so it conflicts with a concurrent compaction (`conflict_keys.undelete`). The files of documents
that a compaction has dropped are read again by the next ingest of these files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.engine.run import Run, add_counts, forget_run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.json_codec import JsonValue
from retrodb.format.records import FileRecord
from retrodb.format.rows import deserialize_rows, serialize_rows
from retrodb.stages.context import Context
from retrodb.stages.deletion.choice import (
    Choice,
    ChoicePayload,
    chosen_documents_of,
    history_of,
    plan_choice,
    run_choice,
)
from retrodb.stages.deletion.filter import commit_tombstones
from retrodb.stages.planned_view import planned_view
from retrodb.store import conflict_keys
from retrodb.store.storage import Storage
from retrodb.view.named import Name
from retrodb.view.tombstones import Tombstone
from retrodb.view.view import View

STAGE_VERSION = 1
_FINAL = {
    "purged": "Purged documents cannot come back.",
    "superseded": "Each has a newer version; ingest the older text again to go back.",
    "removed": "Their source no longer has them; ingest them again to bring them back.",
}
"""Reasons that cannot be revoked, and why."""


@dataclass(frozen=True)
class UndeleteResult:
    """What a reason no longer deletes."""

    snapshot: int
    reason: str
    num_documents: int  # that the reason no longer deletes
    num_chunks: int
    num_live_documents: int  # of these, the ones with a live chunk now
    num_compacted_documents: int  # that a compaction has dropped: ingest their files again to bring them back
    unknown_names: tuple[str, ...]  # names that no document has
    dry_run: bool = False


@dataclass(frozen=True)
class UndeletedRows:
    """The rows of one shard that a reason no longer deletes."""

    rows: bytes  # bitmap, also of rows that a compaction has dropped


UNDELETE = TaskKind[ChoicePayload, UndeletedRows]("undelete", STAGE_VERSION, UndeletedRows)


@dataclass(frozen=True)
class UndeletePlan:
    """What an undelete is going to bring back."""

    view: View
    run: Run  # that has the rows of each shard
    arguments: Mapping[str, JsonValue]  # for the history
    tombstones: tuple[Tombstone, ...]  # inactive ones
    sources: tuple[str, ...]  # of the documents that a compaction has dropped
    result: UndeleteResult  # of a dry run


def run_undelete(
    context: Context,
    reason: str,
    *,
    where: str | None = None,
    doc_ids: Sequence[Name] | None = None,
    source: str | None = None,
    dry_run: bool = False,
) -> UndeleteResult:
    """Revoke a reason for all documents, or for those that the arguments of `run_filter` choose among them.

    Raises:
        UsageError: nothing was deleted for this reason, or it is final.
        ConflictError: a compaction was committed meanwhile.
    """
    plan = plan_undelete(context, Choice(where, doc_ids, source), reason, dry_run=dry_run)
    if not dry_run and plan.tombstones:
        return execute_undelete(context, plan)
    forget_run(plan.run)
    return replace(plan.result, dry_run=dry_run)


def plan_undelete(context: Context, choice: Choice, reason: str, *, dry_run: bool = False) -> UndeletePlan:
    """Find the chunks that the reason should no longer delete, in one task per shard, stored in the run's folder.

    Raises:
        UsageError: nothing was deleted for this reason, or it is final.
    """
    view = context.view()
    _check_reason(view, reason)
    planned = plan_choice(context, view, choice, reason)
    run, records = run_choice(context, "undelete", UNDELETE, run_undelete_task, planned, dry_run=dry_run)
    pairs = [(payload.shard, record) for payload, record in zip(planned.payloads, records, strict=True)]
    tombstones = [Tombstone(*shard, reason, active=False, rows=r.result.rows) for shard, r in pairs if r.counts["rows"]]
    compacted = [shard.first_chunk for shard, record in pairs if record.counts["compacted_documents"]]
    shards, _ = view.shards.locate(np.array(compacted, dtype=np.int64))
    counts = defaultdict(int, add_counts(records))
    result = UndeleteResult(
        snapshot=view.snapshot.number,
        reason=reason,
        num_documents=counts["documents"],
        num_chunks=counts["chunks"],
        num_live_documents=counts["live_documents"],
        num_compacted_documents=counts["compacted_documents"],
        unknown_names=planned.unknown_names,
        dry_run=True,
    )
    sources = tuple(sorted({view.shards.source[shard] for shard in shards.tolist()}))
    arguments = history_of(choice, reason, result.num_documents)
    return UndeletePlan(view, run, arguments, tuple(tombstones), sources, result)


def execute_undelete(context: Context, plan: UndeletePlan) -> UndeleteResult:
    """Commit the inactive tombstones of a plan.

    Raises:
        ConflictError: a compaction was committed meanwhile.
    """
    keys = conflict_keys.undelete(*plan.sources)
    inputs = _inputs_of(plan.view, plan.sources)
    snapshot = commit_tombstones(context, plan.view, plan.run, keys, plan.arguments, plan.tombstones, dropped=inputs)
    return replace(plan.result, snapshot=snapshot, dry_run=False)


def run_undelete_task(
    storage: Storage, task: Task[ChoicePayload, UndeletedRows], clock: str
) -> TaskRecord[UndeletedRows]:
    """Find the rows of chosen documents that a reason deletes in a shard.

    Documents that compaction dropped cannot come back by this, but they may be ingested again: the reason no longer
    applies to their keys, and their files count as not read.
    """
    del clock  # what comes back does not depend on the time
    shard, reason = task.payload.shard, task.payload.reason
    view = planned_view(storage, task.payload.snapshot)
    masks = view.chunks.tombstones.deleted_by_reason(*shard)
    ids = shard.first_chunk + np.flatnonzero(masks.get(reason, np.zeros(0, dtype=bool)))
    chosen = chosen_documents_of(view, task.payload, among=reason) if len(ids) else None
    if chosen is not None:
        ids = ids[np.isin(view.chunks.document_ids(ids), chosen)]
    rows = ids - shard.first_chunk
    present = rows[view.chunks.present_mask(*shard)[rows]]
    others = [mask[present] for name, mask in masks.items() if name != reason]
    is_live = ~np.any(others, axis=0) if others else np.ones(len(present), dtype=bool)
    documents = view.chunks.document_ids(shard.first_chunk + present)
    counts = {
        "rows": len(rows),
        "chunks": len(present),
        "documents": len(np.unique(documents)),
        "live_documents": len(np.unique(documents[is_live])),
        "compacted_documents": len(rows) - len(present),  # their keys have one row for each
    }
    return TaskRecord(task.id, (), UndeletedRows(serialize_rows(rows)), counts)


def compacted_documents(view: View, tombstones: Iterable[Tombstone]) -> Int64Array:
    """The ids, ascending, for which tombstones revoke a reason though compaction has dropped them: one id per document."""
    compacted = [np.empty(0, np.int64)]
    for change in tombstones:
        if not change.active:
            rows = deserialize_rows(change.rows)
            is_dropped = ~view.chunks.present_mask(change.first_chunk, change.num_chunks)[rows]
            compacted.append(change.first_chunk + rows[is_dropped])
    return np.unique(np.concatenate(compacted))


def inputs_to_reread(view: View, compacted: Int64Array) -> tuple[list[str], list[FileRecord]]:
    """The sources of documents that compaction dropped, and the lists of input files that were read for them.

    Without these lists an ingest of the same files reads them again.
    """
    shards, _ = view.shards.locate(compacted)
    sources = sorted({view.shards.source[shard] for shard in np.unique(shards).tolist()})
    return sources, _inputs_of(view, sources)


def _inputs_of(view: View, sources: Iterable[str]) -> list[FileRecord]:
    return [record for source in sources for record in view.manifest.files("inputs", source)]


def _check_reason(view: View, reason: str) -> None:
    if reason in _FINAL:
        raise UsageError(f"the reason '{reason}' cannot be revoked", remedy=_FINAL[reason])
    if reason not in view.chunks.tombstones.reasons:
        reasons = ", ".join(name for name in view.chunks.tombstones.reasons if name not in _FINAL)
        remedy = f"There are: {reasons}." if reasons else "Nothing was deleted that could come back."
        raise UsageError(f"nothing was deleted for the reason '{reason}'", remedy=remedy)
