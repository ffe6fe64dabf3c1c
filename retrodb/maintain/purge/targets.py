"""What a purge removes: all versions of the named documents, the packed sequences that contain them, and snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.format.arrays import Int64Array
from retrodb.format.document_keys import IdArray, key_of
from retrodb.format.entries import QueriesEntry, SourceEntry
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import FileRecord
from retrodb.maintain.purge.traces import json_strings
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.verify import VerifiedFiles
from retrodb.view.named import Name, Pair, resolve
from retrodb.view.purged import KEY_DTYPE, entries_with_keys, is_among, purged_keys
from retrodb.view.view import SELF, View


@dataclass(frozen=True)
class Target:
    """One version of a document to purge. Of a document that compaction dropped, only its key is in the database."""

    query_set: str
    source: str
    doc_id: str
    first_chunk: int  # its id

    @property
    def pair(self) -> tuple[str, str]:
        """Source and id."""
        return self.source, self.doc_id


@dataclass(frozen=True)
class Targets:
    """All documents that the given names mean."""

    documents: tuple[Target, ...]
    unknown_names: tuple[str, ...]  # names of no document, neither in the database nor purged before
    keys: IdArray  # (K,) KEY_DTYPE, sorted: of all documents that the names mean, including those purged before
    full_names: frozenset[str]  # source/id of the same documents
    id_strings: frozenset[str]  # their ids alone, and as source/id

    def first_chunks(self, query_set: str) -> Int64Array:
        """(Q,) the ids of the first chunks of the documents in a query set, ascending."""
        ids = {target.first_chunk for target in self.documents if target.query_set == query_set}
        return np.array(sorted(ids), dtype=np.int64)

    @property
    def sources(self) -> list[str]:
        """The sources of the documents."""
        return sorted({target.source for target in self.documents})


def find_targets(view: View, names: Sequence[Name]) -> Targets:
    """The documents that names mean. Documents that were purged before are known, too.

    Raises:
        UsageError: a name is ambiguous.
    """
    present: list[Target] = []

    def known(pairs: Iterable[Pair]) -> set[Pair]:
        candidates = sorted(pairs)
        present.extend(_look_up(view, candidates))
        is_purged = is_among(_keys(candidates), purged_keys(view)).tolist()
        purged = {pair for pair, is_gone in zip(candidates, is_purged, strict=True) if is_gone}
        return purged | {target.pair for target in present}

    sources = sorted({*view.shards.source, *view.snapshot.names(SourceEntry)})  # that ever had a document here
    meant, unknown = resolve(names, sources, known)
    documents = [target for target in present if target.pair in meant]
    joined = frozenset(f"{source}/{doc_id}" for source, doc_id in meant)
    return Targets(
        documents=tuple(sorted(documents, key=lambda target: (target.query_set, target.first_chunk))),
        unknown_names=tuple(unknown),
        keys=np.unique(_keys(sorted(meant))),
        full_names=joined,
        id_strings=joined | {doc_id for _, doc_id in meant},
    )


def _keys(pairs: Sequence[tuple[str, str]]) -> IdArray:
    values = [divmod(key_of(source, doc_id), 1 << 64) for source, doc_id in pairs]
    return np.array(values, dtype=KEY_DTYPE)


def _look_up(view: View, pairs: Sequence[tuple[str, str]]) -> list[Target]:
    """The entries of ids files that have the key of one of the (source, id)."""
    pair_of_key = {key_of(*pair): pair for pair in pairs}
    keys = np.unique(_keys(pairs))
    targets = []
    for query_set, record in _id_files(view):
        of_file = view.files.array(record)
        entries = of_file[entries_with_keys(of_file, keys)]
        for entry, first_chunk in zip(entries, (entries["row"] + record.first_chunk).tolist(), strict=True):
            source, doc_id = pair_of_key[int(entry["key_hi"]) << 64 | int(entry["key_lo"])]
            targets.append(Target(query_set, source, doc_id, first_chunk))
    return targets


def _id_files(view: View) -> list[tuple[str, FileRecord]]:
    """The ids files of the database and of the held-out documents, each with its query set."""
    held_out = [record for record in view.manifest.files("queries", HELD_OUT_SET) if record.path.endswith("/ids.npy")]
    return [
        *((SELF, record) for record in view.manifest.files("ids")),
        *((HELD_OUT_SET, record) for record in held_out),
    ]


def holding_snapshots(context: Context, keys: IdArray) -> list[int]:
    """The readable snapshots whose ids files have one of the keys, ascending. Each file is read once."""
    files, has_key = VerifiedFiles(context.storage), dict[str, bool]()
    holding = []
    for number in snapshot_numbers(context.storage):
        snapshot = read_snapshot(context.storage, number)
        if snapshot.expired_at is not None:
            continue
        manifest = load_manifest(context.storage, snapshot)
        held_out = manifest.files("queries", HELD_OUT_SET)
        records = [*manifest.files("ids"), *(record for record in held_out if record.path.endswith("/ids.npy"))]
        for record in records:
            if record.path not in has_key:
                has_key[record.path] = len(entries_with_keys(files.array(record), keys)) > 0
        if any(has_key[record.path] for record in records):
            holding.append(number)
    return holding


def packed_sequences(view: View, full_names: frozenset[str]) -> dict[str, Int64Array]:
    """The packed sequences that contain one of the documents: for every query set, the ids of their first rows, ascending.

    The metadata of a sequence names its documents as source/id. It is read one row group after another.
    """
    sequences: dict[str, Int64Array] = {}
    for query_set in view.snapshot.names(QueriesEntry):
        if view.snapshot.existing(QueriesEntry, query_set).seq_length is None:
            continue
        first_rows = [np.empty(0, np.int64)]
        for record in view.query_set(query_set).ranges:
            for group in iterate_row_groups(view.files.open(record), ["first_row", "metadata"]):
                texts = group.column("metadata").to_pylist()
                has_name = np.array([not full_names.isdisjoint(json_strings(text)) for text in texts], dtype=bool)
                first_rows.append(record.first_chunk + group.column("first_row").to_numpy()[has_name])
        sequences[query_set] = np.concatenate(first_rows)
    return {query_set: ids for query_set, ids in sequences.items() if len(ids)}
