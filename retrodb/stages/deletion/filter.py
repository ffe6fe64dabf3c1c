"""Stage filter: delete the documents that a condition or a list chooses, under a reason that `undelete` can revoke.

One small file is committed, whatever the size of the database. It takes effect at once in everything that reads. The same
filter again deletes the documents that were added since.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrodb.errors import InputError, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import AttributeEntry
from retrodb.format.json_codec import JsonValue
from retrodb.format.records import FileRecord
from retrodb.screen.tagger import Tagger, load_tagger
from retrodb.stages.context import Context
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.conflict_keys import ConflictKeys
from retrodb.view.document_blocks import document_texts
from retrodb.view.named import Name, documents_named
from retrodb.view.tombstones import Tombstone, tombstone
from retrodb.view.view import View
from retrodb.view.where import documents_where

RESERVED_REASONS = ("superseded", "removed", "purged", "near-duplicate")
"""Reasons of other commands; all reasons that begin with `leak:` are reserved too."""
_SAMPLE = 8  # documents that a dry run shows
_EXCERPT_CHARS = 240


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
class FilterPlan:
    """What a filter is going to delete."""

    view: View
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
    num_samples = _SAMPLE if dry_run else 0
    plan = plan_filter(context.view(), Choice(where, doc_ids, source), reason, num_samples=num_samples)
    return plan.result if dry_run else execute_filter(context, plan)


def plan_filter(view: View, choice: Choice, reason: str, *, num_samples: int = 0) -> FilterPlan:
    """Find the chunks to delete. Raises as `run_filter`.

    Args:
        num_samples: how many of the documents the result shows.
    """
    check_reason(reason)
    chosen, unknown = choose(view, choice)
    rows = _rows_to_delete(view, chosen, reason)
    documents = np.unique(view.chunks.document_ids(rows))
    result = FilterResult(
        snapshot=view.snapshot.number,
        reason=reason,
        num_documents=len(documents),
        num_chunks=len(rows),
        num_documents_by_source=count_by_source(view, documents),
        unknown_names=tuple(unknown),
        sample=tuple(_sample(view, documents, choice.where or "", num_samples)) if num_samples else (),
        dry_run=True,
    )
    tombstones = [tombstone(*record.span, reason, in_file) for record, in_file in view.chunks.split(rows)]
    return FilterPlan(view, history_of(choice, reason, len(documents)), tuple(tombstones), result)


def execute_filter(context: Context, plan: FilterPlan) -> FilterResult:
    """Commit the tombstones of a plan, unless there are none."""
    result = replace(plan.result, dry_run=False)
    if not plan.tombstones:
        return result
    keys = conflict_keys.filtering()
    snapshot = commit_tombstones(context, plan.view, "filter", keys, plan.arguments, plan.tombstones)
    return replace(result, snapshot=snapshot)


def check_reason(reason: str) -> None:
    """Raises UsageError for a reason that is not a plain name, or that belongs to another command."""
    if not re.fullmatch(r"[^\s\x00-\x1f]+( [^\s\x00-\x1f]+)*", reason) or len(reason) > 100:
        raise UsageError(f"invalid reason '{reason}'", remedy="Use a short name, such as 'toxic'.")
    if reason in RESERVED_REASONS or reason.startswith("leak:"):
        raise UsageError(f"the reason '{reason}' belongs to another command", remedy="Choose another name.")


def choose(view: View, choice: Choice, *, reason: str | None = None) -> tuple[Int64Array, list[str]]:
    """The first chunk ids of the chosen documents, ascending; and the names that no document has.

    Args:
        reason: choose among the documents that this reason deletes, instead of the live ones.

    Raises:
        UsageError: when no choice is given, or the source does not exist.
    """
    source = choice.source
    if not choice.is_given:
        raise UsageError("no documents are chosen", remedy="Give --where, --doc-ids or --source.")
    if source is not None and source not in view.shards.source:
        sources = ", ".join(sorted(set(view.shards.source)))
        remedy = f"There are: {sources}." if sources else "The database is empty."
        raise UsageError(f"no source '{source}'", remedy=remedy)
    chosen: list[Int64Array] = []
    unknown: list[str] = []
    if source is not None:
        quoted = source.replace("'", "''")
        chosen.append(documents_where(view, f"source = '{quoted}'", reason=reason))
    if choice.where is not None:
        chosen.append(documents_where(view, choice.where, reason=reason))
    if choice.doc_ids is not None:
        named, unknown = documents_named(view, choice.doc_ids)
        chosen.append(named)
    in_all = chosen[0]
    for ids in chosen[1:]:
        in_all = np.intersect1d(in_all, ids)
    return in_all, unknown


def history_of(choice: Choice, reason: str, num_documents: int) -> dict[str, JsonValue]:
    """The arguments of a filter or undelete, as a snapshot keeps them."""
    return {"where": choice.where, "source": choice.source, "reason": reason, "documents": num_documents}


def commit_tombstones(
    context: Context,
    view: View,
    command: str,
    keys: ConflictKeys,
    arguments: Mapping[str, JsonValue],
    tombstones: Sequence[Tombstone],
    *,
    dropped: Sequence[FileRecord] = (),
) -> int:
    """Commit some tombstones, and that some files are not live any more; gives the snapshot's number."""
    # A decision may be made, revoked and made again. Each time it is another run, because the snapshot is another one.
    rows = [change.rows for change in tombstones]
    plan = {"arguments": arguments, "snapshot": view.snapshot.number, "rows": rows}
    given = {key: value for key, value in arguments.items() if value is not None}
    transaction = Transaction.open(context, view, command, keys, plan=plan, arguments=given)
    transaction.add_tombstones(tombstones)
    transaction.drop_files(dropped)
    return transaction.commit().number


def _rows_to_delete(view: View, documents: Int64Array, reason: str) -> Int64Array:
    """The ids of all chunks of some documents that the reason does not delete yet."""
    ids = [np.empty(0, np.int64)]
    for record, first_rows in view.chunks.split(documents):
        rows = view.chunks.layout(record).rows_of(first_rows)
        is_deleted = view.chunks.tombstones.deleted_by_reason(*record.span).get(reason)
        ids.append(record.first_chunk + (rows if is_deleted is None else rows[~is_deleted[rows]]))
    return np.concatenate(ids)


def count_by_source(view: View, documents: Int64Array) -> dict[str, int]:
    """The number of documents of each source."""
    shards, _ = view.shards.locate(documents)
    return dict(sorted(Counter(view.shards.source[shard] for shard in shards.tolist()).items()))


def _sample(view: View, documents: Int64Array, where: str, num_samples: int) -> Iterator[FilteredDocument]:
    """Some of the documents, with what matches the condition in their texts."""
    positions = np.unique(np.linspace(0, max(len(documents) - 1, 0), num_samples).astype(np.int64))
    ids = documents[positions[: len(documents)]]
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
