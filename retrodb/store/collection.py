"""Collection: old snapshots expire, and files that nothing needs any more are deleted.

In two phases, because between writing a file and the commit that names it no snapshot knows of it: a file that nothing needs
is first marked with the time, and deleted by a later collection when it was marked longer than the grace ago and still
nothing needs it. Needed is what a kept snapshot names, and all that an open run has written: a run is open until some
snapshot, expired or not, carries its id.

`plan_collection` only reads, so that a dry run is the plan; `execute_collection` plans once more before it deletes.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson

from retrodb.errors import DamagedFileError, MissingFileError, UsageError
from retrodb.format.blocks import DIGEST_BYTES, block_bytes, block_digests, has_block_file, num_blocks
from retrodb.format.entries import PinEntry
from retrodb.format.kinds import KINDS, kind_of, path_of
from retrodb.format.snapshot import Snapshot, dump_snapshot, snapshot_path
from retrodb.store.digest import digests_of_blocks
from retrodb.store.manifest import load_manifest
from retrodb.store.row_files import written_since
from retrodb.store.snapshots import read_head, read_snapshot, snapshot_numbers
from retrodb.store.storage import FileStat, Storage
from retrodb.store.temporary import TEMPORARY, is_temporary

DEFAULT_GRACE = timedelta(days=7)
"""Longer than any command runs between writing a file and committing it, or than a reader stays on an expired snapshot."""


@dataclass(frozen=True)
class CollectionPlan:
    """What a collection will do."""

    keep_snapshots: int  # the newest ones stay
    now: str  # time of the collection, ISO 8601
    grace: timedelta  # how long a file stays marked before it is deleted
    expire: tuple[int, ...]  # snapshots that become stubs
    delete: tuple[str, ...]  # files to delete now
    marked: Mapping[str, str]  # files that nothing needs -> since when that is known; without those of `delete`
    open_runs: tuple[str, ...]  # runs that never committed, and were not abandoned: their files stay
    abandoned: frozenset[str] = frozenset()  # runs that are open and count as closed


def plan_collection(
    storage: Storage,
    keep_snapshots: int,
    now: datetime,
    grace: timedelta,
    *,
    abandoned: frozenset[str] = frozenset(),
) -> CollectionPlan:
    """Find what can be deleted.

    Args:
        keep_snapshots: how many of the newest snapshots stay readable, at least 1; pinned ones stay as well.
        now: time of the collection, with its time zone.
        abandoned: open runs that are given up: their files are collected as if they had ended.

    Raises:
        NotADatabaseError, UsageError.
        DamagedFileError, MissingFileError: for a snapshot, segment or record that does not read: nothing may be deleted then.
    """
    if keep_snapshots < 1:
        raise UsageError(f"{keep_snapshots} snapshots to keep", remedy="The newest one always stays: give 1 or more.")
    now = now.replace(microsecond=0)  # as marks have it: a file is never older than its mark says
    head = read_head(storage)
    snapshots = [read_snapshot(storage, number) for number in snapshot_numbers(storage)]
    runs = _open_runs(storage, {snapshot.transaction for snapshot in snapshots} | abandoned)
    kept = _kept(head, snapshots, keep_snapshots, {_planned_on(storage, run) for run in runs})
    needed = {path for snapshot in kept for path in named_by(storage, snapshot)}
    needed.update(*runs.values())
    marks, time = _read_marks(storage), now.isoformat(timespec="seconds")
    first_mark = _not_before(head, now).isoformat(timespec="seconds")
    unneeded = {
        path: marks[path] if path in marks and _is_valid(storage, path, marks[path], now, grace) else first_mark
        for path in _all_files(storage)
        if path not in needed
    }
    delete = {path for path, since in unneeded.items() if now - datetime.fromisoformat(since) > grace}
    return CollectionPlan(
        keep_snapshots=keep_snapshots,
        now=time,
        grace=grace,
        expire=tuple(s.number for s in snapshots if s not in kept and s.expired_at is None),
        delete=tuple(sorted(delete)),
        marked={path: since for path, since in unneeded.items() if path not in delete},
        open_runs=tuple(sorted(runs)),
        abandoned=abandoned,
    )


def execute_collection(storage: Storage, plan: CollectionPlan) -> None:
    """Execute a plan. It may be interrupted anywhere: the next collection continues.

    Snapshots expire before the files that they name are deleted, and each file is checked again before it is deleted.
    """
    for number in plan.expire:
        storage.write(snapshot_path(number), dump_snapshot(read_snapshot(storage, number).stub(plan.now)))
    now = datetime.fromisoformat(plan.now)
    again = plan_collection(storage, plan.keep_snapshots, now, plan.grace, abandoned=plan.abandoned)
    storage.delete_all(sorted(set(plan.delete) & set(again.delete)))
    storage.write(path_of("collection"), orjson.dumps(dict(again.marked), option=orjson.OPT_SORT_KEYS))


def _kept(head: Snapshot, snapshots: list[Snapshot], keep: int, of_runs: set[int | None]) -> list[Snapshot]:
    """The newest snapshots, those that the head has pinned, and those that open runs were planned on."""
    pinned = {head.existing(PinEntry, name).snapshot for name in head.names(PinEntry)} | of_runs
    readable = [snapshot for snapshot in snapshots if snapshot.expired_at is None]
    return [s for index, s in enumerate(readable) if index >= len(readable) - keep or s.number in pinned]


def named_by(storage: Storage, snapshot: Snapshot) -> Iterable[str]:
    """The paths of all files that a snapshot needs, its manifest's among them."""
    yield from (path_of("manifests", digest=ref.digest) for ref in snapshot.segments)
    yield from load_manifest(storage, snapshot).paths()


