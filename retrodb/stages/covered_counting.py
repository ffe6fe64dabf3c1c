"""How many live chunks of each shard have a vector, an index part, or neighbours: counted when a commit changes it.

Only row bitmaps are read, in tasks, and those of a shard only where the records of its files do not say enough. A task depends on
the rows of the files and on the tombstones there, not on the files' other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from retrodb.engine.groups import groups_of
from retrodb.engine.run import Run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.entries import SpaceEntry, TableEntry
from retrodb.format.part_files import CODES_FILE
from retrodb.format.records import ChunkRange, CoveredRecord, FileRecord
from retrodb.stages.context import Context
from retrodb.stages.shard_counting import chunks_of_shards, rows_and_deletions, tombstones_at
from retrodb.store.digest import identity
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.shard_counts import shards_overlapping
from retrodb.view.view import SELF, View

COVERING_KINDS = ("vectors", "parts", "neighbours")
_TASK_CHUNKS = 1 << 24  # whose bitmaps a task reads: about a second
_MIN_SHARD_CHUNKS = 1 << 15  # what a shard counts at least, so that a task reads the bitmaps of at most 512


@dataclass(frozen=True)
class CoveringFiles:
    """The files of one kind and name that overlap some shards."""

    kind: str
    name: str
    files: tuple[FileRecord, ...]


@dataclass(frozen=True)
class CoveredPayload:
    """Count the live chunks of some shards that files hold."""

    documents: tuple[FileRecord, ...]  # the documents file of each shard
    tombstones: tuple[FileRecord, ...]  # that have rows of these shards, in the order of their commits
    covering: tuple[CoveringFiles, ...]


@dataclass(frozen=True)
class CoveredShards:
    """The counts of each shard of a task, one for each kind and name of the payload."""

    shards: tuple[tuple[int, ...], ...]


COVERED = TaskKind[CoveredPayload, CoveredShards]("covered-counts", 1, CoveredShards)


def covers_chunks(record: FileRecord) -> bool:
    """Whether a file is one of those that are counted: a part is counted by one of its files."""
    return record.kind in COVERING_KINDS and (record.kind != "parts" or record.path.endswith(f"/{CODES_FILE}"))


def count_covered(context: Context, run: Run, view: View, spans: Iterable[ChunkRange]) -> list[CoveredRecord]:
    """The counts of the live shards that overlap some ranges of ids, as far as they differ from those of the manifest.

    Args:
        view: may show a change that is not committed yet.
    """
    counts, tasks = covered_counts(view, shards_overlapping(view.shards, spans))
    engine = context.engine_for_chunks(sum(task.weight for task in tasks))
    records = engine.run(run, tasks, run_covered, context.progress) if tasks else []
    for task, record in zip(tasks, records, strict=True):
        counts.update(counts_of_task(task, record.result))
    return [record for span, covered in sorted(counts.items()) for record in changed_covered(view, span, covered)]


Covered = dict[tuple[str, str], int]
"""Live chunks of one shard that files hold, by kind and name."""


def covered_counts(
    view: View, shards: Iterable[ChunkRange]
) -> tuple[dict[ChunkRange, Covered], list[Task[CoveredPayload, CoveredShards]]]:
    """The counts of those shards for which the records of files are enough, and the tasks that count the others."""
    covering, counts, rest = covering_files(view), {}, []
    for span in shards:
        files = {key: coverage.overlapping(*span) for key, coverage in covering.items()}
        if not any(files.values()):
            counts[span] = dict.fromkeys(files, 0)
        elif all(_is_one_of_shard(of, span) for of in files.values()) and view.chunks.is_all_live(*span):
            counts[span] = {key: sum(file.num_rows for file in of) for key, of in files.items()}
        else:
            rest.append(view.chunks.file("documents", *span))
    tombstones = view.tombstone_files(SELF)
    groups = groups_of(rest, lambda record: max(record.num_chunks, _MIN_SHARD_CHUNKS), _TASK_CHUNKS)
    return counts, [_task(view, covering, tombstones, group) for group in groups]


def _is_one_of_shard(files: Sequence[FileRecord], span: ChunkRange) -> bool:
    """Whether at most one file holds rows of a shard, and of no other."""
    return not files or (len(files) == 1 and files[0].first_chunk >= span.first_chunk and files[0].span.end <= span.end)


def _task(
    view: View,
    covering: Mapping[tuple[str, str], Coverage],
    tombstones: Sequence[FileRecord],
    documents: tuple[FileRecord, ...],
) -> Task[CoveredPayload, CoveredShards]:
    """
    Args:
        tombstones: all files of them.
    """
    files = tuple(CoveringFiles(*key, _overlapping(of, documents)) for key, of in covering.items())
    task = COVERED.task(CoveredPayload((), (), ()), weight=sum(record.num_chunks for record in documents))
    inputs = [[*rows_and_deletions(view, record, tombstones), _rows_of(covering, record.span)] for record in documents]
    payload = CoveredPayload(documents, tombstones_at(view, documents, tombstones), files)
    return replace(task, id=identity(task.id, inputs), payload=payload)


def _overlapping(files: Coverage, documents: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
    return tuple(dict.fromkeys(file for shard in documents for file in files.overlapping(*shard.span)))


def _rows_of(covering: Mapping[tuple[str, str], Coverage], span: ChunkRange) -> list[object]:
    """The rows of each kind and name in a shard, wherever its ids begin."""
    return [
        [*key, [(file.first_chunk - span.first_chunk, file.num_chunks, file.rows) for file in of.overlapping(*span)]]
        for key, of in covering.items()
    ]


def run_covered(storage: Storage, task: Task[CoveredPayload, CoveredShards], clock: str) -> TaskRecord[CoveredShards]:
    """Count the shards of a task."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    chunks = chunks_of_shards(storage, files, payload.documents, payload.tombstones)
    covering = [Coverage(of.files, files) for of in payload.covering]
    shards = []
    for record in payload.documents:
        live = chunks.live_rows(*record.span)
        shards.append(tuple(len(of.covered_rows(*record.span) & live) for of in covering))
    return TaskRecord(task.id, (), CoveredShards(tuple(shards)))


def counts_of_task(task: Task[CoveredPayload, CoveredShards], result: CoveredShards) -> dict[ChunkRange, Covered]:
    """What a task counted, by shard."""
    keys = [(of.kind, of.name) for of in task.payload.covering]
    shards = zip(task.payload.documents, result.shards, strict=True)
    return {record.span: dict(zip(keys, counts, strict=True)) for record, counts in shards}


def covering_files(view: View) -> dict[tuple[str, str], Coverage]:
    """The files that are counted, by kind and name, found by id. Tables are those of the database's own chunks."""
    covering = {}
    for space in view.snapshot.names(SpaceEntry):
        if view.keeps_vectors(space):
            covering["vectors", space] = view.query_vectors(SELF, space)
        covering["parts", space] = view.codes(space)
    for table in view.snapshot.names(TableEntry):
        if view.snapshot.existing(TableEntry, table).queries == SELF:
            covering["neighbours", table] = view.coverage("neighbours", table)
    return covering


def changed_covered(view: View, span: ChunkRange, counts: Mapping[tuple[str, str], int]) -> list[CoveredRecord]:
    """The counts of a shard that are not those of the manifest; 0 for a space or table that is not there any more."""
    known = {
        (record.kind, record.name): record.num_chunks for record in view.manifest.covered_records(span.first_chunk)
    }
    return [
        CoveredRecord(*key, span.first_chunk, counts.get(key, 0))
        for key in sorted({*known, *counts})
        if known.get(key, 0) != counts.get(key, 0)
    ]
