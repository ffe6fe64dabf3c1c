"""The tasks of a check that reads data: some files are read whole, or the files of some shards are compared with each other.

What is wrong is the result of a task and never an error, so that one damaged file does not hide the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from retrodb.engine.groups import groups_of
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.errors import DamagedFileError
from retrodb.format.parquet import iterate_row_groups
from retrodb.format.records import FileRecord
from retrodb.format.settings import parse_settings
from retrodb.maintain.check.structure import content_faults, row_faults
from retrodb.store.block_files import read_blocks
from retrodb.store.digest import digest_file
from retrodb.store.row_files import digest_of, read_bitmap
from retrodb.store.storage import Storage
from retrodb.store.verify import damage, remedy

RESTORE = "Restore it from a backup."
_TASK_BYTES = 64 << 20  # small files are read together
_MIN_FILE_BYTES = _TASK_BYTES // 256  # what a file counts at least, because it is opened


@dataclass(frozen=True)
class Damage:
    """One file that is missing or damaged."""

    path: str  # relative to the database
    fault: str  # what is wrong
    remedy: str  # what to do


@dataclass(frozen=True)
class CheckPayload:
    """What to read."""

    groups: tuple[tuple[FileRecord, ...], ...]  # files that are compared with each other, such as those of a shard
    next_chunk: int  # of the snapshot


@dataclass(frozen=True)
class DamageList:
    """What a task found."""

    damaged: tuple[Damage, ...]  # in the order of the files


CheckTask: TypeAlias = Task[CheckPayload, DamageList]

READ = TaskKind[CheckPayload, DamageList]("check-read", 2, DamageList)
ROWS = TaskKind[CheckPayload, DamageList]("check-rows", 1, DamageList)
COMPARE = TaskKind[CheckPayload, DamageList]("check-compare", 1, DamageList)


def check_tasks(
    kind: TaskKind[CheckPayload, DamageList], groups: Sequence[tuple[FileRecord, ...]], next_chunk: int
) -> list[CheckTask]:
    """Tasks for groups of files, in their order: large groups alone, small ones together."""
    tasks = []
    for together in groups_of(groups, _weight, _TASK_BYTES):
        digests = [record.digest.sha256.hex() for group in together for record in group]
        tasks.append(kind.task(CheckPayload(together, next_chunk), digests, sum(map(_size_bytes, together))))
    return tasks


def _weight(group: tuple[FileRecord, ...]) -> int:
    return max(_size_bytes(group), _MIN_FILE_BYTES * len(group))


def _size_bytes(group: tuple[FileRecord, ...]) -> int:
    return sum(record.digest.size_bytes for record in group)


def run_check_read(storage: Storage, task: CheckTask, clock: str) -> TaskRecord[DamageList]:
    """Compare the sizes and digests of files, and decode Parquet files. Counts the bytes of the files that have their size."""
    del clock
    damaged, num_bytes = list[Damage](), 0
    for group in task.payload.groups:
        for record in group:
            if found := file_damage(storage, record, compare_size):
                damaged.append(found)
            else:
                num_bytes += record.digest.size_bytes
                damaged += read_damages(storage, record)
    return TaskRecord(task.id, (), DamageList(tuple(damaged)), {"bytes": num_bytes})


def run_check_rows(storage: Storage, task: CheckTask, clock: str) -> TaskRecord[DamageList]:
    """Read row bitmaps, and compare them with the records of the files that have them: a group shares one bitmap."""
    del clock
    damaged: list[Damage] = []
    for group in task.payload.groups:
        path = group[0].rows_path
        assert path is not None, "a group of files with a bitmap"
        if found := damage_of(path, partial(read_bitmap, storage, digest_of(path))):
            damaged.append(found)
        else:
            damaged += [Damage(path, fault, RESTORE) for path, fault in row_faults(storage, group)]
    return TaskRecord(task.id, (), DamageList(tuple(damaged)))


def run_check_compare(storage: Storage, task: CheckTask, clock: str) -> TaskRecord[DamageList]:
    """Compare the contents of the files of each group, whose bytes were read without damage."""
    del clock
    settings = parse_settings(storage.read("retrodb.toml").decode(errors="replace"), where="retrodb.toml")
    faults = (
        fault
        for group in task.payload.groups
        for fault in content_faults(storage, settings, group, task.payload.next_chunk)
    )
    return TaskRecord(task.id, (), DamageList(tuple(Damage(path, fault, RESTORE) for path, fault in faults)))


def file_damage(storage: Storage, record: FileRecord, compare: Callable[[Storage, FileRecord], None]) -> Damage | None:
    """What is wrong with a live file."""
    found = damage_of(record.path, partial(compare, storage, record))
    return replace(found, remedy=remedy(record)) if found else None


def read_damages(storage: Storage, record: FileRecord) -> list[Damage]:
    """What is wrong with the bytes of a live file, and with its block digests."""
    found = file_damage(storage, record, compare_bytes), blocks_damage(storage, record, read_blocks)
    return [item for item in found if item]


def blocks_damage(
    storage: Storage, record: FileRecord, compare: Callable[[Storage, FileRecord], object]
) -> Damage | None:
    """What is wrong with the block digests of a live file, where it has some."""
    if record.blocks_path is None:
        return None
    return damage_of(record.blocks_path, partial(compare, storage, record))


def damage_of(path: str, read: Callable[[], object]) -> Damage | None:
    """The damage that shows when a file is read."""
    try:
        read()
    except DamagedFileError as error:
        return Damage(path, error.what, error.remedy or RESTORE)
    except OSError as error:  # the disk cannot read the bytes
        return Damage(path, error.strerror or str(error), RESTORE)
    return None


def compare_size(storage: Storage, record: FileRecord) -> None:
    """Raises DamagedFileError when the size of a file is not that of its record, MissingFileError when it is missing."""
    size_bytes = storage.stat(record.path).size_bytes
    if size_bytes != record.digest.size_bytes:
        raise damage(record, f"{size_bytes} bytes instead of {record.digest.size_bytes}")


def compare_bytes(storage: Storage, record: FileRecord) -> None:
    """Raises DamagedFileError when a file has other bytes than its record promises, or is Parquet that cannot be decoded."""
    path = storage.fetch(record.path)
    expected, actual = record.digest.sha256.hex(), digest_file(path).sha256.hex()
    if actual != expected:
        raise damage(record, f"checksum mismatch (expected {expected[:12]}.., got {actual[:12]}..)")
    if record.path.endswith(".parquet"):
        for _ in iterate_row_groups(path):
            pass