def unused_blocks(storage: Storage) -> list[str]:
    """The files of block digests that describe no file that is there or that a readable snapshot or an open run names.

    A running task stores the digests of its files before its record names them. Such a file is known by its blocks.

    Raises:
        DamagedFileError, MissingFileError: for a snapshot or segment that does not read.
    """
    snapshots = [read_snapshot(storage, number) for number in snapshot_numbers(storage)]
    named: set[str] = set()
    for snapshot in snapshots:
        if snapshot.expired_at is None:
            named.update(load_manifest(storage, snapshot).paths())
    committed = {snapshot.transaction for snapshot in snapshots}
    for path in filter(_COMPLETION.fullmatch, storage.list("runs")):
        if path.split("/")[1] not in committed:
            with suppress(DamagedFileError):  # a task with a damaged record runs again and writes its digests again
                named.update(_outputs(storage.read(path), path))
    unnamed = [path for path in storage.list("blocks") if is_ours(path) and path not in named]
    if not unnamed:
        return []
    others: dict[int, list[str]] = defaultdict(list)  # files that nothing names, by the size of their digests
    for path, stat in collected_stats(storage).items():
        if path not in named and not path.startswith("blocks/"):
            others[num_blocks(stat.size_bytes) * DIGEST_BYTES].append(path)
    return [path for path in unnamed if not _describes_one_of(storage, path, others)]


def _describes_one_of(storage: Storage, blocks: str, others: Mapping[int, Sequence[str]]) -> bool:
    """Whether block digests are those of a file. Of nearly every other file its first block tells that they are not."""
    with suppress(MissingFileError):  # another command deleted them
        digests = storage.read(blocks)
        for path in others.get(len(digests), ()):
            with suppress(MissingFileError, FileNotFoundError):  # another command deleted it
                local = storage.local(path)
                with local.open("rb") as file:
                    first = block_digests(file.read(block_bytes()))
                if digests.startswith(first) and digests_of_blocks(local) == digests:
                    return True
    return False


_COMPLETION = re.compile(r"runs/[^/]+/tasks/.+")


def _open_runs(storage: Storage, committed: set[str]) -> dict[str, set[str]]:
    """For every run that no snapshot carries and nobody cancelled, its own files and those that its completion records name."""
    runs: dict[str, set[str]] = defaultdict(set)
    paths = [path for folder in ("runs", "queue") for path in storage.list(folder) if is_ours(path)]
    closed = committed | {path.split("/")[1] for path in paths if path.endswith("/cancelled.json")}
    for path in paths:
        _, run, file = path.split("/", 2)
        if run in closed:
            continue
        runs[run].add(path)
        if file.startswith("tasks/"):
            runs[run].update(_outputs(storage.read(path), path))
    return dict(runs)


