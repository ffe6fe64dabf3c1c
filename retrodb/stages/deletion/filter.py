"""Stage filter: delete the documents that a condition or a list chooses, under a reason that `undelete` can revoke.

The documents of each shard are chosen in a task, see `choice.py`. One small file is committed, whatever the size of the
database. It takes effect at once in everything that reads. The same filter again deletes the documents that were added since.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.engine.run import Run, add_counts, forget_run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import InputError, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import AttributeEntry
from retrodb.format.json_codec import JsonValue
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.format.rows import deserialize_rows, serialize_rows
from retrodb.screen.tagger import Tagger, load_tagger
from retrodb.stages.context import Context
from retrodb.stages.deletion.choice import (
    Choice,
    ChoicePayload,
    chosen_documents_of,
    history_of,
    plan_choice,
    run_choice,
)
from retrodb.stages.planned_view import planned_view
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.store.storage import Storage
from retrodb.view.document_blocks import document_texts
from retrodb.view.named import Name
from retrodb.view.tombstones import Tombstone
from retrodb.view.view import View

STAGE_VERSION = 2
RESERVED_REASONS = ("superseded", "removed", "purged", "near-duplicate")
"""Reasons of other commands; all reasons that begin with `leak:` are reserved too."""
_SAMPLE = 8  # documents that a dry run shows
_EXCERPT_CHARS = 240


@dataclass(frozen=True)
class FilteredDocument:
    """One of the documents that a filter chose."""

    source: str
    doc_id: str
    excerpt: str  # around what matched, or the beginning
    matched: tuple[str, ...]  # pieces of the text that match the condition's word lists, expressions and strings


@dataclass(frozen=True)
class FilterResult:
    """What a filter deleted."""

    snapshot: int
    reason: str
    num_documents: int  # deleted now
    num_chunks: int
    num_documents_by_source: Mapping[str, int]  # number of these documents
    unknown_names: tuple[str, ...]  # names that no document has
    sample: tuple[FilteredDocument, ...]  # of a dry run: some of the documents, evenly distributed
    dry_run: bool = False


@dataclass(frozen=True)
class FilteredRows:
    """What a filter deletes of one shard."""

    rows: bytes  # bitmap of the rows
    documents: bytes  # bitmap of the first rows of their documents


FILTER = TaskKind[ChoicePayload, FilteredRows]("filter", STAGE_VERSION, FilteredRows)


@dataclass(frozen=True)
class FilterPlan:
    """What a filter is going to delete."""

    view: View
    run: Run  # that has the rows of each shard
    arguments: Mapping[str, JsonValue]  # for the history
    tombstones: tuple[Tombstone, ...]
    result: FilterResult  # of a dry run


def run_filter(
    context: Context,
    *,
    where: str | None = None,
    doc_ids: Sequence[Name] | None = None,
    source: str | None = None,
    reason: str = "filter",
    dry_run: bool = False,
) -> FilterResult:
    """Delete documents for a reason.

    Args:
        where: a condition as `view.where.documents_where` takes it; live documents only.
        doc_ids: names as `view.named.documents_named` takes them; all versions, also of documents deleted for other reasons.
        source: documents of this source only; alone, all of them that are live.

    Raises:
        UsageError: no choice is given, or the reason belongs to another command.
    """
    plan = plan_filter(context, Choice(where, doc_ids, source), reason, dry_run=dry_run)
    if not dry_run and plan.tombstones:
        return execute_filter(context, plan)
    forget_run(plan.run)
    return replace(plan.result, dry_run=dry_run)


def plan_filter(context: Context, choice: Choice, reason: str, *, dry_run: bool = False) -> FilterPlan:
    """Find the chunks to delete, in one task per shard, whose results are stored in the run's folder. Raises as `run_filter`."""
    check_reason(reason)
    if not choice.is_given:
        raise UsageError("no documents are chosen", remedy="Give --where, --doc-ids or --source.")
    view = context.view()
    planned = plan_choice(context, view, choice, reason)
    run, records = run_choice(context, "filter", FILTER, run_filter_task, planned, dry_run=dry_run)
    shards = [payload.shard for payload in planned.payloads]
    counts = add_counts(records)
    num_documents = counts.get("documents", 0)
    result = FilterResult(
        snapshot=view.snapshot.number,
        reason=reason,
        num_documents=num_documents,
        num_chunks=counts.get("chunks", 0),
        num_documents_by_source=_count_by_source(view, shards, records),
        unknown_names=planned.unknown_names,
        sample=tuple(_sample(view, _sample_ids(shards, records), choice.where or "")) if dry_run else (),
        dry_run=True,
    )
    tombstones = [
        Tombstone(*shard, reason, active=True, rows=record.result.rows)
        for shard, record in zip(shards, records, strict=True)
        if record.counts["chunks"]
    ]
    return FilterPlan(view, run, history_of(choice, reason, num_documents), tuple(tombstones), result)


def execute_filter(context: Context, plan: FilterPlan) -> FilterResult:
    """Commit the tombstones of a plan."""
    keys = conflict_keys.filtering()
    snapshot = commit_tombstones(context, plan.view, plan.run, keys, plan.arguments, plan.tombstones)
    return replace(plan.result, snapshot=snapshot, dry_run=False)


