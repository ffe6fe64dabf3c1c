"""Purged documents: a copy never brings them back, and says where the destination may still have them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from retrodb.errors import ConflictError, DamagedFileError
from retrodb.format.document_keys import IdArray
from retrodb.format.snapshot import Snapshot
from retrodb.maintain.copy.transfer import Threads
from retrodb.stages.context import Context
from retrodb.stages.document_lookup import IdsFile, all_ids_files, find_keys_in
from retrodb.store.scratch import ScratchStorage
from retrodb.store.snapshots import read_snapshot
from retrodb.store.storage import Storage
from retrodb.view.purged import purged_keys


def refuse_purged(context: Context, snapshots: Sequence[Snapshot]) -> None:
    """Find out whether a snapshot of the source has a document that was purged later, as a backup has that nobody collected.

    The destination has purged nothing else, because the source has all of its snapshots. The ids files of older snapshots are
    searched where anything was ever purged. Nothing is written to the source.

    Raises:
        ConflictError: a snapshot has such a document.
    """
    newest = context.view()
    older = [snapshot.number for snapshot in snapshots if snapshot.number < newest.snapshot.number]
    for number in _with_keys(context, older, purged_keys(newest), without=newest.manifest.paths()):
        what = f"snapshot {number} has documents that were purged later"
        remedy = "A copy would bring them back. Copy the newest snapshot: leave out '--snapshot' and '--since'."
        raise ConflictError(what, where=context.storage.url, remedy=remedy)


def purges_that_may_remain(
    context: Context,
    destination: Storage,
    there: Iterable[int],
    of_source: Sequence[Snapshot],
    files: Collection[str],
    threads: Threads,
) -> tuple[int, ...]:
    """The snapshots that purged documents which other files of the destination may have.

    These are files of other snapshots, whose ids files tell. Where no other snapshot can be read, they are left over from any
    time, and may have everything that was ever purged.

    Args:
        context: of the source.
        there: the numbers in the destination, all of which are read.
        of_source: the snapshots that are copied, and those that the destination does not have.
        files: that the copied snapshots need.
    """
    snapshots = {snapshot.number: snapshot for snapshot in of_source}

    def read(number: int) -> None:
        with suppress(DamagedFileError):
            snapshots[number] = read_snapshot(destination, number)

    threads.each(read, [number for number in there if number not in snapshots])
    copied = {snapshot.number for snapshot in of_source}
    readable = [number for number, each in snapshots.items() if each.expired_at is None and number not in copied]
    purges = sorted(number for number, each in snapshots.items() if each.command == "purge")
    if readable:
        before = sorted(number for number in readable if number < max(purges, default=-1))
        try:
            keys = purged_keys(context.view())
            before = _with_keys(replace(context, storage=destination), before, keys, without=files)
        except DamagedFileError:  # the copy may repair it
            pass
        purges = [number for number in purges if before and number > before[0]]
    return tuple(purges)


def _with_keys(context: Context, numbers: Sequence[int], keys: IdArray, without: Iterable[str]) -> list[int]:
    """Which snapshots have some documents, by their keys (K,) KEY_DTYPE. Their ids files are searched, but nothing is written.

    Args:
        without: paths of files that have none of the documents.
    """
    if not numbers or not len(keys):
        return []
    skipped, of_snapshot = set(without), dict[int, dict[str, IdsFile]]()
    for number in numbers:
        of_snapshot[number] = {
            file.ids.path: file for file in all_ids_files(context.view(number)) if file.ids.path not in skipped
        }
    files = {path: file for of_one in of_snapshot.values() for path, file in of_one.items()}
    with TemporaryDirectory(prefix="retrodb-copy-") as folder:
        searching = replace(context, storage=ScratchStorage.create(Path(folder), context.storage))
        found = {record.path for record, _ in find_keys_in(searching, list(files.values()), keys)}
    return [number for number in numbers if found & of_snapshot[number].keys()]
