"""Stage undelete: one reason's hold ends. What is deleted for another reason too stays out.

The rows must still exist, so it conflicts with a concurrent compaction (`conflict_keys.undelete`). After a compaction,
the files of the documents that it dropped are read again by the next ingest that is given them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.rows import deserialize_rows
from retrodb.stages.context import Context
from retrodb.stages.deletion.filter import by_source, choose, commit_tombstones
from retrodb.store import conflict_keys
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View

_FINAL = {
    "purged": "What was purged is gone for good.",
    "superseded": "A newer version stands in the place of each; ingest the older text again to go back.",
    "removed": "Their source no longer has them; ingest them again to bring them back.",
}
"""Reasons that cannot be taken back, and why."""


@dataclass(frozen=True)
class UndeleteResult:
    """What lost a reason to be deleted."""

    snapshot: int
    reason: str
    documents: int  # that the reason no longer deletes
    chunks: int
    live_documents: int  # of these, that have a live chunk again or still
    gone_documents: int  # that compaction has dropped: only ingesting them again brings them back
    unknown: tuple[str, ...]  # names that no document has
    dry_run: bool = False


def run_undelete(
    context: Context,
    reason: str,
    *,
    where: str | None = None,
    doc_ids: Sequence[str] | None = None,
    source: str | None = None,
    dry_run: bool = False,
) -> UndeleteResult:
    """End a reason's hold, over all documents or over those that the arguments of `run_filter` choose among them.

    Raises:
        UsageError: for a reason that never deleted anything, or that is final.
        ConflictError: when a compaction came in between.
    """
    view = context.view()
    _check_reason(view, reason)
    ids, unknown = _deleted(view, reason), list[str]()
    if where is not None or doc_ids is not None or source is not None:
        chosen, unknown = choose(view, where, doc_ids, source, reason=reason)
        ids = ids[np.isin(view.chunks.document_ids(ids), chosen)]
    # What compaction dropped cannot come back, but the reason no longer keeps it from being ingested again: neither its
    # key does, which is left of it, nor that its file was read before.
    dead = [tombstone(r.first_chunk, r.num_chunks, reason, rows, active=False) for r, rows in view.chunks.split(ids)]
    gone = compacted_documents(view, dead)
    ids = np.setdiff1d(ids, gone, assume_unique=True)
    documents = np.unique(view.chunks.document_ids(ids))
    result = UndeleteResult(
        snapshot=view.snapshot.number,
        reason=reason,
        documents=len(documents),
        chunks=len(ids),
        live_documents=_num_live(view, ids, reason),
        gone_documents=len(gone),
        unknown=tuple(unknown),
        dry_run=dry_run,
    )
    if dry_run or not dead:
        return result
    arguments = {"where": where, "source": source, "reason": reason, "documents": len(documents)}
    sources, inputs = inputs_to_reread(view, gone)
    own = conflict_keys.undelete(*sources)
    return replace(result, snapshot=commit_tombstones(context, view, "undelete", own, arguments, dead, drops=inputs))


def compacted_documents(view: View, tombstones: Iterable[Tombstone]) -> Int64Array:
    """The ids, ascending, over which tombstones end a reason's hold though compaction has dropped them: one of a document."""
    gone = [np.empty(0, np.int64)]
    for each in tombstones:
        if not each.active:
            rows = deserialize_rows(each.rows)
            gone.append(each.first_chunk + rows[~view.chunks.present_mask(each.first_chunk, each.num_chunks)[rows]])
    return np.unique(np.concatenate(gone))


def inputs_to_reread(view: View, gone: Int64Array) -> tuple[list[str], list[str]]:
    """The sources of documents that compaction dropped, and the lists of their files that were read.

    Without these lists an ingest that is given the files reads them again.
    """
    sources = sorted(by_source(view, gone))
    return sources, [record.path for source in sources for record in view.manifest.files("inputs", source)]


def _check_reason(view: View, reason: str) -> None:
    if reason in _FINAL:
        raise UsageError(f"'{reason}' cannot be taken back", remedy=_FINAL[reason])
    if reason not in view.chunks.tombstones.reasons:
        have = ", ".join(name for name in view.chunks.tombstones.reasons if name not in _FINAL)
        remedy = f"There are: {have}." if have else "Nothing was deleted that could come back."
        raise UsageError(f"nothing was ever deleted for the reason '{reason}'", remedy=remedy)


def _deleted(view: View, reason: str) -> Int64Array:
    """The ids that a reason deletes, ascending."""
    ids = [np.empty(0, np.int64)]
    for record in view.chunks.ranges:
        mask = view.chunks.tombstones.deleted_by_reason(record.first_chunk, record.num_chunks).get(reason)
        if mask is not None:
            ids.append(record.first_chunk + np.flatnonzero(mask))
    return np.concatenate(ids)


def _num_live(view: View, ids: Int64Array, reason: str) -> int:
    """Documents of chunks that no other reason deletes."""
    live = [np.empty(0, np.int64)]
    for record, rows in view.chunks.split(ids):
        masks = view.chunks.tombstones.deleted_by_reason(record.first_chunk, record.num_chunks)
        others = [mask[rows] for name, mask in masks.items() if name != reason]
        held = np.any(others, axis=0) if others else np.zeros(len(rows), dtype=bool)
        live.append(record.first_chunk + rows[~held])
    return len(np.unique(view.chunks.document_ids(np.concatenate(live))))
