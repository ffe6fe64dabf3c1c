"""Commit: one change of the database, made visible by one put-if-absent.

A change lists what it *read* and what it *wrote*, as conflict keys. It is tried on the head. When other commits came in
between, it is rebased onto them, unless one of them wrote something that this one read: then the caller has to plan again.
The matrix of `format/README.md` follows from the keys that `conflict_keys.py` gives each command.

After any error in the publishing itself the head is read again and searched for the transaction before failure is
reported, and staged files are never deleted: an error does not mean that the commit did not happen.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from retrodb.errors import ConflictError, RetroDBError
from retrodb.format.entries import Entry
from retrodb.format.json_codec import JsonValue
from retrodb.format.kinds import path_of
from retrodb.format.parquet import open_writer
from retrodb.format.records import (
    SEGMENT_RECORDS,
    CountsRecord,
    CoveredRecord,
    DropRecord,
    FileRecord,
    Record,
    ScreenedRecord,
    records_to_table,
)
from retrodb.format.snapshot import SegmentRef, Snapshot, dump_snapshot
from retrodb.store.chunk_ids import NewShard, give_ids
from retrodb.store.conflict_keys import ConflictKeys, conflicts
from retrodb.store.manifest import ShardTable, load_manifest, load_segment, load_segments
from retrodb.store.snapshots import head_and_last, read_head, record_head, since
from retrodb.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Change:
    """Everything that one transaction changes."""

    transaction: str  # identity; committing it twice is committing it once
    command: str  # such as "ingest"
    arguments: Mapping[str, JsonValue]  # resolved parameters, for the record
    clock: str  # of the plan
    conflict_keys: ConflictKeys  # what the plan read and, in addition to the entries, changes
    shards: Sequence[NewShard] = ()
    files: Sequence[FileRecord] = ()  # with their id ranges set, or without ids
    screened: Sequence[ScreenedRecord] = ()
    shard_counts: Sequence[CountsRecord | CoveredRecord] = ()  # of the shards whose rows or files it changes
    drops: Sequence[DropRecord] = ()
    entries: Mapping[str, Entry | None] = field(default_factory=dict)  # entry key -> new value, None takes it away
    counts: Mapping[str, int] = field(default_factory=dict)  # what the command reports
    manifest_of: Snapshot | None = None  # a restore lays its records over this one's manifest, not over the head's

    @property
    def writes(self) -> frozenset[str]:
        """What later commits compare with what they read."""
        return self.conflict_keys.writes | frozenset(self.entries)


def commit_first(storage: Storage, change: Change) -> Snapshot:
    """Commit the first snapshot of a new database.

    Raises:
        ConflictError: when another process created it first.
    """
    empty = Snapshot(-1, -1, "", "", {}, change.clock, 0, (), ())
    first = _successor(storage, empty, 0, change)
    if not _publish(storage, first):
        raise ConflictError(
            "a database exists here already",
            where=storage.url,
            remedy="Choose another path, or use the existing database.",
        )
    return first


CompleteChange = Callable[[Snapshot, Change], Change]
"""Adds to a change what follows from the chunk ids of its new shards. It is given the head that the change is put on."""


def commit(storage: Storage, base: Snapshot, change: Change, complete: CompleteChange | None = None) -> Snapshot:
    """Make a change visible on top of the newest snapshot.

    Args:
        base: the snapshot that the change was planned on.
        complete: called for every head that the commit is tried on. What it adds belongs to this head only, so it is
            not compared with other commits.

    Returns:
        The snapshot that holds the change, also when an earlier attempt had already made it.

    Raises:
        ConflictError: when a commit since `base` wrote something that the change read.
    """
    while True:
        head, last = head_and_last(storage)
        between = since(storage, base.number, head)
        for snapshot in between:
            if snapshot.transaction == change.transaction:
                return snapshot
            _refuse_conflict(change, snapshot)
        attempt = _rebased(storage, head, change) if between else change
        successor = _successor(storage, head, last + 1, complete(head, attempt) if complete else attempt)
        if _publish(storage, successor):
            return successor


def preview(head: Snapshot, change: Change) -> tuple[Snapshot, list[Record]]:
    """What a change would make of a head: the snapshot, and the records that its manifest adds to the head's.

    Nothing is stored. The snapshot names the segments of the head only.
    """
    records, next_chunk = _records(head.next_chunk, change)
    entries = _entries(head, change)
    snapshot = replace(head, number=head.number + 1, parent=head.number, next_chunk=next_chunk, entries=entries)
    return snapshot, records


def _refuse_conflict(change: Change, snapshot: Snapshot) -> None:
    if clash := conflicts(change.conflict_keys.reads, frozenset(snapshot.writes)):
        raise ConflictError(
            f"snapshot {snapshot.number} ({snapshot.command}) changed {', '.join(sorted(clash))} during {change.command}",
            remedy="Run the same command again: it plans on the new state and keeps the work that is still valid.",
        )


def _rebased(storage: Storage, head: Snapshot, change: Change) -> Change:
    """The change without files that the head already has, and without files over ids that no longer exist."""
    if not change.files and not change.screened:
        return change
    manifest = load_manifest(storage, head)
    present = set(manifest.paths()) - {drop.path for drop in change.drops}
    ranged = [record for record in change.files if record.kind in _COVERAGE]
    orphaned = set(_orphaned(manifest.shards, [*ranged, *change.screened]))
    return replace(
        change,
        files=[record for record in change.files if record not in orphaned and record.path not in present],
        screened=[record for record in change.screened if record not in orphaned],
    )


def _orphaned(shards: ShardTable, records: list[FileRecord | ScreenedRecord]) -> list[FileRecord | ScreenedRecord]:
    """The records that cover an id of no live shard."""
    first = np.array([record.first_chunk for record in records], dtype=np.int64)
    count = np.array([record.num_chunks for record in records], dtype=np.int64)
    live = shards.count_below(first + count) - shards.count_below(first)
    return [records[index] for index in np.flatnonzero(live < count)]


CHECKPOINT_RECORDS = 4 * SEGMENT_RECORDS
"""A log with fewer than twice as many records is never rewritten."""

_COVERAGE = ("vectors", "parts", "attributes", "tokens")
"""Kinds that later commands add to the shards that are there."""


def _publish(storage: Storage, snapshot: Snapshot) -> bool:
    """Put the snapshot unless its number is taken; after an ambiguous error, look for the transaction."""
    if not _put(storage, snapshot):
        return False
    with suppress(RetroDBError):  # the commit has happened; the next one records its own number
        record_head(storage, snapshot)
    return True


def _put(storage: Storage, snapshot: Snapshot) -> bool:
    try:
        return storage.put_if_absent(snapshot.path, dump_snapshot(snapshot))
    except RetroDBError:
        if not storage.exists(snapshot.path):
            raise
        head = read_head(storage)
        return any(s.transaction == snapshot.transaction for s in since(storage, snapshot.number - 1, head))


def _successor(storage: Storage, head: Snapshot, number: int, change: Change) -> Snapshot:
    """The snapshot that follows `head` and has this number, with its manifest segments already stored."""
    records, next_chunk = _records(head.next_chunk, change)
    segments = _append(storage, (change.manifest_of or head).segments, records)
    segments, checkpoint = _checkpoint(storage, segments, head.totals.get("checkpoint", 0))
    return Snapshot(
        number=number,
        parent=head.number,
        transaction=change.transaction,
        command=change.command,
        arguments=dict(change.arguments),
        clock=change.clock,
        next_chunk=next_chunk,
        writes=tuple(sorted(change.writes)),
        segments=segments,
        entries=_entries(head, change),
        counts=dict(change.counts),
        totals=_totals(head.totals, change, records) | ({"checkpoint": checkpoint} if checkpoint else {}),
    )


def _entries(head: Snapshot, change: Change) -> dict[str, Entry]:
    return {key: entry for key, entry in {**head.entries, **change.entries}.items() if entry is not None}


def _records(next_chunk: int, change: Change) -> tuple[list[Record], int]:
    """The change's manifest records with chunk ids given, and the next free id."""
    shards, next_chunk = give_ids(change.shards, next_chunk)
    return [*change.drops, *shards, *change.files, *change.screened, *change.shard_counts], next_chunk


