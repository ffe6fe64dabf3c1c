"""Check: does every file that a snapshot promises exist, and does it hold the bytes that were written?

Damage is listed and never raised, so that one damaged file does not hide the next. A check of a part of the bytes goes round all
files in a fixed order, the order of the hashes of their paths. Each run continues after the file that the last one read, which
`check.json` stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from retrodb.engine.progress import Progress
from retrodb.errors import DamagedFileError, UsageError
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import SEGMENT_RECORDS, FileRecord
from retrodb.format.snapshot import SegmentRef, snapshot_path
from retrodb.maintain.check.structure import content_faults, count_faults, manifest_faults
from retrodb.store.collection import is_ours
from retrodb.store.digest import digest_file, identity
from retrodb.store.manifest import load_manifest, load_segment
from retrodb.store.snapshots import read_snapshot, recorded_head, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.store.verify import damage, remedy
from retrodb.view.view import View


@dataclass(frozen=True)
class Damage:
    """One file that is missing or damaged."""

    path: str  # relative to the database
    fault: str  # what is wrong
    remedy: str  # what to do


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
    view: View,
    progress: Progress,
    *,
    read_data: bool = False,
    subset: float | None = None,
    max_duration_s: float | None = None,
) -> CheckResult:
    """Compare the files of one snapshot with what it promises, and read every other snapshot.

    Without `read_data`, only the existence and size of files are checked. With it, the SHA-256 digest of every file is compared,
    Parquet files are decoded, and files of the same chunks are compared with each other.

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
        _damage_of(path_of("manifests", digest=ref.digest), partial(load_segment, storage, ref)) for ref in segments
    ]
    readable = tuple(ref for ref, damaged in zip(segments, segment_damage, strict=True) if damaged is None)
    manifest = load_manifest(storage, replace(view.snapshot, segments=readable))
    records = manifest.all_files()
    damaged = [*_damaged_snapshots(storage), *segment_damage, *_unnamed_segments(view)]
    damaged += [_file_damage(storage, record, _compare_size) for record in records]
    damaged += [Damage(path, fault, _RESTORE) for path, fault in manifest_faults(manifest, view.snapshot.next_chunk)]
    read_bytes = 0
    if read_data:
        skipped = {damage.path for damage in damaged if damage}
        to_read = [record for record in records if record.path not in skipped]
        unreadable, read_bytes = _read(storage, to_read, progress, subset, max_duration_s)
        damaged += unreadable
        if subset is None and max_duration_s is None:
            skipped |= {damage.path for damage in unreadable}
            faults = content_faults(storage, view.settings, manifest, view.snapshot.next_chunk, skipped)
            damaged += [Damage(path, fault, _RESTORE) for path, fault in faults]
            if not any(damaged):
                damaged += [Damage(path, fault, _RESTORE) for path, fault in count_faults(view)]
    by_path = {damage.path: damage for damage in reversed(damaged) if damage}
    return CheckResult(
        snapshot=view.snapshot.number,
        num_files=len(snapshot_numbers(storage)) + len(segments) + len(records),
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
        yield _damage_of(snapshot_path(number), partial(read_snapshot, storage, number))


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
    storage: Storage,
    records: Sequence[FileRecord],
    progress: Progress,
    subset: float | None,
    max_duration_s: float | None,
) -> tuple[list[Damage], int]:
    """Read files: all of them, or a part. Gives the damage, and the number of bytes that were read."""
    is_part = subset is not None or max_duration_s is not None
    ordered = _from_last_position(storage, records) if is_part else records
    wanted_bytes = (1.0 if subset is None else subset) * sum(record.digest.size_bytes for record in records)
    deadline = time.monotonic() + (float("inf") if max_duration_s is None else max_duration_s)
    damaged, read_bytes, last = [], 0, ""
    with progress.stage("check", int(wanted_bytes), "B") as bar:
        for record in ordered:
            if last and (read_bytes >= wanted_bytes or time.monotonic() > deadline):
                break
            if file_damage := _file_damage(storage, record, _compare_bytes):
                damaged.append(file_damage)
            read_bytes, last = read_bytes + record.digest.size_bytes, identity(record.path)
            bar.advance(record.digest.size_bytes)
    if is_part and last:
        storage.write(path_of("checked"), to_json(CheckPosition(last)))
    return damaged, read_bytes


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


def _file_damage(storage: Storage, record: FileRecord, compare: Callable[[Storage, FileRecord], None]) -> Damage | None:
    file_damage = _damage_of(record.path, partial(compare, storage, record))
    return replace(file_damage, remedy=remedy(record)) if file_damage else None


def _damage_of(path: str, read: Callable[[], object]) -> Damage | None:
    """The damage that shows when a file is read."""
    try:
        read()
    except DamagedFileError as error:
        return Damage(path, error.what, error.remedy or _RESTORE)
    except OSError as error:  # the disk cannot read the bytes
        return Damage(path, error.strerror or str(error), _RESTORE)
    return None


_RESTORE = "Restore it from a backup."
_COMMIT_LOST = (
    "If a command was interrupted, run it again. If none was, the newest snapshot is missing: restore it from a backup."
)


def _compare_size(storage: Storage, record: FileRecord) -> None:
    size_bytes = storage.local(record.path).stat().st_size
    if size_bytes != record.digest.size_bytes:
        raise damage(record, f"{size_bytes} bytes instead of {record.digest.size_bytes}")


def _compare_bytes(storage: Storage, record: FileRecord) -> None:
    path = storage.local(record.path)
    expected, actual = record.digest.sha256.hex(), digest_file(path).sha256.hex()
    if actual != expected:
        raise damage(record, f"checksum mismatch (expected {expected[:12]}.., got {actual[:12]}..)")
    if record.path.endswith(".parquet"):
        for _ in iterate_row_groups(path):
            pass