def _planned_on(storage: Storage, run: str) -> int | None:
    """The snapshot that was the newest when a run was planned, which its tasks read; None if that is not known."""
    with suppress(MissingFileError, ValueError, AttributeError):  # a crash tore the plan, so the run begins again
        number = orjson.loads(storage.read(path_of("runs", run=run, file="plan.json"))).get("snapshot")
        return number if isinstance(number, int) else None
    return None


def _outputs(record: bytes, where: str) -> list[str]:
    """The paths in a completion record, which `engine/task.py` writes."""
    try:
        files = orjson.loads(record)["files"]
        bitmaps = {file["rows"] for file in files if file.get("rows")}
        described = [file["digest"] for file in files if has_block_file(file["kind"], file["digest"]["size_bytes"])]
        return [
            *(file["path"] for file in files),
            *(path_of("rows", digest=digest) for digest in bitmaps),
            *(path_of("blocks", digest=base64.b64decode(digest["sha256"]).hex()) for digest in described),
        ]
    except (ValueError, KeyError, TypeError) as error:  # of JSON, or of base64
        raise DamagedFileError(
            "damaged completion record", where=where, remedy="Delete this file: the run does its task again."
        ) from error


def _all_files(storage: Storage) -> list[str]:
    """Every file that collection may delete: those that are named as retrodb names its files, never another one."""
    return [path for folder in sorted(COLLECTED | {TEMPORARY}) for path in storage.list(folder) if is_ours(path)]


def collected_stats(storage: Storage) -> dict[str, FileStat]:
    """What storage says of every file that collection may delete."""
    folders = (storage.stats(folder) for folder in sorted(COLLECTED | {TEMPORARY}))
    return {path: stat for stats in folders for path, stat in stats.items() if is_ours(path)}


def is_ours(path: str) -> bool:
    """Whether retrodb made a file, by its name: a file of some kind, an unfinished file, a lock or the recipe."""
    return kind_of(path) is not None or is_temporary(path) or bool(_OTHERS.fullmatch(path))


_OTHERS = re.compile(
    r"locks/[A-Za-z0-9._-]+\.(?:lock|json)|quarantine/.+|recipe\.toml|demo/(?:corpus\.jsonl|test\.jsonl|tokenizer\.json|export/.+)"
)

COLLECTED = {kind.pattern.partition("/")[0] for kind in KINDS.values() if "/" in kind.pattern} - {"snapshots", "heads"}
"""The folders of the files that snapshots name."""


_LONGEST_GAP = timedelta(days=366)  # between two collections; a longer one more probably is a wrong clock


def _is_valid(storage: Storage, path: str, since: str, now: datetime, grace: timedelta) -> bool:
    """Whether a mark counts. If not, the grace starts again.

    Its time must fit this clock: otherwise one of the two clocks was wrong. And a row bitmap, or a file of block digests, must
    not have been written since: it is named by content, so a command that has not committed yet may use it.
    """
    time = datetime.fromisoformat(since)
    if not now - grace - _LONGEST_GAP <= time <= now:
        return False
    return kind_of(path) not in ("rows", "blocks") or not written_since(
        storage, path, time.timestamp() + 1
    )  # marks have seconds


def _not_before(head: Snapshot, now: datetime) -> datetime:
    """The time of a new mark: now, or the newest commit's where this clock is behind it."""
    try:
        return max(now, datetime.fromisoformat(head.clock).replace(microsecond=0))
    except (ValueError, TypeError):  # no time, or one without a zone
        return now


def _read_marks(storage: Storage) -> dict[str, str]:
    path = path_of("collection")
    if not storage.exists(path):
        return {}
    try:
        return {str(file): str(since) for file, since in orjson.loads(storage.read(path)).items()}
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise DamagedFileError(
            "damaged marks of collection", where=path, remedy="Delete this file: each grace period starts again."
        ) from error
