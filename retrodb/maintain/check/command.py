"""Check: does every file that a snapshot promises exist, and does it hold the bytes that were written?

Damage is listed and never raised, so that one damaged file does not hide the next. A check of a part of the bytes goes round all
files in a fixed order, the order of the hashes of their paths. Each run continues after the file that the last one read, which
`check.json` stores.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.engine.run import Run, add_counts, passing_run
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.errors import DamagedFileError, UsageError
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.records import SEGMENT_RECORDS, FileRecord
from retrodb.format.snapshot import SegmentRef, snapshot_path
from retrodb.maintain.check.read_task import (
    COMPARE,
    READ,
    RESTORE,
    ROWS,
    CheckPayload,
    CheckTask,
    Damage,
    DamageList,
    blocks_damage,
    check_tasks,
    compare_size,
    damage_of,
    file_damage,
    read_damages,
    run_check_compare,
    run_check_read,
    run_check_rows,
)
from retrodb.maintain.check.structure import bitmap_groups, compared_groups, manifest_faults
from retrodb.stages.context import Context
from retrodb.stages.covered_counting import changed_covered, counts_of_task, covered_counts, run_covered
from retrodb.stages.shard_counting import counts_to_write, run_shard_counts, shard_counts_tasks
from retrodb.store.block_files import find_blocks
from retrodb.store.collection import is_ours
from retrodb.store.digest import identity
from retrodb.store.manifest import load_manifest, load_segment
from retrodb.store.row_files import digest_of, find_bitmap
from retrodb.store.scratch import ScratchStorage
from retrodb.store.snapshots import read_snapshot, recorded_head, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.view.view import View


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    snapshot: int  # that was checked
    num_files: int  # that were looked at, including snapshots and manifest segments
    size_bytes: int  # of the files in the manifest
    is_data_read: bool  # whether bytes were read, not only sizes
    damaged: tuple[Damage, ...]  # empty when everything is in order
    foreign: tuple[str, ...] = ()  # files in the database's folder that retrodb did not make; they are never touched
    read_bytes: int = 0  # read in this run; fewer than size_bytes when only a part was asked for, or time ran out


@dataclass(frozen=True)
class CheckPosition:
    """`check.json`: where the next partial check continues."""

    after: str  # hash of the path of the last file that was read; "" before the first


def run_check(
    context: Context,
    view: View,
    *,
    read_data: bool = False,
    subset: float | None = None,
    max_duration_s: float | None = None,
) -> CheckResult:
    """Compare the files of one snapshot with what it promises, and read every other snapshot.

    Without `read_data`, only the existence and size of files are checked. With it, the SHA-256 digest of every file is compared,
    Parquet files are decoded, and files of the same chunks are compared with each other, in tasks.

    Args:
        subset: read only this fraction of the bytes; the next check reads the next ones.
        max_duration_s: start reading no further file after this time; the next such check continues from there.

    Raises:
        UsageError: `subset` or `max_duration_s` without `read_data`.
    """
    if not read_data and (subset is not None or max_duration_s is not None):
        raise UsageError("subset and max_duration_s limit the reading of data", remedy="Add read_data=True.")
    storage, segments = view.storage, view.snapshot.segments
    segment_damage = [
        damage_of(path_of("manifests", digest=ref.digest), partial(load_segment, storage, ref)) for ref in segments
    ]
    readable = tuple(ref for ref, damaged in zip(segments, segment_damage, strict=True) if damaged is None)
    manifest = load_manifest(storage, replace(view.snapshot, segments=readable))
    records, bitmaps, block_files = manifest.all_files(), manifest.row_files(), manifest.block_files()
    is_part = subset is not None or max_duration_s is not None
    damaged = [*_damaged_snapshots(storage), *segment_damage, *_unnamed_segments(view)]
    damaged += [blocks_damage(storage, record, find_blocks) for record in records]
    if is_part or not read_data:  # otherwise tasks compare them
        damaged += [file_damage(storage, record, compare_size) for record in records]
    of_rows = list[Damage]()
    if read_data:
        of_rows, _ = _in_tasks(context, check_tasks(ROWS, bitmap_groups(records), 0), run_check_rows)
        damaged += [damage for damage in of_rows if damage.path in bitmaps]
    else:
        damaged += [damage_of(path, partial(find_bitmap, storage, digest_of(path))) for path in bitmaps]
    damaged += [Damage(path, fault, RESTORE) for path, fault in manifest_faults(manifest, view.snapshot.next_chunk)]
    read_bytes = 0
    if read_data:
        skipped = {damage.path for damage in damaged if damage}
        to_read = [record for record in records if record.path not in skipped]
        unreadable, read_bytes = _read(context, to_read, subset, max_duration_s)
        damaged += unreadable
        if not is_part:
            skipped |= {damage.path for damage in unreadable}
            groups = compared_groups(manifest, skipped)
            compared = check_tasks(COMPARE, groups, view.snapshot.next_chunk)
            damaged += _in_tasks(context, compared, run_check_compare)[0]
        damaged += of_rows
        if not is_part and not any(damaged):
            damaged += _count_damage(context, view)
    by_path = {damage.path: damage for damage in reversed(damaged) if damage}
    return CheckResult(
        snapshot=view.snapshot.number,
        num_files=len(snapshot_numbers(storage)) + len(segments) + len(records) + len(bitmaps) + len(block_files),
        size_bytes=sum(record.digest.size_bytes for record in records),
        is_data_read=read_data,
        damaged=tuple(reversed(by_path.values())),
        foreign=tuple(path for path in storage.list("") if not is_ours(path)),
        read_bytes=read_bytes,
    )


def _damaged_snapshots(storage: Storage) -> Iterator[Damage | None]:
    """Snapshots that are missing or cannot be read. Numbers have no gaps: an expired snapshot leaves a stub."""
    numbers = snapshot_numbers(storage)
    newest = max(numbers[-1], recorded_head(storage) or 0)  # the record shows the loss of the newest ones
    for number in range(newest + 1):
        yield damage_of(snapshot_path(number), partial(read_snapshot, storage, number))


def _unnamed_segments(view: View) -> Iterator[Damage]:
    """Segments that continue the newest snapshot's manifest and that no snapshot names: a later snapshot is missing.

    Segments of commits that lost a race continue an older snapshot and are no damage.
    """
    storage, numbers = view.storage, snapshot_numbers(view.storage)
    if view.snapshot.number != numbers[-1] or recorded_head(storage) is not None:
        return  # with a record of the newest number, such a segment is that of an interrupted commit, which is harmless
    named = {path_of("manifests", digest=ref.digest) for number in numbers for ref in _segments(storage, number)}
    unnamed = [path for path in storage.list("manifests") if path not in named]
    last = view.snapshot.segments[-1:] if unnamed else ()
    for path in unnamed:
        try:
            open_segments = [load_segment(storage, ref) for ref in last if ref.records < SEGMENT_RECORDS]
            table = load_segment(storage, SegmentRef(path.rpartition("/")[2].partition(".")[0], 0))
        except DamagedFileError:
            continue
        if all(table.slice(0, segment.num_rows).equals(segment) for segment in open_segments):
            yield Damage(path, "no snapshot names it", _COMMIT_LOST)


def _segments(storage: Storage, number: int) -> tuple[SegmentRef, ...]:
    try:
        return read_snapshot(storage, number).segments
    except DamagedFileError:
        return ()


def _read(
    context: Context,
    records: Sequence[FileRecord],
    subset: float | None,
    max_duration_s: float | None,
) -> tuple[list[Damage], int]:
    """Read files: all of them, or a part. Gives the damage, and the number of bytes that were read.

    A check that is limited in time reads one file after another, so that it ends in time.
    """
    is_part = subset is not None or max_duration_s is not None
    ordered = _from_last_position(context.storage, records) if is_part else records
    chosen = ordered if subset is None else _first_bytes(ordered, subset)
    if max_duration_s is None:
        tasks = check_tasks(READ, [(record,) for record in chosen], 0)
        damaged, num_bytes = _in_tasks(context, tasks, run_check_read)
    else:
        damaged, chosen = _read_until(context, chosen, time.monotonic() + max_duration_s)
        num_bytes = sum(record.digest.size_bytes for record in chosen)
    if is_part and chosen:
        context.storage.write(path_of("checked"), to_json(CheckPosition(identity(chosen[-1].path))))
    return damaged, num_bytes


def _first_bytes(records: Sequence[FileRecord], part: float) -> Sequence[FileRecord]:
    """The first files that together have a part of the bytes; at least one."""
    ends = np.cumsum([record.digest.size_bytes for record in records])
    return records[: max(1, int(np.searchsorted(ends, part * ends[-1])) + 1)] if len(records) else records


def _read_until(
    context: Context, records: Sequence[FileRecord], deadline: float
) -> tuple[list[Damage], Sequence[FileRecord]]:
    """Read files, but begin with no further one after a time. Gives the damage, and the files that were read."""
    damaged, num_read = list[Damage](), 0
    with context.progress.stage("check", sum(record.digest.size_bytes for record in records), "B") as bar:
        for record in records:
            if num_read and time.monotonic() > deadline:
                break
            damaged += read_damages(context.storage, record)
            num_read += 1
            bar.advance(record.digest.size_bytes)
    return damaged, records[:num_read]


def _from_last_position(storage: Storage, records: Sequence[FileRecord]) -> list[FileRecord]:
    """The files by the hashes of their paths, beginning after the one that the last partial check read."""
    ordered = sorted(records, key=lambda record: identity(record.path))
    path = path_of("checked")
    try:
        after = from_json(CheckPosition, storage.read(path), where=path).after
    except DamagedFileError:
        after = ""  # there was no partial check yet, or its position is lost: begin with the first file
    begin = sum(identity(record.path) <= after for record in ordered)
    return ordered[begin:] + ordered[:begin]


def _count_damage(context: Context, view: View) -> list[Damage]:
    """Counts in the manifest that are not those of their shard's chunks."""
    shards = (view.shards.record(number).span for number in range(len(view.shards)))
    tasks = shard_counts_tasks(view, shards)
    damage = [
        Damage("manifests", _OTHER_COUNTS.format(count.first_chunk, count.reason or "live"), RESTORE)
        for task, record in _executed(context, tasks, run_shard_counts, "chunks")
        for count in counts_to_write(view, task.payload, record.result)
    ]
    return damage + _covered_damage(context, view)


