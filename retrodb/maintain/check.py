"""Is everything there that the snapshot promises, and is it what was written?

Damage is listed, never raised: one bad file must not hide the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from retrodb.engine.progress import Progress
from retrodb.errors import DamagedFileError
from retrodb.format.kinds import path_of
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import FileRecord
from retrodb.format.snapshot import snapshot_path
from retrodb.store.digest import digest_file
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
    read_data: bool  # whether every byte was read
    damaged: tuple[Damage, ...]  # empty when all is well


def run_check(view: View, progress: Progress, *, read_data: bool) -> CheckResult:
    """Compare the files of one snapshot with what it promises, and parse every other snapshot.

    Without `read_data` only existence and size of files are looked at; with it the SHA-256 of every byte, and that
    Parquet files decode.
    """
    storage, numbers, segments = view.storage, snapshot_numbers(view.storage), view.snapshot.segments
    bad_snapshots = [_fault(snapshot_path(number), partial(read_snapshot, storage, number)) for number in numbers]
    bad_segments = [
        _fault(path_of("manifests", digest=ref.digest), partial(load_segment, storage, ref)) for ref in segments
    ]
    whole = tuple(ref for ref, fault in zip(segments, bad_segments, strict=True) if fault is None)
    records = load_manifest(storage, replace(view.snapshot, segments=whole)).all_files()
    faults = [*bad_snapshots, *bad_segments, *_bad_files(storage, records, progress, read_data)]
    size_bytes = sum(record.digest.size_bytes for record in records)
    num_files = len(numbers) + len(segments) + len(records)
    return CheckResult(
        view.snapshot.number, num_files, size_bytes, read_data, tuple(fault for fault in faults if fault)
    )


def _bad_files(storage: Storage, records: Sequence[FileRecord], progress: Progress, read_data: bool) -> list[Damage]:
    compare = _compare_bytes if read_data else _compare_size
    found = []
    with progress.stage("check", sum(record.digest.size_bytes for record in records), "B") as bar:
        for record in records:
            if fault := _fault(record.path, partial(compare, storage, record)):
                found.append(replace(fault, remedy=remedy(record)))
            bar.advance(record.digest.size_bytes)
    return found


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


def _compare_size(storage: Storage, record: FileRecord) -> None:
    size_bytes = storage.local(record.path).stat().st_size
    if size_bytes != record.digest.size_bytes:
        raise damage(record, f"{size_bytes} bytes instead of {record.digest.size_bytes}")


def _compare_bytes(storage: Storage, record: FileRecord) -> None:
    _compare_size(storage, record)
    path = storage.local(record.path)
    expected, found = record.digest.sha256.hex(), digest_file(path).sha256.hex()
    if found != expected:
        raise damage(record, f"checksum mismatch (expected {expected[:12]}.., got {found[:12]}..)")
    if record.path.endswith(".parquet"):
        for _ in iterate_row_groups(path):
            pass
