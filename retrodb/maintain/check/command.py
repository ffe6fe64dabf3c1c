"""Is everything there that the snapshot promises, and is it what was written?

Damage is listed, never raised: one bad file must not hide the next. A check of a part of the bytes goes round: the files have a
fixed order by the hash of their paths, and each run begins where the last one stopped, which `check.json` remembers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import orjson

from retrodb.engine.progress import Progress
from retrodb.errors import DamagedFileError
from retrodb.format.kinds import path_of
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import SEGMENT_RECORDS, FileRecord
from retrodb.format.snapshot import SegmentRef, snapshot_path
from retrodb.maintain.check.structure import contents_faults, manifest_faults
from retrodb.store.digest import digest_file, identity
from retrodb.store.manifest import load_manifest, load_segment
from retrodb.store.snapshots import read_snapshot, snapshot_numbers
from retrodb.store.storage import Storage
from retrodb.store.verify import damage, remedy
from retrodb.view.view import View


@dataclass(frozen=True)
class Damage:
    """One file that is missing or not what it should be."""

    path: str  # relative to the database
    what: str  # the fault
    remedy: str  # what to do about it


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    snapshot: int  # the version that was checked
    files: int  # looked at, snapshots and manifest segments among them
    size_bytes: int  # of the files that the manifest names
    read_data: bool  # whether bytes were read
    damaged: tuple[Damage, ...]  # empty when all is well
    read_bytes: int = 0  # of these files; not all where a part was asked for, or time ran out


def run_check(
    view: View,
    progress: Progress,
    *,
    read_data: bool = False,
    subset: float | None = None,
    max_duration_s: float | None = None,
) -> CheckResult:
    """Compare the files of one snapshot with what it promises, parse every other snapshot, and look whether all agree.

    Without `read_data` only existence and size of files are looked at; with it the SHA-256 of every byte, that Parquet
    files decode, and that files say the same of the same chunks.

    Args:
        subset: read this share of the bytes, the next ones in their turn.
        max_duration_s: begin no further file after so many seconds; the next such check goes on from there.
    """
    storage, segments = view.storage, view.snapshot.segments
    bad_segments = [
        _fault(path_of("manifests", digest=ref.digest), partial(load_segment, storage, ref)) for ref in segments
    ]
    whole = tuple(ref for ref, fault in zip(segments, bad_segments, strict=True) if fault is None)
    manifest = load_manifest(storage, replace(view.snapshot, segments=whole))
    records = manifest.all_files()
    faults = [*_bad_snapshots(storage), *bad_segments, *_unnamed_segments(view)]
    faults += [_file_fault(storage, record, _compare_size) for record in records]
    faults += [Damage(path, what, _RESTORE) for path, what in manifest_faults(manifest, view.snapshot.next_chunk)]
    read_bytes = 0
    if read_data:
        bad = {fault.path for fault in faults if fault}
        good = [record for record in records if record.path not in bad]
        found, read_bytes = _read(storage, good, progress, subset, max_duration_s)
        faults += found
        if subset is None and max_duration_s is None:
            bad |= {fault.path for fault in found}
            disagreeing = contents_faults(storage, view.settings, manifest, view.snapshot.next_chunk, bad)
            faults += [Damage(path, what, _RESTORE) for path, what in disagreeing]
    by_path = {fault.path: fault for fault in reversed(faults) if fault}
    return CheckResult(
        snapshot=view.snapshot.number,
        files=len(snapshot_numbers(storage)) + len(segments) + len(records),
        size_bytes=sum(record.digest.size_bytes for record in records),
        read_data=read_data,
        damaged=tuple(reversed(by_path.values())),
        read_bytes=read_bytes,
    )


def _bad_snapshots(storage: Storage) -> Iterator[Damage | None]:
    """Every snapshot that does not read, and every number before the last that has none: an expired one leaves a stub."""
    numbers = snapshot_numbers(storage)
    for number in range(numbers[-1] + 1):
        yield _fault(snapshot_path(number), partial(read_snapshot, storage, number))


def _unnamed_segments(view: View) -> Iterator[Damage]:
    """Segments that continue the newest snapshot's manifest, and that no snapshot names: one is missing, or was never made.

    Segments of commits that lost a race continue an older one, and are nothing to worry about.
    """
    storage, numbers = view.storage, snapshot_numbers(view.storage)
    if view.snapshot.number != numbers[-1]:
        return
    named = {path_of("manifests", digest=ref.digest) for number in numbers for ref in _segments(storage, number)}
    unnamed = [path for path in storage.list("manifests") if path not in named]
    last = view.snapshot.segments[-1:] if unnamed else ()
    for path in unnamed:
        try:
            head = [load_segment(storage, ref) for ref in last if ref.records < SEGMENT_RECORDS]
            table = load_segment(storage, SegmentRef(path.rpartition("/")[2].partition(".")[0], 0))
        except DamagedFileError:
            continue
        if all(table.slice(0, each.num_rows).equals(each) for each in head):
            yield Damage(path, "no snapshot names it", "A commit was interrupted: run its command again. " + _HEAD_LOST)


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
    """The damage that reading files meets, and how many bytes were read: of all, or of as many as were asked for."""
    is_part = subset is not None or max_duration_s is not None
    ordered = _from_last(storage, records) if is_part else records
    wanted = (1.0 if subset is None else subset) * sum(record.digest.size_bytes for record in records)
    end = time.monotonic() + (float("inf") if max_duration_s is None else max_duration_s)
    found, read_bytes, last = [], 0, ""
    with progress.stage("check", int(wanted), "B") as bar:
        for record in ordered:
            if last and (read_bytes >= wanted or time.monotonic() > end):
                break
            if fault := _file_fault(storage, record, _compare_bytes):
                found.append(fault)
            read_bytes, last = read_bytes + record.digest.size_bytes, identity(record.path)
            bar.advance(record.digest.size_bytes)
    if is_part and last:
        storage.write(path_of("checked"), orjson.dumps({"after": last}))
    return found, read_bytes


def _from_last(storage: Storage, records: Sequence[FileRecord]) -> list[FileRecord]:
    """The files in the order of their paths' hashes, beginning behind the one that the last partial check ended with."""
    ordered = sorted(records, key=lambda record: identity(record.path))
    try:
        after = str(orjson.loads(storage.read(path_of("checked")))["after"])
    except (DamagedFileError, orjson.JSONDecodeError, KeyError, TypeError):
        after = ""  # never checked, or not known where it stopped: begin at the beginning
    begin = sum(identity(record.path) <= after for record in ordered)
    return ordered[begin:] + ordered[:begin]