def _append(storage: Storage, segments: tuple[SegmentRef, ...], records: list[Record]) -> tuple[SegmentRef, ...]:
    """The segments with the records at their end; only the newest one, if it is open, is rewritten."""
    import pyarrow as pa

    if not records:
        return segments
    table = records_to_table(records)
    if segments and segments[-1].records < SEGMENT_RECORDS:
        table = pa.concat_tables([load_segment(storage, segments[-1]), table])
        segments = segments[:-1]
    return (*segments, *_store_segments(storage, table))


def _checkpoint(storage: Storage, segments: tuple[SegmentRef, ...], last: int) -> tuple[tuple[SegmentRef, ...], int]:
    """The segments, rewritten without what later records took away once the log has grown to twice what its last checkpoint left.

    Args:
        last: number of records that the last checkpoint left; 0 if there was none.

    Returns:
        The segments, and the number of records that the last checkpoint left.
    """
    if sum(segment.records for segment in segments) < 2 * max(last, CHECKPOINT_RECORDS):
        return segments, last
    table = load_segments(storage, segments).live_table()
    return _store_segments(storage, table), max(1, len(table))


def _store_segments(storage: Storage, table: pa.Table) -> tuple[SegmentRef, ...]:
    return tuple(
        _store_segment(storage, table.slice(i, SEGMENT_RECORDS)) for i in range(0, len(table), SEGMENT_RECORDS)
    )


def _store_segment(storage: Storage, table: pa.Table) -> SegmentRef:
    buffer = io.BytesIO()
    with open_writer(buffer, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    storage.write(path_of("manifests", digest=digest), buffer.getvalue())
    return SegmentRef(digest, len(table))


def _totals(totals: Mapping[str, int], change: Change, records: list[Record]) -> dict[str, int]:
    """Running totals of what was ever added, for listings that must not read manifests."""
    files = [r for r in records if isinstance(r, FileRecord)]
    shards = [shard.record for shard in change.shards if not shard.has_ids]
    added = {
        "shards": len(shards),
        "documents": sum(s.num_documents for s in shards),
        "chunks": sum(s.num_chunks for s in shards),
        "files": len(files),
        "bytes": sum(f.digest.size_bytes for f in files),
    }
    return {name: totals.get(name, 0) + value for name, value in added.items()}