def run_filter_task(storage: Storage, task: Task[ChoicePayload, FilteredRows], clock: str) -> TaskRecord[FilteredRows]:
    """Find the rows of a shard that the reason does not delete yet, of all chosen documents."""
    del clock  # what is deleted does not depend on the time
    payload = task.payload
    view = planned_view(storage, payload.snapshot)
    chosen = chosen_documents_of(view, payload, among=None)
    assert chosen is not None, "a filter is given a choice"
    layout = view.chunks.layout(view.chunks.file("documents", *payload.shard))
    rows = layout.rows_of(chosen - payload.shard.first_chunk)
    rows = rows[view.chunks.present_mask(*payload.shard)[rows]]  # compaction drops chunks of documents that stay
    is_deleted = view.chunks.tombstones.deleted_by_reason(*payload.shard).get(payload.reason)
    if is_deleted is not None:
        rows = rows[~is_deleted[rows]]
    documents = np.unique(layout.first_row[layout.document_of(rows)])
    result = FilteredRows(serialize_rows(rows), serialize_rows(documents))
    return TaskRecord(task.id, (), result, {"documents": len(documents), "chunks": len(rows)})


def check_reason(reason: str) -> None:
    """Raises UsageError for a reason that is not a plain name, or that belongs to another command."""
    if not re.fullmatch(r"[^\s\x00-\x1f]+( [^\s\x00-\x1f]+)*", reason) or len(reason) > 100:
        raise UsageError(f"invalid reason '{reason}'", remedy="Use a short name, such as 'toxic'.")
    if reason in RESERVED_REASONS or reason.startswith("leak:"):
        raise UsageError(f"the reason '{reason}' belongs to another command", remedy="Choose another name.")


def commit_tombstones(
    context: Context,
    view: View,
    run: Run,
    keys: ConflictKeys,
    arguments: Mapping[str, JsonValue],
    tombstones: Sequence[Tombstone],
    *,
    dropped: Sequence[FileRecord] = (),
) -> int:
    """Commit some tombstones, and that some files are not live any more; gives the snapshot's number."""
    given = {key: value for key, value in arguments.items() if value is not None}
    transaction = Transaction.of_run(context, view, run, run.command, keys, arguments=given)
    transaction.add_tombstones(tombstones)
    transaction.drop_files(dropped)
    return transaction.commit().number


def _count_by_source(
    view: View, shards: Sequence[ChunkRange], records: Sequence[TaskRecord[FilteredRows]]
) -> dict[str, int]:
    """The number of documents of each source."""
    indices, _ = view.shards.locate(np.array([shard.first_chunk for shard in shards], dtype=np.int64))
    counts = Counter[str]()
    for index, record in zip(indices.tolist(), records, strict=True):
        counts[view.shards.source[index]] += record.counts["documents"]
    return {source: count for source, count in sorted(counts.items()) if count}


def _sample_ids(shards: Sequence[ChunkRange], records: Sequence[TaskRecord[FilteredRows]]) -> Int64Array:
    """The ids of some of the documents, evenly distributed."""
    ends = np.cumsum([record.counts["documents"] for record in records], dtype=np.int64)
    num_documents = int(ends[-1]) if len(ends) else 0
    positions = np.unique(np.linspace(0, max(num_documents - 1, 0), _SAMPLE).astype(np.int64))[:num_documents]
    ids = []
    for index, position in zip(np.searchsorted(ends, positions, "right").tolist(), positions.tolist(), strict=True):
        documents = deserialize_rows(records[index].result.documents)
        ids.append(shards[index].first_chunk + int(documents[position - int(ends[index])]))  # counted from the end
    return np.array(ids, dtype=np.int64)


def _sample(view: View, ids: Int64Array, where: str) -> Iterator[FilteredDocument]:
    """Some documents, with what matches the condition in their texts."""
    taggers = list(_taggers(view, where))
    literals = [piece for piece in re.findall(r"'([^']+)'", where) if re.search(r"\btext\b", where, re.I)]
    for document, text in zip(view.chunks.documents(ids), document_texts(view.chunks, ids).to_pylist(), strict=True):
        assert document is not None, "a chosen document exists"
        words = [word for literal in literals for word in literal.split("%") if word]
        matched = [m[0] for word in words for m in re.finditer(re.escape(word), text, re.IGNORECASE)]
        matched += [piece for tagger in taggers for piece in tagger.excerpt(text)]
        start = max(text.find(matched[0]) - _EXCERPT_CHARS // 2, 0) if matched else 0
        excerpt = text[start : start + _EXCERPT_CHARS]
        yield FilteredDocument(document["source"], document["doc_id"], excerpt, tuple(dict.fromkeys(matched)))


def _taggers(view: View, where: str) -> Iterator[Tagger]:
    """The word lists and expressions behind the scores that a condition names, unless they have changed since."""
    for name in view.snapshot.names(AttributeEntry):
        entry = view.snapshot.existing(AttributeEntry, name)
        if entry.definition["kind"] not in ("wordlist", "regex") or not re.search(rf"\b{name}\b", where, re.I):
            continue
        try:
            tagger = load_tagger(entry.params)
        except InputError:  # the word list was moved: what it matches cannot be shown
            continue
        if tagger.definition().to_json() == entry.definition:
            yield tagger
