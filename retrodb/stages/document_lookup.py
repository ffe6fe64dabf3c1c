"""Documents by their keys, in tasks: each searches the keys in some ids files, and the planner sees what was found."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retrodb.engine.groups import groups_of
from retrodb.engine.run import passing_run
from retrodb.engine.task import Task, TaskKind, TaskRecord
from retrodb.format.arrays import growing_array, map_array, save_array
from retrodb.format.document_keys import IdArray
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.layout import LAYOUT_COLUMNS, DocumentLayout
from retrodb.view.named import Pair, key_array, key_number, keys_of_pairs
from retrodb.view.purged import entries_with_keys
from retrodb.view.view import View

_TASK_BYTES = 64 << 20  # of ids files: a second of hashing if none was verified before
_MIN_FILE_BYTES = 128 << 10  # what a file counts at least, so that a task opens at most 512 files
_BYTES_OF_ONE_PROCESS = 1 << 30  # of ids files: searching fewer takes no longer than to start more processes

FOUND_DTYPE = np.dtype(
    [
        ("key_hi", "<u8"),  # as in an ids file
        ("key_lo", "<u8"),
        ("file", "<i4"),  # number of the ids file in its task
        ("row", "<i8"),  # first row of the document
        ("exists", "u1"),  # 1 if the documents file has it; compaction keeps the keys of some documents that are gone
    ]
)


@dataclass(frozen=True)
class IdsFile:
    """A file to search."""

    ids: FileRecord
    documents: FileRecord | None = None  # of the same shard, where it matters whether a document still exists


@dataclass(frozen=True)
class FindKeysPayload:
    """Search keys in some ids files."""

    run: str  # id of the run that stores what is found
    keys: FileRecord  # (K,) KEY_DTYPE, sorted
    files: tuple[IdsFile, ...]


@dataclass(frozen=True)
class FoundKeys:
    """What a task found."""

    found: FileRecord  # (n,) FOUND_DTYPE, by file


FIND_KEYS = TaskKind[FindKeysPayload, FoundKeys]("find-keys", 2, FoundKeys)


def find_documents(context: Context, view: View, pairs: Iterable[Pair]) -> dict[Pair, list[int]]:
    """The first chunk ids of all versions of those of some documents that are in the database, deleted or not."""
    wanted, first_chunks = keys_of_pairs(pairs), defaultdict[Pair, list[int]](list)
    documents = {record.first_chunk: record for record in view.manifest.files("documents")}
    files = [IdsFile(record, documents[record.first_chunk]) for record in view.coverage("ids").records]
    for file, entries in find_keys_in(context, files, key_array(wanted)):
        for entry in entries[entries["exists"] > 0]:
            first_chunks[wanted[key_number(entry)]].append(file.first_chunk + int(entry["row"]))
    return dict(first_chunks)


def all_ids_files(view: View) -> list[IdsFile]:
    """The ids files of the database's own documents, and of all query sets."""
    query_files = [record for record in view.manifest.files("queries") if record.path.endswith("/ids.npy")]
    return [IdsFile(record) for record in (*view.manifest.files("ids"), *query_files)]


def find_keys_in(context: Context, files: Sequence[IdsFile], keys: IdArray) -> Iterator[tuple[FileRecord, IdArray]]:
    """The ids files that have some keys, in their order, each with the entries (n,) FOUND_DTYPE.

    Args:
        keys: (K,) KEY_DTYPE, sorted and distinct.
    """
    if not len(keys) or not files:
        return
    digest = hashlib.sha256(keys.tobytes()).hexdigest()
    plan = {"keys": digest, "files": [file.ids.path for file in files]}
    with passing_run(context.storage, "find keys", plan, context.clock) as run:
        path = path_of("runs", run=run.id, file="keys.npy")
        stored = publish(context.storage, "runs", path, partial(save_array, array=keys))
        groups = groups_of(files, _weight, _TASK_BYTES)
        tasks = [
            FIND_KEYS.task(FindKeysPayload(run.id, stored, group), [digest], sum(map(_weight, group)))
            for group in groups
        ]
        is_small = sum(task.weight for task in tasks) <= _BYTES_OF_ONE_PROCESS
        engine = context.engine.here() if is_small else context.engine
        records = engine.run(run, tasks, run_find_keys, context.progress, unit="B")
        for task, record in zip(tasks, records, strict=True):
            found = np.array(map_array(context.storage.local(record.result.found.path)))
            for number in np.unique(found["file"]).tolist():
                yield task.payload.files[number].ids, found[found["file"] == number]


def _weight(file: IdsFile) -> int:
    return max(file.ids.digest.size_bytes, _MIN_FILE_BYTES)


def run_find_keys(storage: Storage, task: Task[FindKeysPayload, FoundKeys], clock: str) -> TaskRecord[FoundKeys]:
    """Search some ids files, of which one at a time is mapped."""
    del clock
    payload, files = task.payload, VerifiedFiles(storage)
    keys = files.whole_array(payload.keys)

    def write(local: Path) -> None:
        with growing_array(local, FOUND_DTYPE) as append:
            for number, file in enumerate(payload.files):
                append(_find(files, file, keys, number))

    path = path_of("runs", run=payload.run, file=f"found/{task.id}.npy")
    found = publish(storage, "runs", path, write)
    return TaskRecord(task.id, (found,), FoundKeys(found))


def _find(files: VerifiedFiles, file: IdsFile, keys: IdArray, number: int) -> IdArray:
    """(n,) FOUND_DTYPE: the entries of one file."""
    entries = files.array(file.ids)
    hits = entries[entries_with_keys(entries, keys)]
    found = np.empty(len(hits), FOUND_DTYPE)
    for name in ("key_hi", "key_lo", "row"):
        found[name] = hits[name]
    found["file"], found["exists"] = number, 1
    if file.documents is not None and len(hits):
        layout = DocumentLayout.from_table(read_table(files.open(file.documents), LAYOUT_COLUMNS))
        found["exists"] = np.isin(hits["row"], layout.first_row)  # also when its first row was dropped
    return found
