"""Stage filter: documents that a person's rule or list chooses get tombstones, under a reason that can be taken back.

One small file is committed, whatever the size of the database; everything that reads obeys it from then on. The same rule again
deletes what came since, and nothing where nothing did.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from retrodb.engine.run import open_run
from retrodb.errors import InputError, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import AttributeEntry
from retrodb.format.kinds import path_of
from retrodb.format.parquet import write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord
from retrodb.screen.tagger import Tagger, load_tagger
from retrodb.stages.context import Context
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.publish import publish
from retrodb.view.document_blocks import document_texts
from retrodb.view.named import documents_named
from retrodb.view.tombstones import Tombstone, tombstone, tombstones_to_table
from retrodb.view.view import View
from retrodb.view.where import documents_where

RESERVED_REASONS = ("superseded", "removed", "purged", "near-duplicate")
"""Reasons that other commands give; so are all that begin with `leak:`."""
_SAMPLE = 8  # documents that a dry run shows
_EXCERPT_CHARS = 240


@dataclass(frozen=True)
class FilteredDocument:
    """One of the documents that a filter chose."""

    source: str
    doc_id: str
    excerpt: str  # around what matched, or the beginning
    matched: tuple[str, ...]  # the pieces of the text that the condition's word lists, expressions and strings met


@dataclass(frozen=True)
class FilterResult:
    """What a filter removed."""

    snapshot: int
    reason: str
    documents: int  # that got a tombstone now
    chunks: int
    by_source: Mapping[str, int]  # of these documents
    unknown: tuple[str, ...]  # names that no document has
    sample: tuple[FilteredDocument, ...]  # of a dry run: some of the documents, spread evenly
    dry_run: bool = False


def run_filter(
    context: Context,
    *,
    where: str | None = None,
    doc_ids: Sequence[str] | None = None,
    source: str | None = None,
    reason: str = "filter",
    dry_run: bool = False,
) -> FilterResult:
    """Delete documents for a reason.

    Args:
        where: a condition as `view.where.documents_where` takes it; live documents only.
        doc_ids: names as `view.named.documents_named` takes them; all versions, deleted for other reasons or not.
        source: documents of this source only; alone, all of them that are live.

    Raises:
        UsageError: when nothing says which, or for a reason that belongs to another command.
    """
    check_reason(reason)
    view = context.view()
    chosen, unknown = choose(view, where, doc_ids, source)
    rows = _rows_to_delete(view, chosen, reason)
    documents = np.unique(view.chunks.document_ids(rows))
    result = FilterResult(
        snapshot=view.snapshot.number,
        reason=reason,
        documents=len(documents),
        chunks=len(rows),
        by_source=by_source(view, documents),
        unknown=tuple(unknown),
        sample=tuple(_sample(view, documents, where)) if dry_run else (),
        dry_run=dry_run,
    )
    if dry_run or not len(rows):
        return result
    arguments = {"where": where, "source": source, "reason": reason, "documents": len(documents)}
    tombstones = [
        tombstone(record.first_chunk, record.num_chunks, reason, own) for record, own in view.chunks.split(rows)
    ]
    return replace(
        result, snapshot=commit_tombstones(context, view, "filter", conflict_keys.filtering(), arguments, tombstones)
    )


def check_reason(reason: str) -> None:
    """Raises UsageError for a reason that is no plain name, or that another command gives."""
    if not re.fullmatch(r"[^\s\x00-\x1f]+( [^\s\x00-\x1f]+)*", reason) or len(reason) > 100:
        raise UsageError(f"'{reason}' is no reason", remedy="Use a short name, such as 'toxic'.")
    if reason in RESERVED_REASONS or reason.startswith("leak:"):
        raise UsageError(f"the reason '{reason}' belongs to another command", remedy="Choose another name.")


def choose(
    view: View, where: str | None, doc_ids: Sequence[str] | None, source: str | None, *, reason: str | None = None
) -> tuple[Int64Array, list[str]]:
    """The first chunk ids of the documents that all of the given choices name, ascending; and names that no document has.

    Args:
        reason: choose among the documents that this reason deletes, instead of the live ones.

    Raises:
        UsageError: when no choice is given, or the source is not there.
    """
    if where is None and doc_ids is None and source is None:
        raise UsageError("nothing says which documents", remedy="Give --where, --doc-ids or --source.")
    if source is not None and source not in view.shards.source:
        have = ", ".join(sorted(set(view.shards.source)))
        raise UsageError(f"no source '{source}'", remedy=f"There are: {have}." if have else "The database is empty.")
    chosen: list[Int64Array] = []
    unknown: list[str] = []
    if source is not None:
        quoted = source.replace("'", "''")
        chosen.append(documents_where(view, f"source = '{quoted}'", reason=reason))
    if where is not None:
        chosen.append(documents_where(view, where, reason=reason))
    if doc_ids is not None:
        named, unknown = documents_named(view, doc_ids)
        chosen.append(named)
    both = chosen[0]
    for ids in chosen[1:]:
        both = np.intersect1d(both, ids)
    return both, unknown


def commit_tombstones(
    context: Context,
    view: View,
    command: str,
    own: conflict_keys.ConflictKeys,
    arguments: Mapping[str, Any],
    dead: list[Tombstone],
    *,
    drops: Sequence[str] = (),
) -> int:
    """Commit some tombstones, and that some files are live no more; gives the snapshot's number."""
    table = tombstones_to_table(dead)
    # The same decision may be taken, taken back and taken again: each time is a run of its own.
    plan = {"arguments": arguments, "snapshot": view.snapshot.number, "rows": [each.rows.hex() for each in dead]}
    run = open_run(context.storage, command, plan, context.clock)
    file = publish(context.storage, "tombstones", path_of("tombstones", task=run.id), partial(write_table, table=table))
    change = Change(
        transaction=run.id,
        command=command,
        arguments={key: value for key, value in arguments.items() if value is not None},
        clock=run.clock,
        conflict_keys=own,
        files=[file],
        drops=[DropRecord(OP_DROP_FILE, path) for path in drops],
    )
    return commit(context.storage, view.snapshot, change).number


