"""The counts of the shards that a commit changes: each shard is counted in a task, and the commit handles records.

A task depends on the files of its shards and on the tombstones there, not on the ids that new shards get. So when another commit
comes first, only the shards that it changed, too, are counted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from retrodb.engine.groups import groups_of
from retrodb.engine.run import Run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.records import ChunkRange, CountsRecord, FileRecord
from retrodb.format.settings import parse_settings
from retrodb.stages.context import Context
from retrodb.store.digest import identity
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.shard_counts import changed_counts, shard_counts, shards_overlapping
from retrodb.view.tombstones import TombstoneSet
from retrodb.view.view import SELF, View

_TASK_CHUNKS = 1 << 22  # of the shards of a task: a quarter of a second
_MIN_SHARD_CHUNKS = 1 << 14  # what a shard counts at least, because its file is opened


@dataclass(frozen=True)
class ShardCountsPayload:
    """Count the rows of some shards."""

    documents: tuple[FileRecord, ...]  # the documents file of each shard
    tombstones: tuple[FileRecord, ...]  # that say something of these shards, in the order of their commits


@dataclass(frozen=True)
class CountsOfShards:
    """The counts of each shard of a task, as `shard_counts` gives them."""

    shards: tuple[tuple[CountsRecord, ...], ...]


SHARD_COUNTS = TaskKind[ShardCountsPayload, CountsOfShards]("shard-counts", 1, CountsOfShards)


def count_changed_shards(context: Context, run: Run, view: View, spans: Iterable[ChunkRange]) -> list[CountsRecord]:
    """The counts of the live shards that overlap some ranges of ids, as far as they differ from those of the manifest.

    Args:
        view: may show a change that is not committed yet.
    """
    tasks = shard_counts_tasks(view, shards_overlapping(view.shards, spans))
    engine = context.engine_for_chunks(sum(task.weight for task in tasks))
    records = engine.run(run, tasks, run_shard_counts, context.progress) if tasks else []
    return [
        count
        for task, record in zip(tasks, records, strict=True)
        for count in counts_to_write(view, task.payload, record.result)
    ]


def counts_to_write(view: View, payload: ShardCountsPayload, result: CountsOfShards) -> list[CountsRecord]:
    """What a task counted and the manifest does not say."""
    shards = zip(payload.documents, result.shards, strict=True)
    return [count for documents, counts in shards for count in changed_counts(view.manifest, documents.span, counts)]


def shard_counts_tasks(view: View, shards: Iterable[ChunkRange]) -> list[Task[ShardCountsPayload, CountsOfShards]]:
    """The tasks that count some shards of a view."""
    tombstones = view.tombstone_files(SELF)
    documents = (view.chunks.file("documents", *span) for span in shards)
    tasks = []
    for group in groups_of(documents, lambda record: max(record.num_chunks, _MIN_SHARD_CHUNKS), _TASK_CHUNKS):
        task = SHARD_COUNTS.task(ShardCountsPayload((), ()), weight=sum(record.num_chunks for record in group))
        inputs = [[record.digest.sha256.hex(), *rows_and_deletions(view, record, tombstones)] for record in group]
        payload = ShardCountsPayload(group, tombstones_at(view, group, tombstones))
        tasks.append(replace(task, id=identity(task.id, inputs), payload=payload))
    return tasks


def rows_and_deletions(view: View, documents: FileRecord, tombstones: Sequence[FileRecord]) -> list[object]:
    """What decides which chunks of a shard are live, wherever its ids begin: its rows, and the tombstones there."""
    locations = view.chunks.tombstones.locations(*documents.span)
    deletions = [(tombstones[file].digest.sha256.hex(), row) for file, row in locations]
    return [documents.num_chunks, documents.rows, deletions]


def tombstones_at(
    view: View, documents: Iterable[FileRecord], tombstones: Sequence[FileRecord]
) -> tuple[FileRecord, ...]:
    """Those of all files of tombstones that say something of some shards, in the order of their commits."""
    locations = (view.chunks.tombstones.locations(*record.span) for record in documents)
    numbers = {number for of_shard in locations for number, _ in of_shard}
    return tuple(tombstones[number] for number in sorted(numbers))


def run_shard_counts(
    storage: Storage, task: Task[ShardCountsPayload, CountsOfShards], clock: str
) -> TaskRecord[CountsOfShards]:
    """Count the shards of a task."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    chunks = chunks_of_shards(storage, files, payload.documents, payload.tombstones)
    return TaskRecord(task.id, (), CountsOfShards(tuple(shard_counts(chunks, record) for record in payload.documents)))


def chunks_of_shards(
    storage: Storage, files: VerifiedFiles, documents: tuple[FileRecord, ...], tombstones: tuple[FileRecord, ...]
) -> ChunkSet:
    """The chunks of the shards of a task: which there are, and which are live."""
    settings = parse_settings(storage.read("retrodb.toml").decode(), where="retrodb.toml")
    return ChunkSet(files, settings, {"documents": documents}.__getitem__, _tombstone_set(storage, tombstones))


@lru_cache(maxsize=1)
def _tombstone_set(storage: Storage, records: tuple[FileRecord, ...]) -> TombstoneSet:
    """The tombstones of tasks with the same ones, opened once per process."""
    files = VerifiedFiles(storage)
    return TombstoneSet(files.open(record) for record in records)