def _file_fault(storage: Storage, record: FileRecord, compare: Callable[[Storage, FileRecord], None]) -> Damage | None:
    fault = _fault(record.path, partial(compare, storage, record))
    return replace(fault, remedy=remedy(record)) if fault else None


def _fault(path: str, look: Callable[[], object]) -> Damage | None:
    """The damage that looking at a file meets."""
    try:
        look()
    except DamagedFileError as error:
        return Damage(path, error.what, error.remedy or _RESTORE)
    except OSError as error:  # the disk does not give the bytes back
        return Damage(path, error.strerror or str(error), _RESTORE)
    return None


_RESTORE = "Restore it from a backup."
_HEAD_LOST = "If none was, the newest snapshot is missing: restore it from a backup."


def _compare_size(storage: Storage, record: FileRecord) -> None:
    size_bytes = storage.local(record.path).stat().st_size
    if size_bytes != record.digest.size_bytes:
        raise damage(record, f"{size_bytes} bytes instead of {record.digest.size_bytes}")


def _compare_bytes(storage: Storage, record: FileRecord) -> None:
    path = storage.local(record.path)
    expected, found = record.digest.sha256.hex(), digest_file(path).sha256.hex()
    if found != expected:
        raise damage(record, f"checksum mismatch (expected {expected[:12]}.., got {found[:12]}..)")
    if record.path.endswith(".parquet"):
        for _ in iterate_row_groups(path):
            pass
