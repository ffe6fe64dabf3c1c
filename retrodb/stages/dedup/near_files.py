"""What the tasks of a search for near-duplicates leave for each other in the run's folder.

Each of these files follows from the state of the database and the parameters of the run, so a task that runs again writes the
same bytes under the same name. They are deleted when the search ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from retrodb.engine.run import Run
from retrodb.format.arrays import AnyArray, map_array, save_array
from retrodb.format.json_codec import from_json, to_json
from retrodb.format.kinds import path_of
from retrodb.format.records import ChunkRange, FileRecord
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.view import View

GROUP_CHUNKS = 1 << 20  # chunks of the shards that one task reads, unless one shard has more


@dataclass(frozen=True)
class BandsRun:
    """The sorted bands of one shard."""

    file: FileRecord
    is_new: bool  # whether pairs of two documents of such shards are wanted


@dataclass(frozen=True)
class FileList:
    """Files that later tasks read: a payload names the list, so it does not grow with the number of files."""

    paths: tuple[str, ...] = ()
    bands: tuple[BandsRun, ...] = ()


def near_path(run: str, name: str) -> str:
    """The path of a file in the folder of run `run`."""
    return path_of("runs", run=run, file=f"near/{name}")


def publish_array(storage: Storage, run: str, name: str, array: AnyArray) -> FileRecord:
    """Publish `{name}.npy` in the run's folder."""
    return publish(storage, "runs", near_path(run, f"{name}.npy"), lambda local: save_array(local, array))


def map_near(storage: Storage, run: str, name: str) -> AnyArray:
    """Memory-map `{name}.npy` of the run's folder."""
    return map_array(storage.local(near_path(run, f"{name}.npy")))


def map_numbered(storage: Storage, run: str, name: str, count: int) -> Iterator[AnyArray]:
    """Memory-map the files `{name}/0.npy` to `{name}/{count - 1}.npy`, one after another."""
    for number in range(count):
        yield map_near(storage, run, f"{name}/{number}")


def publish_list(storage: Storage, run: str, name: str, files: FileList) -> FileRecord:
    """Publish a list of files in the run's folder."""

    def write(local: Path) -> None:
        local.write_bytes(to_json(files))

    return publish(storage, "runs", near_path(run, f"{name}.json"), write)


def read_list(storage: Storage, path: str) -> FileList:
    """Read what `publish_list` wrote. Raises DamagedFileError."""
    return from_json(FileList, storage.read(path), where=path)


def delete_near_files(run: Run) -> None:
    """Delete what only the tasks needed. If this is interrupted, garbage collection does it."""
    for path in run.storage.list(near_path(run.id, "").rstrip("/")):
        run.storage.delete(path)
    run.storage.remove_empty_folders("runs")


def documents_records(view: View) -> list[FileRecord]:
    """The documents files of the database, by ascending first chunk."""
    return sorted(view.manifest.files("documents"), key=lambda record: record.first_chunk)


def shard_groups(view: View) -> list[ChunkRange]:
    """The ranges of consecutive shards that one task reads."""
    records = documents_records(view)
    num_chunks = np.array([record.num_chunks for record in records], np.int64)
    number = (np.cumsum(num_chunks) - 1) // GROUP_CHUNKS
    bounds = np.flatnonzero(np.diff(number, prepend=-1, append=-1)).tolist()
    spans = [(records[first].first_chunk, records[end - 1].span.end) for first, end in pairwise(bounds)]
    return [ChunkRange(first_chunk, end_chunk - first_chunk) for first_chunk, end_chunk in spans]


def records_of(view: View, group: ChunkRange) -> list[FileRecord]:
    """The documents files of a group of shards."""
    return [record for record in documents_records(view) if group.first_chunk <= record.first_chunk < group.end]
