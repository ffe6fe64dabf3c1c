"""Copy: snapshots of one database in another place, with the files that this place does not have.

Files are copied and verified first, and the snapshots that name them are published last. So a copy that was killed is continued
by the same command, and what a reader finds in the destination is always a whole snapshot of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from retrodb.errors import (
    ConflictError,
    DamagedFileError,
    MissingFileError,
    NotADatabaseError,
    RetroDBError,
    UsageError,
)
from retrodb.format.entries import PinEntry
from retrodb.format.kinds import kind_of, path_of
from retrodb.format.snapshot import Snapshot
from retrodb.maintain.copy.files import NamedFile, files_of_snapshots, sizes_there
from retrodb.maintain.copy.history import read_there, refuse_other_history
from retrodb.maintain.copy.keep import kept_snapshots, place_of
from retrodb.maintain.copy.publish import publish_snapshots, record_newest, with_pins
from retrodb.maintain.copy.purged import purges_that_may_remain, refuse_purged
from retrodb.maintain.copy.transfer import Threads, copy_files, find_damaged
from retrodb.maintain.copy.wanted import is_readable, later_snapshots, read_snapshots, with_named
from retrodb.stages.context import Context
from retrodb.store.collection import is_ours
from retrodb.store.manifest import load_manifest
from retrodb.store.snapshots import number_of, read_as_of, read_head, snapshot_numbers
from retrodb.store.storage import Storage

TRANSFERS = 4
"""Files that are copied at the same time. With an object store each takes up to 80 MiB of memory, with directories 4 MiB."""
_PASSES = 3
_OF_RUNS = ("runs", "queue", None)  # None: unfinished files
RECIPE = "recipe.toml"


@dataclass(frozen=True)
class CopyResult:
    """What a copy did."""

    source: str
    destination: str
    snapshot: int  # the newest one that was copied
    new_snapshots: tuple[int, ...]  # that the destination did not have
    num_files: int  # copied
    size_bytes: int  # of them
    num_replaced_files: int  # of them, those that were there with other bytes
    num_present_files: int  # that were there already
    num_other_files: int  # in the destination, which the copied snapshots do not need
    other_bytes: int  # of these
    purges: tuple[int, ...]  # snapshots in which the source purged documents that the other files may contain
    pins: tuple[str, ...]  # names of the copied snapshots
    dry_run: bool = False


@dataclass(frozen=True)
class CopyPlan:
    """What a copy will do."""

    source: Storage
    destination: Storage
    is_new: bool  # whether there is no database in the destination
    snapshots: tuple[Snapshot, ...]  # to copy, ascending, with their pins
    stubs: tuple[Snapshot, ...]  # of those that are not copied, and that the destination does not have
    new_snapshots: tuple[int, ...]  # of the first ones, those that it does not have
    is_newest: bool  # whether the last one will be the newest there, whose names count
    files: Mapping[str, NamedFile]  # that the snapshots need
    missing: tuple[NamedFile, ...]  # of them, in the destination
    sizes: Mapping[str, int]  # of the files that are there
    other_sizes: Sequence[int]  # of those of them that the snapshots do not need
    purges: tuple[int, ...]

    @cached_property
    def result(self) -> CopyResult:
        """The result of a dry run."""
        newest = self.snapshots[-1]
        numbers = {snapshot.number for snapshot in self.snapshots}
        names = newest.names(PinEntry) if self.is_newest else []
        return CopyResult(
            source=self.source.url,
            destination=self.destination.url,
            snapshot=newest.number,
            new_snapshots=self.new_snapshots,
            num_files=len(self.missing),
            size_bytes=sum(file.size_bytes for file in self.missing),
            num_replaced_files=sum(file.path in self.sizes for file in self.missing),
            num_present_files=len(self.files) - len(self.missing),
            num_other_files=len(self.other_sizes),
            other_bytes=sum(self.other_sizes),
            purges=self.purges,
            pins=tuple(name for name in names if newest.existing(PinEntry, name).snapshot in numbers),
            dry_run=True,
        )


def run_copy(
    context: Context,
    destination: Storage,
    *,
    at: int | str | None = None,
    since: int | str | None = None,
    verify: bool = False,
    transfers: int = TRANSFERS,
    dry_run: bool = False,
) -> CopyResult:
    """Copy a snapshot, or all that followed one, to another place.

    Args:
        at: the snapshot to copy, as a number or a name; None is the newest.
        since: copy all snapshots after this one, which the destination has.
        verify: read the files that are in the destination, and copy those again that are damaged.
        transfers: files to copy at the same time.

    Raises:
        UsageError: there is no such snapshot, the two places overlap, or the destination does not have `since`.
        ConflictError: the destination has another database, other files, or a commit that the source does not have; or a
            snapshot has documents that were purged later.
        DamagedFileError, MissingFileError: a file of the source. No snapshot that needs it is published then.
    """
    if transfers < 1:
        raise UsageError(f"{transfers} files at the same time", remedy="Give 1 or more.")
    threads = Threads(transfers)
    plan = plan_copy(context, destination, at=at, since=since, verify=verify, threads=threads)
    return plan.result if dry_run else execute_copy(context, plan, threads)


def plan_copy(
    context: Context,
    destination: Storage,
    *,
    at: int | str | None = None,
    since: int | str | None = None,
    verify: bool = False,
    threads: Threads,
) -> CopyPlan:
    """Plan a copy; arguments and errors are those of `run_copy`. Of the destination it lists all files and reads one manifest."""
    source = context.storage
    _refuse_overlap(source, destination)
    if at is not None and since is not None:
        raise UsageError("one snapshot, or all since another one", remedy="Give '--snapshot' or '--since'.")
    head, there = read_head(source), snapshot_numbers(destination)
    refuse_other_history(source, destination)
    if since is None:
        wanted = with_named(source, head, read_as_of(source, at), threads)
    else:
        wanted = later_snapshots(source, destination, number_of(source, since), there, threads)
    numbers = [snapshot.number for snapshot in wanted]
    last = max([*numbers, *there])
    before = read_snapshots(source, [number for number in range(last) if number not in there], threads)
    readable = {number for number in numbers if number in there and read_there(destination, number).expired_at is None}
    refuse_purged(context, [snapshot for snapshot in wanted if snapshot.number not in readable])
    files = files_of_snapshots(source, wanted)
    if not there:
        _refuse_other_files(source, destination, files)
    sizes = sizes_there(destination, files)
    missing = _missing(files, sizes, _digests_there(destination))
    if verify:
        present = [file for path, file in files.items() if path not in missing]
        missing |= find_damaged(destination, present, threads, context.progress)
    others = [size for path, size in sizes.items() if path not in files and kind_of(path) not in _OF_RUNS]
    is_purged = bool(others) and any(kind_of(path) == "purged" for path in files)
    wanted[-1] = with_pins(wanted[-1], head, numbers)
    return CopyPlan(
        source=source,
        destination=destination,
        is_new=not there,
        snapshots=tuple(wanted),
        stubs=tuple(_stub(snapshot, head) for snapshot in before if snapshot.number not in numbers),
        new_snapshots=tuple(number for number in numbers if number not in readable),
        is_newest=numbers[-1] == last and last not in readable,
        files=files,
        missing=tuple(files[path] for path in sorted(missing)),
        sizes=sizes,
        other_sizes=others,
        purges=(
            purges_that_may_remain(context, destination, there, [*before, *wanted], files, threads) if is_purged else ()
        ),
    )


def execute_copy(context: Context, plan: CopyPlan, threads: Threads) -> CopyResult:
    """Copy the files that are missing, and publish the snapshots. Errors are those of `run_copy`."""
    source, destination, numbers = plan.source, plan.destination, [snapshot.number for snapshot in plan.snapshots]
    if plan.is_new:
        destination.probe()
    with kept_snapshots(source, numbers, destination):
        try:
            missing: Sequence[NamedFile] = plan.missing
            for _ in range(_PASSES):  # collection there may have deleted files that no snapshot named yet
                copy_files(source, destination, missing, threads, context.progress)
                missing = _still_missing(plan)
                if not missing:
                    break
            else:
                what = f"files disappear while they are copied, such as {missing[0].path}"
                remedy = "Do not run 'retrodb gc --grace 0s' there meanwhile, and copy again."
                raise RetroDBError(what, where=destination.url, remedy=remedy)
        except MissingFileError as error:
            _refuse_expired(source, numbers, error)
            raise
        if source.exists(RECIPE):
            destination.put_if_absent(RECIPE, source.read(RECIPE))
        if plan.new_snapshots or plan.stubs:
            publish_snapshots(source, destination, plan.snapshots, plan.stubs, threads)
        record_newest(destination)
    return replace(plan.result, dry_run=False)


def _stub(snapshot: Snapshot, head: Snapshot) -> Snapshot:
    return snapshot if snapshot.expired_at is not None else snapshot.stub(head.clock)


def _digests_there(destination: Storage) -> dict[str, bytes]:
    """What the newest snapshot of the destination says of its files: the SHA-256 by path."""
    try:
        manifest = load_manifest(destination, read_head(destination))
    except (DamagedFileError, NotADatabaseError):  # the copy replaces what is missing, or is the first one
        return {}
    return {record.path: record.digest.sha256 for record in manifest.all_files()}


def _missing(files: Mapping[str, NamedFile], sizes: Mapping[str, int], digests: Mapping[str, bytes]) -> set[str]:
    """The paths of the files that are not there, or have another size, or other bytes by the manifest of the destination.

    A file that no manifest there names comes from a copy that was killed, or from an older snapshot, and is whole under its name.
    """
    return {
        path
        for path, file in files.items()
        if sizes.get(path) != file.size_bytes or digests.get(path, file.digest) != file.digest
    }


def _still_missing(plan: CopyPlan) -> list[NamedFile]:
    sizes = sizes_there(plan.destination, plan.files)
    return [plan.files[path] for path in sorted(_missing(plan.files, sizes, {}))]


def _refuse_overlap(source: Storage, destination: Storage) -> None:
    """Raises UsageError for places of which one is in the other."""
    first, second = place_of(source), place_of(destination)
    if f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/"):
        what = "source and destination are the same place, or one is in the other"
        raise UsageError(what, where=destination.url, remedy="Copy to a place outside of the database.")


def _refuse_other_files(source: Storage, destination: Storage, files: Mapping[str, NamedFile]) -> None:
    """Raises ConflictError for a destination without a database that has files of somebody else, or of another database."""
    other = next((path for path in destination.list("") if not is_ours(path)), None)
    if other is not None:
        what = f"the folder is not empty: it contains '{other}'"
        raise ConflictError(what, where=destination.url, remedy="Copy to a new path, or to an empty folder.")
    settings = path_of("settings")
    if settings in files and destination.exists(settings) and destination.read(settings) != source.read(settings):
        remedy = "Copy to a new path, or to an empty folder."
        raise ConflictError("the beginning of another database is here", where=destination.url, remedy=remedy)


def _refuse_expired(source: Storage, numbers: Sequence[int], error: DamagedFileError) -> None:
    """Raises MissingFileError when a file is missing because its snapshot is gone."""
    for number in numbers:
        if not is_readable(source, number):
            raise MissingFileError(
                f"snapshot {number} expired while it was copied",
                where=error.where,
                remedy="Copy another snapshot. 'retrodb pin' keeps one from expiring.",
            ) from error