def _rows_to_delete(view: View, documents: Int64Array, reason: str) -> Int64Array:
    """The ids of all chunks of some documents that the reason does not delete yet."""
    ids = [np.empty(0, np.int64)]
    for record, first_rows in view.chunks.split(documents):
        rows = view.chunks.layout(record).rows_of(first_rows)
        gone = view.chunks.tombstones.deleted_by_reason(record.first_chunk, record.num_chunks).get(reason)
        ids.append(record.first_chunk + (rows if gone is None else rows[~gone[rows]]))
    return np.concatenate(ids)


def by_source(view: View, documents: Int64Array) -> dict[str, int]:
    """How many of some documents each source has."""
    shards, _ = view.shards.locate(documents)
    return dict(sorted(Counter(view.shards.source[shard] for shard in shards.tolist()).items()))


def _sample(view: View, documents: Int64Array, where: str | None) -> Iterator[FilteredDocument]:
    """Some of the documents, with what the condition met in their texts."""
    ids = documents[np.unique(np.linspace(0, max(len(documents) - 1, 0), _SAMPLE).astype(np.int64))[: len(documents)]]
    taggers = list(_taggers(view, where or ""))
    literals = [piece for piece in re.findall(r"'([^']+)'", where or "") if re.search(r"\btext\b", where or "", re.I)]
    for document, text in zip(view.chunks.documents(ids), document_texts(view.chunks, ids).to_pylist(), strict=True):
        assert document is not None, "a chosen document is there"
        words = [word for literal in literals for word in literal.split("%") if word]
        matched = [m[0] for word in words for m in re.finditer(re.escape(word), text, re.IGNORECASE)]
        matched += [piece for tagger in taggers for piece in tagger.excerpt(text)]
        start = max(text.find(matched[0]) - _EXCERPT_CHARS // 2, 0) if matched else 0
        excerpt = text[start : start + _EXCERPT_CHARS]
        yield FilteredDocument(document["source"], document["doc_id"], excerpt, tuple(dict.fromkeys(matched)))


def _taggers(view: View, where: str) -> Iterator[Tagger]:
    """The word lists and expressions behind the scores that a condition names, where they are still what they were."""
    for name in view.snapshot.names(AttributeEntry):
        entry = view.snapshot.existing(AttributeEntry, name)
        if entry.definition["kind"] not in ("wordlist", "regex") or not re.search(rf"\b{name}\b", where, re.I):
            continue
        try:
            tagger = load_tagger(entry.params)
        except InputError:  # the list lies elsewhere now: what it met cannot be shown
            continue
        if tagger.definition().to_json() == entry.definition:
            yield tagger
