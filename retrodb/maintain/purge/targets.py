"""What a purge removes: all versions of the named documents, the packed sequences that contain them, and snapshots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.arrays import Int64Array
from retrodb.format.document_keys import IdArray
from retrodb.format.entries import QueriesEntry, SourceEntry
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import FileRecord
from retrodb.maintain.purge.traces import json_strings
from retrodb.stages.context import Context
from retrodb.stages.document_lookup import IdsFile, find_keys_in
from retrodb.stages.ingest.change import HELD_OUT_SET
from retrodb.stages.planning_tasks import run_planning_tasks
from retrodb.store.manifest import Manifest, load_manifest
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.named import Name, Pair, key_array, key_number, keys_of_pairs, resolve
from retrodb.view.purged import is_among, purged_keys
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


def find_targets(context: Context, view: View, names: Sequence[Name]) -> Targets:
    """The documents that names mean. Documents that were purged before are known, too.

    Raises:
        UsageError: a name is ambiguous.
    """
    present: list[Target] = []

    def known(pairs: Iterable[Pair]) -> set[Pair]:
        pair_of_key = keys_of_pairs(pairs)
        present.extend(_look_up(context, view, pair_of_key))
        is_purged = is_among(key_array(pair_of_key), purged_keys(view)).tolist()
        purged = {pair_of_key[key] for key, is_gone in zip(sorted(pair_of_key), is_purged, strict=True) if is_gone}
        return purged | {target.pair for target in present}

    sources = sorted({*view.shards.source, *view.snapshot.names(SourceEntry)})  # that ever had a document here
    meant, unknown = resolve(names, sources, known)
    documents = [target for target in present if target.pair in meant]
    joined = frozenset(f"{source}/{doc_id}" for source, doc_id in meant)
    return Targets(
        documents=tuple(sorted(documents, key=lambda target: (target.query_set, target.first_chunk))),
        unknown_names=tuple(unknown),
        keys=key_array(keys_of_pairs(meant)),
        full_names=joined,
        id_strings=joined | {doc_id for _, doc_id in meant},
    )


def _look_up(context: Context, view: View, pair_of_key: Mapping[int, Pair]) -> list[Target]:
    """The entries of ids files that have the key of one of the (source, id). Tasks search the files."""
    query_sets = {record.path: query_set for query_set, record in _id_files(view.manifest)}
    files = [IdsFile(record) for _, record in _id_files(view.manifest)]
    targets = []
    for file, entries in find_keys_in(context, files, key_array(pair_of_key)):
        for entry in entries:
            first_chunk = file.first_chunk + int(entry["row"])
            targets.append(Target(query_sets[file.path], *pair_of_key[key_number(entry)], first_chunk))
    return targets


def _id_files(manifest: Manifest) -> list[tuple[str, FileRecord]]:
    """The ids files of the database and of the held-out documents, each with its query set."""
    held_out = [record for record in manifest.files("queries", HELD_OUT_SET) if record.path.endswith("/ids.npy")]
    return [*((SELF, record) for record in manifest.files("ids")), *((HELD_OUT_SET, record) for record in held_out)]


def holding_snapshots(context: Context, keys: IdArray) -> list[int]:
    """The readable snapshots whose ids files have one of the keys, ascending. Tasks search each file once."""
    snapshots = [read_snapshot(context.storage, number) for number in snapshot_numbers(context.storage)]
    files, paths = dict[str, FileRecord](), dict[int, list[str]]()
    for snapshot in snapshots:
        if snapshot.expired_at is None:
            records = [record for _, record in _id_files(load_manifest(context.storage, snapshot))]
            # One string for each path, however many snapshots name the file.
            paths[snapshot.number] = [files.setdefault(record.path, record).path for record in records]
    to_search = [IdsFile(record) for record in files.values()]
    with_key = {record.path for record, _ in find_keys_in(context, to_search, keys)}
    return [number for number, of_snapshot in paths.items() if not with_key.isdisjoint(of_snapshot)]


def packed_sequences(context: Context, view: View, full_names: frozenset[str]) -> dict[str, Int64Array]:
    """The packed sequences that contain one of the documents: for every query set, the ids of their first rows, ascending.

    The metadata of a sequence names its documents as source/id. Tasks read it.
    """
    packed = [
        name
        for name in view.snapshot.names(QueriesEntry)
        if view.snapshot.existing(QueriesEntry, name).seq_length is not None
    ]
    files = [(name, record) for name in packed for record in view.query_set(name).ranges]
    if not files or not full_names:
        return {}
    names = tuple(sorted(full_names))
    tasks = [
        SEQUENCES.task(SequencesPayload(record, names), [record.digest.sha256.hex()], record.digest.size_bytes)
        for _, record in files
    ]
    sequences = defaultdict[str, list[int]](list)
    results = run_planning_tasks(context, "purge-sequences", tasks, run_sequences, unit="B")
    for (name, _), found in zip(files, results, strict=True):
        sequences[name] += found.first_rows
    return {name: np.array(ids, dtype=np.int64) for name, ids in sequences.items() if ids}


@dataclass(frozen=True)
class SequencesPayload:
    """Find the sequences in a file of a packed query set that contain some documents."""

    documents: FileRecord
    names: tuple[str, ...]  # source/id of the documents


@dataclass(frozen=True)
class FoundSequences:
    """The sequences that contain one of them."""

    first_rows: tuple[int, ...]  # in the query set, ascending


SEQUENCES = TaskKind[SequencesPayload, FoundSequences]("purge-sequences", 1, FoundSequences)


def run_sequences(
    storage: Storage, task: Task[SequencesPayload, FoundSequences], clock: str
) -> TaskRecord[FoundSequences]:
    """Read the metadata of one file, one row group after another."""
    del clock
    record, names, first_rows = task.payload.documents, frozenset(task.payload.names), list[int]()
    for group in iterate_row_groups(VerifiedFiles(storage).open(record), ["first_row", "metadata"]):
        texts: list[str] = group.column("metadata").to_pylist()  # of one row group
        has_name = np.array([not names.isdisjoint(json_strings(text)) for text in texts], dtype=bool)
        first_rows += (record.first_chunk + group.column("first_row").to_numpy()[has_name]).tolist()
    return TaskRecord(task.id, (), FoundSequences(tuple(first_rows)))
