"""Records beside the documents that may speak of a purged one: leak reports, rejects, lists of inputs, and test sets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.dedup.shingles import shingle_sets
from retrodb.engine.run import Run
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.entries import TestsetEntry
from retrodb.format.ids import key_of
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table, write_table
from retrodb.format.records import OP_DROP_FILE, DropRecord, FileRecord
from retrodb.maintain.purge.targets import Targets
from retrodb.maintain.purge.traces import Traces, string_pieces
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.store import conflict_keys
from retrodb.store.commit import Change, commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa


_ENTRY_OF = {"reports": "testset", "rejects": "source", "inputs": "source"}
"""The kinds of files with rows that may speak of a document -> the kind of the entry whose change replaces such files."""


def rewrite_records(context: Context, run: Run, targets: Targets, traces: Traces) -> None:
    """Take the rows that name or quote a purged document out of reports, rejects and lists of inputs, in one commit."""
    view = context.view()
    files, drops, read = [], [], {conflict_keys.RESTORE}
    for kind, record, table, spoken in _records(view, targets, traces):
        drops.append(DropRecord(OP_DROP_FILE, record.path))
        read.add(f"{_ENTRY_OF[kind]}/{record.name}")
        if spoken.all():
            continue
        task = identity(run.id, record.path)
        path = path_of(kind, task=task, name=record.name)
        left: Any = table.filter(~spoken)
        files.append(publish(context.storage, kind, path, partial(write_table, table=left), name=record.name))
    if drops:
        change = Change(
            transaction=identity(run.id, "records", view.snapshot.number),
            command="purge",
            arguments={},
            clock=run.clock,
            conflict_keys=conflict_keys.ConflictKeys(frozenset(read), frozenset()),
            files=files,
            drops=drops,
        )
        commit(context.storage, view.snapshot, change)


def _records(view: View, targets: Targets, traces: Traces) -> Iterator[tuple[str, FileRecord, pa.Table, BoolArray]]:
    """The files with rows that speak of a purged document, and which rows (N,) do."""
    for kind in _ENTRY_OF:
        for record in view.manifest.files(kind):
            table = read_table(view.files.open(record))
            spoken = np.zeros(table.num_rows, dtype=bool)
            if kind == "reports":
                spoken |= _names_one(table, targets)
            for name in ("path", "place", "excerpt", "item"):
                if name in table.column_names:
                    spoken |= _mentions_purged(table.column(name).combine_chunks(), targets, traces)
            if spoken.any():
                yield kind, record, table, spoken


def _names_one(table: pa.Table, targets: Targets) -> BoolArray:
    """(N,) bool: whether the document of each row is a purged one, by source and id."""
    keys = {(hi << 64) | lo for hi, lo in targets.keys.tolist()}
    pairs = zip(table.column("source").to_pylist(), table.column("doc_id").to_pylist(), strict=True)
    return np.array([key_of(*pair) in keys for pair in pairs], dtype=bool)


def _mentions_purged(strings: pa.Array, targets: Targets, traces: Traces) -> BoolArray:
    """(N,) bool: whether each string has an id of a purged document, or words of it."""
    named = [any(piece in targets.strings for piece in string_pieces(text)) for text in strings.to_pylist()]
    spoken = np.array(named, dtype=bool)
    spoken[quoting(strings, traces)] = True
    return spoken


def quoting(strings: pa.Array, traces: Traces) -> Int64Array:
    """The places of the strings that have 13 words in a row, or all of their few words, of a purged document."""
    import pyarrow as pa

    sets = shingle_sets(strings.cast(pa.large_string()))
    of_key = np.repeat(np.arange(len(strings)), sets.sizes())
    short = np.flatnonzero(sets.whole_keys)
    long_hits = of_key[traces.found("shingle", sets.keys)]
    return np.union1d(long_hits, short[traces.found("shingle", sets.whole_keys[short])])


def without_items(context: Context, traces: Traces, names: list[str]) -> None:
    """Register test sets again without the items that quote a purged document; one without any other item goes."""
    from retrodb.stages.dedup.command import screen_with

    for name in names:
        view = context.view()
        entry = view.snapshot.existing(TestsetEntry, name)
        [record] = [r for r in view.manifest.files("testsets", name) if r.path.endswith("/items.parquet")]
        items = read_table(view.files.open(record))
        quoted = quoting(items.column("text").combine_chunks(), traces)
        if not len(quoted):
            continue
        left = items.take(np.setdiff1d(np.arange(items.num_rows), quoted))
        if left.num_rows:
            params = entry.params
            texts = left.column("text").combine_chunks()
            screen_with(context, name, left.column("id").to_pylist(), texts, params)
        else:
            _drop_testset(context, view, name)


def affected_testsets(view: View, *, include_all: bool, held_out: bool) -> list[str]:
    """The test sets to look through: all, or that of the held-out documents alone, which follows from these."""
    return [name for name in view.snapshot.names(TestsetEntry) if include_all or (held_out and name == HELD_OUT_SET)]


def _drop_testset(context: Context, view: View, name: str) -> None:
    files = [*view.manifest.files("testsets", name), *view.manifest.files("reports", name)]
    transaction = identity("without test set", name, view.snapshot.transaction)
    change = Change(
        transaction=transaction,
        command="purge",
        arguments={"testset": name},
        clock=view.snapshot.clock,
        conflict_keys=conflict_keys.dedup(name),
        drops=[DropRecord(OP_DROP_FILE, record.path) for record in files],
        entries={f"testset/{name}": None},
    )
    commit(context.storage, view.snapshot, change)
