"""Which documents a filter or an undelete is about, shard by shard.

Planning names the shards, after tasks have looked up document ids. It reads no document: the task of each shard evaluates the
condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from retrodb.engine.run import Run, forget_run, open_run
from retrodb.engine.task import R, TaskFunction, TaskKind, TaskRecord
from retrodb.errors import UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.json_codec import JsonValue
from retrodb.format.records import ChunkRange
from retrodb.format.rows import deserialize_rows, serialize_rows
from retrodb.stages.context import Context
from retrodb.stages.document_lookup import find_documents
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.view.named import Name, documents_named
from retrodb.view.view import View
from retrodb.view.where import DocumentCondition


@dataclass(frozen=True)
class Choice:
    """Which documents a command is about: those that all given fields choose."""

    where: str | None = None  # a condition, see `view.where.documents_where`
    doc_ids: Sequence[Name] | None = None  # names, see `view.named.documents_named`: all versions, deleted or not
    source: str | None = None  # documents of this source

    @property
    def is_given(self) -> bool:
        """Whether any field is given."""
        return self.where is not None or self.doc_ids is not None or self.source is not None


@dataclass(frozen=True)
class ChoicePayload:
    """Choose documents of one shard."""

    snapshot: PlannedSnapshot
    shard: ChunkRange
    reason: str  # that the command gives or revokes
    where: str | None  # a condition on the documents; None chooses all, live or not
    named: bytes | None  # bitmap of the first rows of the documents to choose among; None for all


@dataclass(frozen=True)
class PlannedChoice:
    """The shards of a choice, as the payloads of their tasks."""

    payloads: tuple[ChoicePayload, ...]  # of the shards that may have a chosen document, ascending
    unknown_names: tuple[str, ...]  # names that no document has


def plan_choice(context: Context, view: View, choice: Choice, reason: str) -> PlannedChoice:
    """Find the shards of a choice. A choice without a field is all documents. Tasks look document ids up.

    Raises:
        UsageError: the source does not exist, the condition is invalid, or a name is ambiguous.
    """
    _check_source(view, choice.source)
    where = "true" if choice.where is None and choice.source is not None else choice.where
    if where is not None:
        DocumentCondition(view, where)  # refuses a wrong one
    named, unknown = None, list[str]()
    if choice.doc_ids is not None:
        sources = sorted(set(view.shards.source))
        named, unknown = documents_named(choice.doc_ids, sources, partial(find_documents, context, view))
    payloads, snapshot = [], PlannedSnapshot.of(view)
    for index, source in enumerate(view.shards.source):
        shard = view.shards.record(index).span
        rows = None if named is None else _rows_in(named, shard)
        if choice.source in (None, source) and (rows is None or len(rows)):
            bitmap = None if rows is None else serialize_rows(rows)
            payloads.append(ChoicePayload(snapshot, shard, reason, where, bitmap))
    return PlannedChoice(tuple(payloads), tuple(unknown))


def chosen_documents_of(view: View, payload: ChoicePayload, *, among: str | None) -> Int64Array | None:
    """(Q,) int64: the first chunk ids of the chosen documents of a shard, ascending; None for all.

    Args:
        among: the condition applies to the documents that this reason deletes; None is the live ones.
    """
    named = None if payload.named is None else payload.shard.first_chunk + deserialize_rows(payload.named)
    if payload.where is None:
        return named
    record = view.chunks.file("documents", *payload.shard)
    chosen = _condition(view, payload.where, among).documents_of(record)
    return chosen if named is None else np.intersect1d(chosen, named)


@lru_cache(maxsize=1)
def _condition(view: View, where: str, reason: str | None) -> DocumentCondition:
    """The condition of all tasks of a command, parsed once per process."""
    return DocumentCondition(view, where, reason=reason)


def run_choice(
    context: Context,
    command: str,
    kind: TaskKind[ChoicePayload, R],
    function: TaskFunction[ChoicePayload, R],
    planned: PlannedChoice,
    *,
    dry_run: bool,
) -> tuple[Run, list[TaskRecord[R]]]:
    """Run the task of each shard; gives the run, and one record per payload. Nothing is changed but the run's folder.

    Raises:
        UsageError: the condition is invalid for some document.
    """
    tasks = [kind.task(payload, weight=payload.shard.num_chunks) for payload in planned.payloads]
    # A decision may be made, revoked and made again: each time it is another run, because the tasks name another snapshot.
    # A dry run is another one too, because it deletes its records when it ends.
    plan = {"tasks": [task.id for task in tasks], "dry_run": dry_run}
    run = open_run(context.storage, command, plan, context.clock)
    engine = context.engine_for_chunks(sum(task.weight for task in tasks))
    try:
        return run, engine.run(run, tasks, function, context.progress, unit="chunks")
    except UsageError:
        forget_run(run)
        raise


def history_of(choice: Choice, reason: str, num_documents: int) -> dict[str, JsonValue]:
    """The arguments of a filter or undelete, as a snapshot keeps them."""
    return {"where": choice.where, "source": choice.source, "reason": reason, "documents": num_documents}


def _check_source(view: View, source: str | None) -> None:
    if source is not None and source not in view.shards.source:
        sources = ", ".join(sorted(set(view.shards.source)))
        remedy = f"There are: {sources}." if sources else "The database is empty."
        raise UsageError(f"no source '{source}'", remedy=remedy)


def _rows_in(ids: Int64Array, shard: ChunkRange) -> Int64Array:
    """The rows in a shard of those of some ascending ids that it has."""
    low, high = np.searchsorted(ids, [shard.first_chunk, shard.end])
    return ids[low:high] - shard.first_chunk
