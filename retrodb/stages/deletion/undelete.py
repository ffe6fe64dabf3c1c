"""Stage undelete: revoke one reason. What is deleted for another reason too stays deleted.

The rows must still exist, so it conflicts with a concurrent compaction (`conflict_keys.undelete`). The files of documents
that a compaction has dropped are read again by the next ingest of these files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.json_codec import JsonValue
from retrodb.format.records import FileRecord
from retrodb.format.rows import deserialize_rows
from retrodb.stages.context import Context
from retrodb.stages.deletion.filter import Choice, choose, commit_tombstones, count_by_source, history_of
from retrodb.store import conflict_keys
from retrodb.view.named import Name
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View

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
class UndeletePlan:
    """What an undelete is going to bring back."""

    view: View
    arguments: Mapping[str, JsonValue]  # for the history
    tombstones: tuple[Tombstone, ...]  # inactive ones
    compacted: Int64Array  # ids of the documents that a compaction has dropped
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
    plan = plan_undelete(context.view(), Choice(where, doc_ids, source), reason)
    return plan.result if dry_run else execute_undelete(context, plan)


def plan_undelete(view: View, choice: Choice, reason: str) -> UndeletePlan:
    """Find the chunks that the reason should no longer delete.

    Raises:
        UsageError: nothing was deleted for this reason, or it is final.
    """
    _check_reason(view, reason)
    ids, unknown = _deleted(view, reason), list[str]()
    if choice.is_given:
        chosen, unknown = choose(view, choice, reason=reason)
        ids = ids[np.isin(view.chunks.document_ids(ids), chosen)]
    # Documents that compaction dropped cannot come back by this, but they may be ingested again: the reason no longer
    # applies to their keys, and their files count as not read.
    tombstones = [tombstone(*record.span, reason, rows, active=False) for record, rows in view.chunks.split(ids)]
    compacted = compacted_documents(view, tombstones)
    ids = np.setdiff1d(ids, compacted, assume_unique=True)
    documents = np.unique(view.chunks.document_ids(ids))
    result = UndeleteResult(
        snapshot=view.snapshot.number,
        reason=reason,
        num_documents=len(documents),
        num_chunks=len(ids),
        num_live_documents=_num_live(view, ids, reason),
        num_compacted_documents=len(compacted),
        unknown_names=tuple(unknown),
        dry_run=True,
    )
    return UndeletePlan(view, history_of(choice, reason, len(documents)), tuple(tombstones), compacted, result)


def execute_undelete(context: Context, plan: UndeletePlan) -> UndeleteResult:
    """Commit the inactive tombstones of a plan, unless there are none.

    Raises:
        ConflictError: a compaction was committed meanwhile.
    """
    result = replace(plan.result, dry_run=False)
    if not plan.tombstones:
        return result
    sources, inputs = inputs_to_reread(plan.view, plan.compacted)
    keys = conflict_keys.undelete(*sources)
    snapshot = commit_tombstones(context, plan.view, "undelete", keys, plan.arguments, plan.tombstones, dropped=inputs)
    return replace(result, snapshot=snapshot)


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
    sources = sorted(count_by_source(view, compacted))
    return sources, [record for source in sources for record in view.manifest.files("inputs", source)]


def _check_reason(view: View, reason: str) -> None:
    if reason in _FINAL:
        raise UsageError(f"the reason '{reason}' cannot be revoked", remedy=_FINAL[reason])
    if reason not in view.chunks.tombstones.reasons:
        reasons = ", ".join(name for name in view.chunks.tombstones.reasons if name not in _FINAL)
        remedy = f"There are: {reasons}." if reasons else "Nothing was deleted that could come back."
        raise UsageError(f"nothing was deleted for the reason '{reason}'", remedy=remedy)


def _deleted(view: View, reason: str) -> Int64Array:
    """The ids that a reason deletes, ascending."""
    ids = [np.empty(0, np.int64)]
    for record in view.chunks.ranges:
        mask = view.chunks.tombstones.deleted_by_reason(*record.span).get(reason)
        if mask is not None:
            ids.append(record.first_chunk + np.flatnonzero(mask))
    return np.concatenate(ids)


def _num_live(view: View, ids: Int64Array, reason: str) -> int:
    """The number of documents with a chunk among `ids` that no other reason deletes."""
    live = [np.empty(0, np.int64)]
    for record, rows in view.chunks.split(ids):
        masks = view.chunks.tombstones.deleted_by_reason(*record.span)
        others = [mask[rows] for name, mask in masks.items() if name != reason]
        is_deleted = np.any(others, axis=0) if others else np.zeros(len(rows), dtype=bool)
        live.append(record.first_chunk + rows[~is_deleted])
    return len(np.unique(view.chunks.document_ids(np.concatenate(live))))
