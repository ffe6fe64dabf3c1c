"""Files that may name or quote a purged document: leak reports, rejected records, lists of inputs, and test sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from retrodb.dedup.shingles import shingle_sets
from retrodb.engine.run import Run
from retrodb.format.arrays import BoolArray
from retrodb.format.document_keys import key_of
from retrodb.format.entries import Entry, SourceEntry, TestsetEntry, entry_key
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import FileRecord
from retrodb.maintain.purge.targets import Targets
from retrodb.maintain.purge.traces import Traces, string_pieces
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.transaction import Transaction
from retrodb.store import conflict_keys
from retrodb.store.digest import identity
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa


_ENTRY_OF_KIND: dict[str, type[Entry]] = {"reports": TestsetEntry, "rejects": SourceEntry, "inputs": SourceEntry}
"""Kinds of files whose rows may name a document -> the entry that changes whenever a command replaces such files."""
_TEXT_COLUMNS = ("path", "place", "excerpt", "item")


def remove_mentions(context: Context, run: Run, targets: Targets, traces: Traces) -> None:
    """Remove the rows that name or quote a purged document from reports, rejects and lists of inputs, in one commit."""
    view = context.view()
    transaction = Transaction.of_run(
        context, view, run, "purge", conflict_keys.ConflictKeys(frozenset(), frozenset()), step="records"
    )
    reads = {conflict_keys.RESTORE}
    for record, table, is_mention in _tables_with_mentions(view, targets, traces):
        transaction.drop_files([record])
        reads.add(entry_key(_ENTRY_OF_KIND[record.kind], record.name))
        if not is_mention.all():
            path = path_of(record.kind, task=identity(run.id, record.path), name=record.name)
            write = partial(write_table, table=table.filter(~is_mention))
            transaction.publish(record.kind, path, write, name=record.name)
    if transaction.drops:
        transaction.conflict_keys = conflict_keys.ConflictKeys(frozenset(reads), frozenset())
        transaction.commit()


def _tables_with_mentions(
    view: View, targets: Targets, traces: Traces
) -> Iterator[tuple[FileRecord, pa.Table, BoolArray]]:
    """The files that mention a purged document, and (N,) bool: which of their rows do."""
    for kind in _ENTRY_OF_KIND:
        for record in view.manifest.files(kind):
            table = read_table(view.files.open(record))
            is_mention = np.zeros(table.num_rows, dtype=bool)
            if kind == "reports":
                is_mention |= _is_of_purged(table, targets)
            for name in _TEXT_COLUMNS:
                if name in table.column_names:
                    is_mention |= _mentions_purged(table.column(name).combine_chunks(), targets, traces)
            if is_mention.any():
                yield record, table, is_mention


def _is_of_purged(table: pa.Table, targets: Targets) -> BoolArray:
    """(N,) bool: whether each row is about a purged document, by source and id."""
    keys = {(high << 64) | low for high, low in targets.keys.tolist()}
    pairs = zip(table.column("source").to_pylist(), table.column("doc_id").to_pylist(), strict=True)
    return np.array([key_of(*pair) in keys for pair in pairs], dtype=bool)


def _mentions_purged(strings: pa.Array, targets: Targets, traces: Traces) -> BoolArray:
    """(N,) bool: whether each string contains an id of a purged document, or quotes it."""
    has_id = [any(piece in targets.id_strings for piece in string_pieces(text)) for text in strings.to_pylist()]
    return np.array(has_id, dtype=bool) | quotes_purged(strings, traces)


def quotes_purged(strings: pa.Array, traces: Traces) -> BoolArray:
    """(N,) bool: whether each string has 13 words in a row, or all of its few words, in common with a purged document."""
    import pyarrow as pa

    is_quote = np.zeros(len(strings), dtype=bool)
    sets = shingle_sets(strings.cast(pa.large_string()))
    string_of_key = np.repeat(np.arange(len(strings)), sets.sizes())
    is_quote[string_of_key[traces.contains("shingle", sets.keys)]] = True
    short = np.flatnonzero(sets.whole_keys)
    is_quote[short[traces.contains("shingle", sets.whole_keys[short])]] = True
    return is_quote


def remove_quoting_items(context: Context, run: Run, traces: Traces, names: Sequence[str]) -> None:
    """Register test sets again without the items that quote a purged document. One without other items is removed."""
    from retrodb.stages.dedup.command import screen_with

    for name in names:
        view = context.view()
        params = view.snapshot.existing(TestsetEntry, name).params
        files = view.manifest.files("testsets", name)
        [record] = [record for record in files if record.path.endswith("/items.parquet")]
        items = read_table(view.files.open(record))
        is_quote = quotes_purged(items.column("text").combine_chunks(), traces)
        if not is_quote.any():
            continue
        if is_quote.all():
            _remove_testset(context, view, run, name)
        else:
            kept = items.filter(~is_quote)
            screen_with(context, name, kept.column("id").to_pylist(), kept.column("text").combine_chunks(), params)


def testsets_to_search(view: View, *, include_all: bool, has_held_out: bool) -> list[str]:
    """The test sets whose items are removed: all, or only that of the held-out documents, which is made from them."""
    names = view.snapshot.names(TestsetEntry)
    return [name for name in names if include_all or (has_held_out and name == HELD_OUT_SET)]


def _remove_testset(context: Context, view: View, run: Run, name: str) -> None:
    transaction = Transaction.of_run(
        context,
        view,
        run,
        "purge",
        conflict_keys.dedup(name),
        arguments={"testset": name},
        step=f"remove test set {name}",
    )
    transaction.drop_files([*view.manifest.files("testsets", name), *view.manifest.files("reports", name)])
    transaction.remove_entry(TestsetEntry, name)
    transaction.commit()