def _covered_damage(context: Context, view: View) -> list[Damage]:
    """Counts in the manifest of the chunks that have a vector, a part or neighbours, which are not those of the files."""
    counts, tasks = covered_counts(view, (view.shards.record(number).span for number in range(len(view.shards))))
    for task, record in _executed(context, tasks, run_covered, "chunks"):
        counts.update(counts_of_task(task, record.result))
    changed = (record for span, covered in sorted(counts.items()) for record in changed_covered(view, span, covered))
    return [
        Damage("manifests", _OTHER_COUNTS.format(record.first_chunk, f"{record.kind} of {record.name}"), RESTORE)
        for record in changed
    ]


def _in_tasks(
    context: Context, tasks: Sequence[CheckTask], function: TaskFunction[CheckPayload, DamageList]
) -> tuple[list[Damage], int]:
    """What tasks find, in the order of their files, and the number of bytes that they read."""
    records = [record for _, record in _executed(context, tasks, function)]
    return [damage for record in records for damage in record.result.damaged], add_counts(records).get("bytes", 0)


def _executed(
    context: Context, tasks: Sequence[Task[P, R]], function: TaskFunction[P, R], unit: str = "B"
) -> list[tuple[Task[P, R], TaskRecord[R]]]:
    """Run tasks, each with its record. A check leaves no record in the database."""
    if context.engine.is_remote and tasks:
        with passing_run(context.storage, "check", [task.id for task in tasks]) as run:
            records = context.engine.run(run, tasks, function, context.progress, unit=unit)
        return list(zip(tasks, records, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(ScratchStorage.create(Path(folder), context.storage), identity("check"), "check", "")
        records = context.engine.run(run, tasks, function, context.progress, unit=unit)
    return list(zip(tasks, records, strict=True))


_OTHER_COUNTS = "the shard at {} has other counts ('{}') than the manifest says"
_COMMIT_LOST = (
    "If a command was interrupted, run it again. If none was, the newest snapshot is missing: restore it from a backup."
)
